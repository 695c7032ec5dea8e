"""The parts of large key sets (docs/protocol.md): the entry that last changed each part, and what the part says.

What a part says is fixed by that entry: it lists the keys that a set lists at the time of the entry. So all nodes make
the same part, and a change of one key leaves the other parts as they are. A process remembers the names of the parts,
and reads what changed since: all keys of a service are read only once.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from sqlalchemy import Connection

from peerseal.protocol.documents.key_set import PARTS, PartName, initial_of, part_of
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.names import make_kid, split_kid, split_service_id
from registry.domain.errors import LedgerContradicted, StorageUnavailable
from registry.domain.keys import KeyRecord
from registry.domain.lifecycle import is_listed
from registry.domain.publication import part_digest
from registry.domain.rebuild import keys_of
from registry.services.bounded_cache import BoundedCache
from registry.services.documents.answer_cache import LONGEST_WAIT
from registry.storage.queries import keys, ledger

_SERVICES: Final = 1_000
"""Services with large sets whose parts are remembered, 10 KiB each."""

A = TypeVar("A")

PartNames = tuple[PartName | None, ...]
ReadNames = Callable[[Connection, str, int, int], PartNames]
"""See `KeySetParts.names`."""


class _AllKeysNeeded(Exception):
    """Nothing is remembered of a service: all its keys have to be read."""


@dataclass(frozen=True, slots=True)
class _Remembered:
    """The names of a service's parts as of entry ``seq``, where those without a change from ``first`` on are None."""

    seq: int
    first: int
    names: PartNames


class KeySetParts:
    """Reads parts. ``retired_shown`` is how long (seconds) a retired key stays in a set."""

    def __init__(self, retired_shown: int) -> None:
        self._retired_shown = retired_shown
        self._reading_all = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Drops what was read, which may belong to a history that was given up."""
        self._remembered: BoundedCache[str, _Remembered] = BoundedCache(_SERVICES)

    def reading(self, make: Callable[[ReadNames], A]) -> A:
        """What ``make`` returns, which it makes in a transaction of its own, with the function that reads names.

        To read all keys of a service takes seconds. So ``make`` is then called again, and only one thread of a process
        reads all keys at a time; the others wait without a connection to the database. Raises StorageUnavailable where
        that takes too long."""
        try:
            return make(self._remembered_names)
        except _AllKeysNeeded:
            pass
        if not self._reading_all.acquire(timeout=LONGEST_WAIT):
            raise StorageUnavailable(f"all keys of other services were read for {LONGEST_WAIT} s")
        try:
            return make(self.names)
        finally:
            self._reading_all.release()

    def names(self, connection: Connection, owner: str, seq: int, first: int) -> PartNames:
        """The parts' names by number, None for a part without keys. ``owner`` is the service's id, ``seq`` the entry
        that last changed it, and ``first`` the one that admitted the first listed key. Raises LedgerContradicted."""
        kept = self._kept(owner, first) or _Remembered(first - 1, first, (None,) * PARTS)
        known = self._known(connection, owner, seq, kept)
        return tuple(None if name is None or name.seq < first else name for name in known)

    def _remembered_names(self, connection: Connection, owner: str, seq: int, first: int) -> PartNames:
        """As `names`. Raises _AllKeysNeeded."""
        if self._kept(owner, first) is None:
            raise _AllKeysNeeded
        return self.names(connection, owner, seq, first)

    def _kept(self, owner: str, first: int) -> _Remembered | None:
        kept = self._remembered.get(split_service_id(owner)[1])
        return None if kept is None or kept.first > first else kept

    def _known(self, connection: Connection, owner: str, seq: int, kept: _Remembered) -> PartNames:
        """The names, also of parts without a change since the first listed key."""
        service = split_service_id(owner)[1]
        if kept.seq == seq:
            return kept.names
        # names of a later moment, which another thread has read
        later = {n for n, name in enumerate(kept.names) if name is not None and name.seq > seq}
        changed = _last_changes(connection, service, kept.first - 1 if later else kept.seq)
        if later:
            changed = {n: entry for n, entry in changed.items() if n in later}
        before = {n: None if n in later else name for n, name in enumerate(kept.names)}
        names = {**before, **self._read_names(connection, owner, changed)}
        found = tuple(names[n] for n in range(PARTS))
        if kept.seq < seq:
            self._remembered.put(service, _Remembered(seq, kept.first, found))
        return found

    def records(self, connection: Connection, service: str, changed: Mapping[int, int]) -> dict[int, list[KeyRecord]]:
        """The keys that each part lists as of its entry, by its number; ``changed`` has the entries by number."""
        if not changed:
            return {}
        times = {entry.seq: entry.time for entry in ledger.read_some(connection, list(set(changed.values())))}
        oldest, shown = min(times.values()), self._retired_shown
        found: dict[int, list[KeyRecord]] = {number: [] for number in changed}
        initials = [initial_of(number) for number in changed]
        for record in keys.listed_of_parts(connection, service, initials, oldest - shown, oldest):
            number = part_of(record.thumbprint)
            if is_listed(record, times[changed[number]], shown):
                found[number].append(record)
        return found

    def _read_names(self, connection: Connection, owner: str, changed: Mapping[int, int]) -> dict[int, PartName]:
        service, names = split_service_id(owner)[1], dict[int, PartName]()
        for number, records in self.records(connection, service, changed).items():
            listed, revoked = divided(records)
            admissions(connection, service, listed)
            check_revoked(connection, owner, revoked)
            names[number] = PartName(changed[number], part_digest(owner, records))
        return names


def divided(records: Iterable[KeyRecord]) -> tuple[list[KeyRecord], list[KeyRecord]]:
    """The records of keys that a set lists in full, and of those that it lists as revoked."""
    found: tuple[list[KeyRecord], list[KeyRecord]] = [], []
    for record in records:
        found[record.revoked_at is not None].append(record)
    return found


def check_revoked(connection: Connection, owner: str, records: Sequence[KeyRecord]) -> None:
    """Passes records of revoked keys of the service with id ``owner`` that say what the entries say which revoked them.
    Raises LedgerContradicted.

    The keys themselves are not parsed, since a set lists only kids: a revocation may hit all keys of a service.
    """
    seqs = [record.revoked_seq for record in records if record.revoked_seq is not None]
    said = ledger.revocations(connection, seqs)
    kids = {record.revoked_seq: (make_kid(owner, record.thumbprint), record.revoked_at) for record in records}
    if said != kids:
        raise LedgerContradicted(f"the rows of {owner}'s revoked keys differ from their entries in the ledger")


def admissions(connection: Connection, service: str, records: Sequence[KeyRecord]) -> dict[int, Entry]:
    """The entries that admitted these keys, by their numbers. Raises LedgerContradicted where a record differs from the
    entries: an altered row gets no signature."""
    admitted = ledger.read_some(connection, [record.admitted_seq for record in records])
    ended = ledger.endings(connection, [entry.kid for entry in admitted if entry.kid is not None])
    if keys_of([*admitted, *ended]) != {record.thumbprint: record for record in records}:
        raise LedgerContradicted(f"the rows of {service}'s keys differ from their entries in the ledger")
    return {entry.seq: entry for entry in admitted}


def _last_changes(connection: Connection, service: str, after: int) -> dict[int, int]:
    """The last entry after ``after`` that admitted or ended a key of each part, by the part's number."""
    ended = ((split_kid(kid)[1], seq) for kid, seq in ledger.ended_after(connection, service, after))
    return _latest([*keys.admitted_after(connection, service, after), *ended])


def _latest(changes: Iterable[tuple[str, int]]) -> dict[int, int]:
    found = dict[int, int]()
    for thumbprint, seq in changes:
        number = part_of(thumbprint)
        found[number] = max(seq, found.get(number, 0))
    return found
