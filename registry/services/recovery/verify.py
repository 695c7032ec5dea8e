"""``peerseal-registry verify``: checks that the database matches its ledger, and that the ledger was not replaced.

It reads only the database: no key file, and no answer of a running registry. A replacement of the whole ledger shows
only in comparison with kept checkpoints.
"""

import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peerseal.errors import DocumentRefused
from peerseal.protocol.encoding import natural
from peerseal.protocol.ledger.checkpoint import verify_checkpoint
from registry.domain.differences import Difference
from registry.limits import Limits
from registry.services.recovery.compare import Retention, compare
from registry.services.recovery.replay import Progress, Replay, Replayer, no_progress
from registry.storage.unit import Store


@dataclass(frozen=True, slots=True)
class Verified:
    """The size of the ledger, its root hash (None where entries are missing), and every difference.

    ``unbound`` is the number of vouchers for a body in another spelling than the canonical one: their signatures are
    valid, but do not show the key that they vouch for. ``unproven`` is the number of entries whose evidence was lost
    with a database, as the ledger records: the entries are authentic, their grounds cannot be checked.
    """

    size: int
    root: bytes | None
    differences: Sequence[Difference]
    unbound: int = 0
    unproven: int = 0

    @property
    def whole(self) -> bool:
        """Whether there is no difference."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """``{"whole", "size", "root", "unbound_vouchers", "unproven_entries", "differences": […]}``."""
        names = ("table", "key", "column", "says", "should_say")
        rows = [{name: getattr(difference, name) for name in names} for difference in self.differences]
        root = None if self.root is None else b64encode(self.root).decode("ascii")
        told = {"whole": self.whole, "size": self.size, "root": root}
        counted = {"unbound_vouchers": self.unbound, "unproven_entries": self.unproven}
        return {**told, **counted, "differences": rows}


def verify(
    store: Store,
    limits: Limits,
    *,
    checkpoints: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.time,
    progress: Progress = no_progress,
    processes: int = 1,
) -> Verified:
    """Replays and compares everything as of one moment. ``checkpoints`` are kept signed notes, by their names in
    differences. Evidence is checked in ``processes`` at most. Raises StorageUnavailable."""
    kept, found = checkpoints or {}, list[Difference]()
    with store.read() as connection:
        wanted = {claimed_size(note) for note in kept.values()}
        replayed = Replayer(connection, found.append, wanted, progress, processes).replay()
        found += compare(connection, replayed.state, replayed.documents(), Retention(int(clock()), limits.spent_kept))
    for name, note in kept.items():
        found += check_kept(name, note, replayed)
    tree = replayed.tree
    root = tree.edge.root if tree.whole else None
    return Verified(replayed.state.size, root, found, replayed.unbound, replayed.grounds.unproven)


def claimed_size(note: str) -> int:
    """The size in an unverified checkpoint; 0 if it has none."""
    line = note.split("\n", 2)[1:2]
    return natural(line[0]) or 0 if line else 0


def check_kept(name: str, note: str, replayed: Replay) -> Sequence[Difference]:
    """The difference, if this ledger does not extend the one of a kept checkpoint, whose size was asked for in the
    replay."""
    place = "checkpoint", name
    jwks = [jwk for document in replayed.grounds.documents.values() for jwk in document.ledger_keys]
    try:
        checkpoint = verify_checkpoint(note, replayed.grounds.domain or "", jwks)
    except DocumentRefused as error:
        return [
            Difference(*place, "signature", error.code, "signed by a ledger key that the root of this ledger named")
        ]
    if checkpoint.size > replayed.state.size:
        shorter = f"{replayed.state.size} entries"
        return [Difference(*place, "size", shorter, f"{checkpoint.size} entries, as it did when that was signed")]
    found = replayed.tree.roots.get(checkpoint.size)
    if found == checkpoint.root:
        return []
    said = "nothing: entries are missing" if found is None else b64encode(found).decode("ascii")
    return [Difference(*place, "root", said, b64encode(checkpoint.root).decode("ascii"))]
