"""The parts of large key sets (`peerseal.protocol.documents.key_set`): fetched, checked, and copied to disk.

The signed set alone says what is true now. A part is believed exactly while its content has the digest that the
believed set names, so a part needs no time of its own, and a mirror gains nothing with an older one.
"""

import logging
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from peerseal.errors import DocumentRefused, FetchError, PeersealError, TrustUnavailable
from peerseal.protocol.documents.frame import DOCUMENT_LIFETIME
from peerseal.protocol.documents.key_set import KeySetDocument, KeySetPart, PartName, part_of, part_path
from peerseal.protocol.names import split_kid, split_service_id
from peerseal.runtime.bounded import BoundedDict
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.deadline import no_longer_than, time_left
from peerseal.trust.beliefs import KnownPart, KnownService
from peerseal.trust.disk.document_cache import CopyFolder
from peerseal.trust.documents import DocumentReader, Question

log = logging.getLogger("peerseal.trust")

_LONGEST_OUTAGE = DOCUMENT_LIFETIME / 8
"""Seconds before its end in which a part is read again, at most: less than a registry takes to sign it again."""
_LONGEST = 30.0
"""Seconds for all parts that a renewal reads, since other services wait meanwhile. The next renewal goes on from
there."""
_MOST_FAILURES = 3
"""Parts that may fail in one renewal: a registry that is down or overloaded is not asked for all of them."""
_MOST_READ = 256
"""Parts that are remembered although no belief may have them yet: those of four services."""
_MISSED = 1_000
"""Failed parts that are remembered: each is fetched again only after a cooldown."""


class WrongPart(DocumentRefused):
    """A part that is not the one which the key set names. ``seq`` is the entry that last changed the part: it may be
    newer than the set."""

    def __init__(self, part: KeySetPart, says: str) -> None:
        super().__init__("document_wrong_part", f"part {part.part} of the keys of {part.subject}: {says}")
        self.seq = part.seq


@dataclass(frozen=True, slots=True)
class RenewedParts:
    """The parts that could be had after a newer set, by number. ``failure`` is the error of one that could not: then
    the set is not believed yet."""

    held: Mapping[int, KnownPart] = field(default_factory=dict)
    failure: PeersealError | None = None


@dataclass(slots=True)
class _Period:
    """A period in the use of a service's parts. It began at ``begin`` (seconds since the epoch). ``unasked`` has the
    numbers of the held parts whose keys nothing has asked for since then."""

    begin: float
    unasked: set[int]


class PartReader:
    """Reads parts from disk, or from the registry, and decides which are renewed. Safe to use from threads, and before
    and after a fork.

    A held part is renewed while its keys are asked for. To see that, `KeyShelf` leaves parts out of its look-up table
    at the beginning of each period, until a key of theirs is asked for: so it has no work at each question. A part that
    was left out for a whole period is dropped at the next change.
    """

    def __init__(
        self, reader: DocumentReader, copies: CopyFolder, limits: TrustLimits, clock: Callable[[], float]
    ) -> None:
        self._reader = reader
        self._copies = copies
        self._limits = limits
        self._clock = clock
        self._read = BoundedDict[tuple[int, str, int], KnownPart](_MOST_READ)  # by generation, service and number
        self._missed_until = BoundedDict[tuple[str, str], float](_MISSED)  # by service id and digest
        self._periods = dict[str, _Period]()  # by service id

    def renewed(self, document: KeySetDocument, known: KnownService | None) -> RenewedParts:
        """The parts that are to be held after that set: those that were held, but for unused ones, and after a set
        without parts those of its keys. A part that did not change is kept."""
        service_id, now = document.subject, self._clock()
        if known is None or not document.parts:
            self._periods.pop(service_id, None)
            return RenewedParts()
        period = self._periods.setdefault(service_id, _Period(now, set()))
        over = now - period.begin >= self._limits.unused_part
        needed = [number for number in known.needed_parts() if not (over and number in period.unasked)]
        named = {number: name for number in needed if (name := document.parts[number]) is not None}
        renewed = self._renewed(service_id, named, known.held)
        if over and renewed.failure is None:
            self._periods[service_id] = _Period(now, set(renewed.held))
        return renewed

    def _renewed(self, service_id: str, named: Mapping[int, PartName], before: Mapping[int, KnownPart]) -> RenewedParts:
        """As `renewed`, those of that name. The part that failed last comes last, so that it does not keep out others.
        Of the errors, `WrongPart` counts first: the set may be older than the part."""
        held, failures = dict[int, KnownPart](), list[PeersealError]()
        with no_longer_than(_LONGEST):
            for number in sorted(
                named, key=lambda number: self._missed_until.get((service_id, named[number].digest), 0)
            ):
                try:
                    kept = self._kept(before.get(number), named[number])
                    held[number] = kept or self.part(service_id, number, named[number])
                except (FetchError, DocumentRefused, TrustUnavailable) as error:
                    failures.append(error)
                    if len(failures) >= _MOST_FAILURES or not time_left():
                        break
        wrong = (error for error in failures if isinstance(error, WrongPart))
        return RenewedParts(held, next(wrong, next(iter(failures), None)))

    def note_question(self, kid: str) -> None:
        """Note that the key was asked for: its part is in use."""
        service_id, thumbprint = split_kid(kid)
        period = self._periods.get(service_id)
        if period is not None:
            period.unasked.discard(part_of(thumbprint))

    def unasked(self, service_id: str) -> Set[int]:
        """The numbers of the held parts whose keys nothing has asked for in this period."""
        period = self._periods.get(service_id)
        return period.unasked.copy() if period is not None else set()

    def _kept(self, before: KnownPart | None, name: PartName) -> KnownPart | None:
        """The part that was read before, where it need not be read again."""
        if before is None or before.digest != name.digest or self._ends_soon(before):
            return None
        return before

    def part(self, service_id: str, number: int, name: PartName) -> KnownPart:
        """The part of a service that its set names so, from disk or from the registry. A part that could not be had is
        looked for again only after a cooldown.

        Raises FetchError, DocumentRefused or TrustUnavailable.
        """
        place = self._reader.generation, service_id, number
        found = self._kept(self._read.get(place), name) or self._read_part(service_id, number, name)
        self._read[place] = found
        return found

    def _read_part(self, service_id: str, number: int, name: PartName) -> KnownPart:
        missed, now = (service_id, name.digest), self._clock()
        if now < self._missed_until.get(missed, 0.0):
            wait = int(self._limits.cooldown) + 1
            raise TrustUnavailable(f"part {number} of the keys of {service_id} could not be had", retry_after=wait)
        file = f"part-{number}-{split_service_id(service_id)[1]}.jwt"
        with self._copies.locked(file):
            found = self._copied(file, service_id, number, name)
            if found is None or self._ends_soon(found):
                try:
                    found = self._fetched(file, service_id, number, name)
                except (FetchError, DocumentRefused):
                    self._missed_until[missed] = now + self._limits.cooldown
                    raise
        return found

    def _copied(self, file: str, service_id: str, number: int, name: PartName) -> KnownPart | None:
        copy = self._copies.read(file)
        if copy is None:
            return None
        try:
            part = self._reader.read(KeySetPart, copy.jws, service_id, at_least=name.seq, from_disk=True)
            check_part(part, number, name)
        except (FetchError, DocumentRefused) as error:
            log.info("the copy %s is passed over (%s): %s", file, error.code, error)
            return None
        return KnownPart.of(part)

    def _fetched(self, file: str, service_id: str, number: int, name: PartName) -> KnownPart:
        path = part_path(split_service_id(service_id)[1], number)
        question = Question(KeySetPart, path, service_id, name.seq, check=lambda part: check_part(part, number, name))
        fetched = self._reader.fetch_whole(question)
        self._copies.write(file, fetched.jws, self._clock())
        return KnownPart.of(fetched.document)

    def _ends_soon(self, part: KnownPart) -> bool:
        """Whether its copy on disk would not last through an outage as long as the offline limit, or a few hours."""
        return self._clock() + min(self._limits.offline_limit, _LONGEST_OUTAGE) >= part.expires_at


def check_part(part: KeySetPart, number: int, name: PartName) -> None:
    """Passes the part with that number, if it says what the set names. Raises DocumentRefused."""
    if part.part != number:
        raise WrongPart(part, f"expected part {number}")
    if part.digest != name.digest:
        expected = f"{name.digest} as of entry {name.seq}"
        raise WrongPart(part, f"as of entry {part.seq} it has the digest {part.digest}, expected {expected}")
