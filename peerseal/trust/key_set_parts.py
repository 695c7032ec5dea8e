"""The parts of large key sets (`peerseal.protocol.documents.key_set`): fetched, checked, and copied to disk.

The signed set alone says what is true now. A part is believed exactly while its content has the digest that the
believed set names, so a part needs no time of its own, and a mirror gains nothing with an older one.
"""

import logging
from collections.abc import Callable

from peerseal.errors import DocumentRefused, FetchError, TrustUnavailable
from peerseal.protocol.documents.frame import DOCUMENT_LIFETIME
from peerseal.protocol.documents.key_set import KeySetDocument, KeySetPart, PartName, part_path
from peerseal.protocol.names import split_service_id
from peerseal.runtime.bounded import BoundedDict
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.deadline import no_longer_than
from peerseal.trust.beliefs import KnownPart, KnownService
from peerseal.trust.disk.document_cache import CopyFolder
from peerseal.trust.documents import DocumentReader, Question

log = logging.getLogger("peerseal.trust")

_LONGEST_OUTAGE = DOCUMENT_LIFETIME / 8
"""Seconds before its end in which a part is read again, at most: less than a registry takes to sign it again."""
_LONGEST = 30.0
"""Seconds for all parts that a renewal reads, since other services wait meanwhile. The next renewal goes on from
there."""
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


class PartReader:
    """Reads parts from disk, or from the registry. Safe to use from threads, and before and after a fork."""

    def __init__(
        self, reader: DocumentReader, copies: CopyFolder, limits: TrustLimits, clock: Callable[[], float]
    ) -> None:
        self._reader = reader
        self._copies = copies
        self._limits = limits
        self._clock = clock
        self._read = BoundedDict[tuple[int, str, int], KnownPart](_MOST_READ)  # by generation, service and number
        self._missed_until = BoundedDict[tuple[str, str], float](_MISSED)  # by service id and digest

    def renewed(self, document: KeySetDocument, known: KnownService | None) -> dict[int, KnownPart]:
        """The parts that are to be held after that set: those that were held, and after a set without parts those of
        its keys. A part that did not change is kept. Raises as `part` does."""
        if known is None or not document.parts:
            return {}
        named = {number: name for number in known.needed_parts() if (name := document.parts[number]) is not None}
        with no_longer_than(_LONGEST):
            return {
                number: self._kept(known.held.get(number), name) or self.part(document.subject, number, name)
                for number, name in named.items()
            }

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
