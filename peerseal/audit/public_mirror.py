"""Mirrors everything that a registry publishes, as files under the registry's own paths.

Each document is checked as a client checks it before it is written; clients check it again and need no trust in the
mirror. One update writes in this order, so that a reader never finds a list without the documents that it speaks of::

    the ledger (bundles, tiles, checkpoint) → the root's document → the cosigned checkpoint → documents
    → lists of current services → changes

The parts of a large key set are fetched before it is written, and all are put in place together: a client that reads in
between refuses what does not fit, and asks again.

Another mirror may be the source.
"""

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from peerseal.audit.ledger_reader import LedgerReader
from peerseal.audit.mirror import LedgerMirror
from peerseal.audit.public_files import PublicFiles
from peerseal.audit.waiting_peers import SignedList
from peerseal.errors import ConfigurationError, DocumentRefused, FetchError, MalformedToken, TrustUnavailable
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.current import CurrentServices, block_of
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.federation import FederationDocument
from peerseal.protocol.documents.frame import UnverifiedDocument
from peerseal.protocol.documents.key_set import KeySetDocument, KeySetPart, PartName, part_path
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH, RegistryKeys, read_registry_keys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.ledger.checkpoint import COSIGNED_PATH
from peerseal.protocol.ledger.entries import KEY_ADMITTED, Entry
from peerseal.protocol.names import registry_id, split_kid, split_service_id
from peerseal.protocol.tokens.claims import time_claim
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.fetch import Fetcher, content, no_larger_than
from peerseal.trust.awake import AwakePeriods
from peerseal.trust.changes import RECENT, ChangesFollower
from peerseal.trust.disk.document_cache import NoCopies
from peerseal.trust.documents import D, DocumentReader, Question, check_age, text_of
from peerseal.trust.key_set_parts import check_part

log = logging.getLogger("peerseal.mirror")

LISTS_EVERY: Final = 60.0
"""Seconds after which the lists of current services are fetched again."""
RENEW_AFTER: Final = 12 * 3600.0
"""Seconds after which an unchanged document is fetched again: its registry has signed it again by then."""
_AT_ONCE: Final = 4
"""Documents that are fetched at once."""
_HELD_AFTER: Final = 0.5
"""Seconds after which an answer without a change shows that the registry held the question."""
_SHORTEST_ROUND: Final = 0.1
"""Seconds between two updates, at least: the first of several changes is told at once, the others together."""

AboutService = KeySetDocument | PolicyDocument | KeyStatement | DomainDocument | FederationDocument


class _Wanted(NamedTuple):
    """A document about a service that is to be at a path: its kind, its subject, and the entry that it must cover."""

    kind: type[AboutService]
    path: str
    subject: str
    covers: int
    service_id: str


class _Kept(NamedTuple):
    """What is at a path: the entries that the document covers, and when it was signed."""

    covers: int
    signed_at: float


@dataclass(frozen=True, slots=True)
class MirrorUpdate:
    """What one update found and did: entries of the ledger, services, documents that were written, and documents that
    could not be had."""

    entries: int
    services: int
    written: int
    failed: int


class PublicMirror:
    """The mirror of a registry in a folder. The statement of each key that was admitted in the last ``statements_for``
    seconds is among the documents, none for 0: events are verified by them. ``newest`` is the list of changes up to
    which the mirror is."""

    def __init__(
        self,
        folder: Path,
        fetcher: Fetcher,
        pin: str | None,
        *,
        statements_for: float = math.inf,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files = PublicFiles(folder)
        self._fetcher = fetcher
        self._pin = pin
        self._statements_for = statements_for
        self._clock = clock
        self._ledger, self._ledger_reader = LedgerMirror(folder, self._see), LedgerReader(fetcher, pin, clock)
        self._admitted: dict[str, dict[str, int]] = defaultdict(dict)  # by service id: kids, and when
        self._root: RegistryKeys | None = None
        self._begin()

    def _begin(self) -> None:
        """Know nothing of the documents and their history: at the start, and after the ledger was given up."""
        limits, pin, clock = TrustLimits(), self._pin, self._clock
        self._losses = self._ledger.losses
        self._max_age = limits.offline_limit
        self._reader = DocumentReader(
            self._fetcher, pin=pin, limits=limits, clock=clock, cache_dir=None, copies=NoCopies(), for_use=False
        )
        self._changed: dict[str, int] = {}  # by service id: the entry that last changed it
        self._blocks: set[int] = set()  # those with services
        self._kept: dict[str, _Kept] = {}  # by path
        self._parts: dict[str, str] = {}  # by path: the digest of the part there
        self._failed = set[str]()  # the services of which documents could not be had
        self._listed_at = -LISTS_EVERY
        self._follower = ChangesFollower(self._reader, None, AwakePeriods(limits), limits, clock, nullcontext())
        self._told: SignedList | None = None  # the list that ended a wait, until an update has used it
        self._recent_until = 0  # the last entry of the list of recent changes
        self.newest: SignedList | None = None

    def update(self) -> MirrorUpdate:
        """Fetch what is new. A document that cannot be had is left as it is, and fetched with the next update.

        Raises FetchError or TrustUnavailable where the registry does not answer, DocumentRefused where its ledger
        contradicts the mirror, ConfigurationError where the folder cannot be written.
        """
        try:
            return self._update()
        except OSError as error:
            raise ConfigurationError(f"{self._files.path}: {error.strerror}") from error

    def _update(self) -> MirrorUpdate:
        entries = self._ledger.update(self._ledger_reader)
        if self._ledger.losses != self._losses:
            self._begin()
        try:
            return self._update_documents(entries)
        except DocumentRefused as error:
            if error.code != "document_inconsistent":
                raise
            # a proof that is damaged on the way looks the same: the checkpoints decide, with the next update
            raise FetchError(f"a document contradicts the ledger: {error}") from error

    def _update_documents(self, entries: int) -> MirrorUpdate:
        self._write_root()
        self._write_cosigned()
        domain = self._reader.registry_keys().subject
        try:
            recent, recent_jws = self._fetched(Changes, RECENT, domain)
        except DocumentRefused as error:
            if error.code != "document_expired":
                raise
            with suppress(DocumentRefused, FetchError, TrustUnavailable):  # peers believe documents for longer
                self._copy(self._lists(None, entries, domain), set())
            raise self._not_updated(error) from error
        told, self._told = self._told or SignedList(recent, recent_jws), None
        lists = self._lists(recent, entries, domain)
        done = self._copy(lists, self._note(recent.last_changes) | self._note(told.changes.last_changes))
        self._put(RECENT, recent_jws)
        self._recent_until = recent.seq
        if self.newest is None or told.changes.seq >= self.newest.changes.seq:
            self.newest = told
        return MirrorUpdate(entries, len(self._changed), done.count(True), done.count(False))

    def _copy(self, lists: Sequence[tuple[str, str]], changed: set[str]) -> list[bool | None]:
        """Fetch and write the documents about the changed services and the lists; with lists, all documents that are
        due. Returns the results of `_write`."""
        self._failed |= changed  # until they are written: the disk may be full
        wanted = [one for name in (self._changed if lists else self._failed) for one in self._documents(name)]
        due = [one for one in wanted if self._is_due(one)]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            done = list(threads.map(self._write, due))
        self._failed = {one.service_id for one, written in zip(due, done, strict=True) if written is False}
        for path, jws in lists:
            self._put(path, jws)
        self._listed_at = self._clock() if lists else self._listed_at
        return done

    def _not_updated(self, error: DocumentRefused) -> DocumentRefused:
        """The error with the time since which the source has not been updated, as the source itself claims."""
        try:
            with no_larger_than(Changes.MAX_SIZE):
                answer = self._fetcher.call("GET", RECENT)
            claims = UnverifiedDocument.parse(Changes, text_of(answer, Changes)).payload()
            since = datetime.fromtimestamp(time_claim(claims, "iat"), UTC)
        except (DocumentRefused, FetchError, MalformedToken):
            return error
        detail = f"the mirror upstream has not been updated since {since:%Y-%m-%d %H:%M:%S}Z"
        found = DocumentRefused(error.code, f"{detail}: does it run, and is no clock wrong?")
        found.by_mirror = error.by_mirror
        return found

    def wait(self, interval: float, ended: threading.Event) -> None:
        """Wait until an update is due: the registry, asked by a long poll, tells of a change; where it holds no
        question, or does not answer, ``interval`` seconds pass. Returns early where ``ended`` is set."""
        began, pause = time.monotonic(), interval
        if self.newest is not None and not ended.is_set():
            since = self.newest.changes.seq
            complete = self._recent_until >= since and not self._failed  # that list may be a second old
            seconds = TrustLimits().wait if complete else 1.0
            try:
                *_, received = self._follower.wait(since, seconds, ended)
            except (DocumentRefused, FetchError, TrustUnavailable) as error:
                log.info("cannot follow the registry's changes: %s", error)  # the next update says why
            else:
                self._told = SignedList(received.changes, received.signed.jws)
                held = received.changes.seq > since or time.monotonic() - began >= _HELD_AFTER
                pause = _SHORTEST_ROUND if held else interval
        ended.wait(max(0.0, pause - (time.monotonic() - began)))

    def _note(self, last_changes: Mapping[str, int]) -> set[str]:
        """Note the entries that last changed services; returns the services of which there are newer entries."""
        newer = {name: seq for name, seq in last_changes.items() if seq > self._changed.get(name, 0)}
        self._changed |= newer
        return set(newer)

    def _see(self, entry: Entry) -> None:
        """Note the keys of services, as the ledger admits them."""
        if entry.type == KEY_ADMITTED and entry.kid is not None:
            self._admitted[split_kid(entry.kid)[0]][entry.kid] = entry.time

    def _write_root(self) -> None:
        def read(body: bytes) -> RegistryKeys:
            found = read_registry_keys(body.decode("ascii", "replace"), pin=self._pin, now=self._clock())
            if self._root is not None and found.version < self._root.version:
                raise DocumentRefused("document_rolled_back", f"version {found.version} after {self._root.version}")
            return found

        with no_larger_than(RegistryKeys.MAX_SIZE):
            found = self._fetcher.ask(REGISTRY_KEYS_PATH, lambda answer: (content(answer), read(content(answer))))
        if found is not None and found[1] != self._root:
            self._files.put(REGISTRY_KEYS_PATH, found[0])
            self._root, self._pin = found[1], found[1].root.thumbprint
            self._reader.load_registry_keys(at_once=True)

    def _write_cosigned(self) -> None:
        """Write the newest checkpoint that the root's witnesses have cosigned, if the root names any. Without one the
        mirror goes on: its clients ask the registry."""
        try:
            note = self._reader.witnessed.fetched(self._reader.registry_keys())
        except (DocumentRefused, FetchError) as error:
            log.info("no cosigned checkpoint can be had: %s", error)
            return
        if note is not None:
            self._files.put(COSIGNED_PATH, note.encode("utf-8"))

    def _lists(self, recent: Changes | None, entries: int, domain: str) -> Sequence[tuple[str, str]]:
        """The lists of current services by path, where they are due: after a while, and where the recent changes do not
        reach back to the last update, or there are none."""
        now = self._clock()
        known = max(self._changed.values(), default=0)
        reaches_back = recent.since <= known if recent is not None else bool(known)
        if 0 <= now - self._listed_at < LISTS_EVERY and reaches_back:
            return ()
        newest, found = block_of(max(1, entries)), list[tuple[str, str]]()
        first = block_of(known) if known else 0  # an earlier block without services never gets one
        for block in sorted(self._blocks | set(range(first, newest + 1))):
            path = f"/v1/current/{block}.jwt"
            listed, jws = self._fetched(CurrentServices, path, domain, check=partial(self._check_list, block))
            found.append((path, jws))
            if listed.services:
                self._blocks.add(block)
            self._note(listed.services)
        return found

    def _check_list(self, block: int, listed: CurrentServices) -> None:
        if listed.block != block:
            raise DocumentRefused("document_wrong_subject", f"the list of block {listed.block}, not of {block}")
        check_age(listed, self._max_age, self._clock())

    def _documents(self, service_id: str) -> Iterator[_Wanted]:
        """The documents about a service."""
        (domain, name), seq = split_service_id(service_id), self._changed[service_id]
        if service_id == registry_id(domain):
            yield _Wanted(DomainDocument, "/v1/domain.jwt", domain, seq, service_id)
            yield _Wanted(FederationDocument, "/v1/federation.jwt", domain, seq, service_id)
            return
        base = f"/v1/services/{name}"
        yield _Wanted(KeySetDocument, f"{base}/jwks.jwt", service_id, seq, service_id)
        yield _Wanted(PolicyDocument, f"{base}/policy.jwt", service_id, seq, service_id)
        for kid in self._kids(service_id):
            yield _Wanted(KeyStatement, _statement_path(kid), service_id, seq, service_id)

    def _kids(self, service_id: str) -> Sequence[str]:
        """The keys of a service whose statements are kept. Statements about earlier ones are removed."""
        admitted, kept_for = self._admitted[service_id], self._statements_for
        first = self._clock() - kept_for if kept_for else math.inf
        for kid in [kid for kid, at in admitted.items() if at < first]:
            self._files.remove(_statement_path(kid))
            self._kept.pop(_statement_path(kid), None)
            del admitted[kid]
        return sorted(admitted)

    def _is_due(self, wanted: _Wanted) -> bool:
        kept = self._kept.get(wanted.path) or self._read_kept(wanted)
        return kept is None or kept.covers < wanted.covers or self._clock() - kept.signed_at >= RENEW_AFTER

    def _read_kept(self, wanted: _Wanted) -> _Kept | None:
        """What an earlier process wrote. It is not checked: a client checks it."""
        try:
            jws = self._files.get(wanted.path).decode("ascii", "replace")
            claims = UnverifiedDocument.parse(wanted.kind, jws).payload()
            self._kept[wanted.path] = _Kept(int(claims["head"]), float(claims["iat"]))
        except (FetchError, DocumentRefused, KeyError, ValueError, TypeError):
            return None
        return self._kept[wanted.path]

    def _write(self, wanted: _Wanted) -> bool | None:
        """Fetch and write a document: True where it was written, None where the registry shows none, False where it
        cannot be had now."""
        try:
            document, jws = self._fetched(wanted.kind, wanted.path, wanted.subject, wanted.covers)
            parts = self._fetched_parts(document) if isinstance(document, KeySetDocument) else ()
        except FetchError as error:
            restricted = wanted.kind is PolicyDocument and error.http_status in (401, 403)
            if restricted:
                self._files.remove(wanted.path)
            elif error.http_status != 404 or wanted.path in self._kept:  # a service without keys has a policy alone
                log.warning("%s cannot be had: %s", wanted.path, error)
                return False
            return None
        except (DocumentRefused, TrustUnavailable) as error:
            log.warning("%s is refused (%s): %s", wanted.path, error.code, error)
            return False
        for path, part, part_jws in parts:
            self._put(path, part_jws)
            self._kept[path], self._parts[path] = _Kept(part.head, part.issued_at), part.digest
        self._put(wanted.path, jws)
        self._kept[wanted.path] = _Kept(document.head, document.issued_at)
        return True

    def _fetched_parts(self, document: KeySetDocument) -> Sequence[tuple[str, KeySetPart, str]]:
        """The parts that the set names, where they changed or are due to be signed again: path, part, and as signed.
        Raises as `_fetched`."""
        service, found = split_service_id(document.subject)[1], list[tuple[str, KeySetPart, str]]()
        for number, name in enumerate(document.parts):
            path = part_path(service, number)
            if name is not None and self._is_part_due(path, name):
                check = partial(check_part, number=number, name=name)
                found.append((path, *self._fetched(KeySetPart, path, document.subject, name.seq, check)))
        return found

    def _is_part_due(self, path: str, name: PartName) -> bool:
        kept = self._kept.get(path)
        return kept is None or self._parts[path] != name.digest or self._clock() - kept.signed_at >= RENEW_AFTER

    def _fetched(
        self,
        kind: type[D],
        path: str,
        subject: str,
        covers: int = 0,
        check: Callable[[D], None] | None = None,
    ) -> tuple[D, str]:
        fetched = self._reader.fetch_whole(Question(kind, path, subject, covers, check=check))
        return fetched.document, fetched.jws

    def _put(self, path: str, jws: str) -> None:
        self._files.put(path, jws.encode("ascii"))


def _statement_path(kid: str) -> str:
    owner, thumbprint = split_kid(kid)
    return f"/v1/services/{split_service_id(owner)[1]}/keys/{thumbprint}.jwt"
