"""``peerseal-registry verify``: does the database say what its ledger says, and is the ledger the one it was?

It reads the database and nothing else: no key file, no answer of a running registry. What it cannot know by itself is
whether the whole ledger was replaced by another; for that it takes checkpoints that somebody kept.
"""

import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peerseal.errors import DocumentRefused
from peerseal.protocol.ledger.checkpoint import read_checkpoint
from peerseal.protocol.numbers import natural
from registry.domain.differences import Difference
from registry.services.recovery.compare import Retention, compare
from registry.services.recovery.replay import Replay, replay
from registry.settings import Limits
from registry.storage.unit import Store


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found: the size of the ledger, its root hash (None where entries are missing), and every difference.

    ``unbound`` of the vouchers were made for a body in another spelling than ours: their signatures are good, but that
    they speak of the very key cannot be seen. What ``unproven`` entries rest on was lost with a database, as the ledger
    says: that they are the ones that were written then is certain, and no more.
    """

    size: int
    root: bytes | None
    differences: Sequence[Difference]
    unbound: int = 0
    unproven: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing differs."""
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
    progress: Callable[[int], None] = lambda _: None,
) -> Verified:
    """Replays and compares everything as of one moment. ``checkpoints`` are signed notes that somebody kept, by the
    name under which a difference is to be reported. Raises StorageUnavailable."""
    kept, found = checkpoints or {}, list[Difference]()
    with store.read() as connection:
        replayed = replay(connection, found.append, {claimed_size(note) for note in kept.values()}, progress)
        found += compare(connection, replayed.state, replayed.documents(), Retention(int(clock()), limits.spent_kept))
    for name, note in kept.items():
        found += check_kept(name, note, replayed)
    tree, grounds = replayed.tree, replayed.grounds
    root = tree.edge.root if tree.whole else None
    return Verified(replayed.state.size, root, found, grounds.unbound, grounds.unproven)


def claimed_size(note: str) -> int:
    """The size that a checkpoint speaks of, its signature not checked; 0 for what is none."""
    line = note.split("\n", 2)[1:2]
    return natural(line[0]) or 0 if line else 0


def check_kept(name: str, note: str, replayed: Replay) -> Sequence[Difference]:
    """Whether this ledger begins with the one whose head was signed then. Its size is among those that were asked
    for."""
    place = "checkpoint", name
    jwks = [jwk for document in replayed.grounds.documents.values() for jwk in document.ledger_keys]
    try:
        checkpoint = read_checkpoint(note, replayed.grounds.domain or "", jwks)
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
