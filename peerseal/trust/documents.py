"""Signed documents of one registry, from its mirrors in turn, used only if all checks pass.

Trust starts with a pinned root key. The root signs which keys sign for the registry and its ledger; those sign the
documents and the checkpoint in each. When an answer fails a check, the next mirror is asked.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from peerseal.errors import AnswerTooLarge, DocumentRefused, FetchError, PeersealError, TrustUnavailable
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.current import CurrentServices
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.federation import FederationDocument
from peerseal.protocol.documents.frame import Document, read_document
from peerseal.protocol.documents.key_set import KeySetDocument, KeySetPart
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH, RegistryKeys, read_registry_keys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.ledger.checkpoint import Checkpoint, verify_checkpoint
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.protocol.names import make_kid, registry_id
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.clocks import clock_offset, with_clocks
from peerseal.transport.deadline import held_in_time
from peerseal.transport.fetch import Answer, Fetcher, HungUp, content, entity_tag, no_larger_than, offers
from peerseal.trust.disk.document_cache import CopyFolder
from peerseal.trust.replaced_ledger import ReplacedLedgers
from peerseal.trust.seen_ledger import SeenLedger, check_admissions, check_federation
from peerseal.trust.witnessed import WitnessedLedger

log = logging.getLogger("peerseal.trust")

D = TypeVar(
    "D",
    bound=KeySetDocument
    | KeySetPart
    | KeyStatement
    | Changes
    | CurrentServices
    | PolicyDocument
    | DomainDocument
    | FederationDocument,
)
"""The kinds of document that carry a checkpoint of the ledger."""

T = TypeVar("T")

_NO_REGISTRY = "is PEERSEAL_REGISTRY_URL the base of a Peerseal registry's URLs, without /v1?"
_HINTS = {
    "document_malformed": _NO_REGISTRY,
    "document_wrong_type": _NO_REGISTRY,
    "document_wrong_root": "another registry answers at PEERSEAL_REGISTRY_URL, or PEERSEAL_REGISTRY_PIN or the join"
    " token is of another one",
}
"""What to look for where the root's document is refused with that code."""
_EXPIRED = "they have expired"
_ROOT_COPY = "root.jwt"
_NAMES: Mapping[type, str] = {
    KeySetDocument: "key_set",
    KeySetPart: "key_set_part",
    KeyStatement: "key_statement",
    Changes: "changes",
    CurrentServices: "current_services",
    PolicyDocument: "policy",
    DomainDocument: "domain",
    FederationDocument: "federation",
}


@dataclass(frozen=True, slots=True)
class Question(Generic[D]):
    """One question to the registry: for the document of that ``kind`` about ``subject``, at that ``path``.

    It must cover ``covers`` entries of the ledger. ``etag`` is that of the document that is held already.
    ``headers`` gives the headers of a call to a path. ``check`` is one more check, which raises DocumentRefused.
    The registry may keep the question for ``wait`` seconds; ``within`` is a context for the checks, which is
    entered when the registry has answered. ``witnessed`` says that witnesses must have cosigned it, if any are asked
    for.
    """

    kind: type[D]
    path: str
    subject: str
    covers: int = 0
    etag: str | None = None
    headers: Callable[[str], Mapping[str, str]] | None = None
    check: Callable[[D], None] | None = None
    wait: float = 0.0
    within: AbstractContextManager[object] = field(default_factory=nullcontext)
    witnessed: bool = True


@dataclass(frozen=True, slots=True)
class Fetched(Generic[D]):
    """A document as the registry sent it, the ``jws`` that signs it, its ETag, and the generation of the reader that
    read it."""

    document: D
    jws: str = field(repr=False)
    etag: str | None
    generation: int


class DocumentReader:
    """Reads the documents of the registry whose root key has the thumbprint ``pin``. ``cache_dir`` holds the newest
    checkpoint, ``copies`` the documents. ``quorum`` is this client's own; a reader that only passes documents on is not
    ``for_use``, and needs no witnesses. Safe to use from threads, and before and after a fork.

    ``fetches`` counts the calls made for documents, by kind, and ``failed`` those that failed. ``generation`` rises
    when the root drops a signing key, or declares another ledger. ``outdated`` says
    that the root's document is known to have changed. With ``hints`` errors name the settings that may be wrong.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        pin: str | None,
        limits: TrustLimits,
        clock: Callable[[], float],
        cache_dir: Path | None,
        copies: CopyFolder,
        quorum: Quorum | None = None,
        for_use: bool = True,
    ) -> None:
        self.fetcher = fetcher
        self.copies = copies
        self.fetches: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.clock_offset: float | None = None
        self.generation = 0
        self.outdated = False
        self.hints = True
        self._pin = pin
        self._for_use = for_use
        self._limits = limits
        self._clock = clock
        self._root: RegistryKeys | None = None
        self._root_loaded_at = 0.0
        self._root_cooldown_until = 0.0
        self._root_failure = ""
        self._ledger = SeenLedger(lambda: self.fetcher, cache_dir, clock)
        self.replaced_ledgers = ReplacedLedgers(
            lambda: self.fetcher,
            self._ledger,
            copies,
            lambda kind, jws: self._read_with(self.registry_keys(), kind, jws)[0],
            clock=clock,
            pause=limits.cooldown,
        )
        self.witnessed = WitnessedLedger(
            lambda: self.fetcher, self._ledger, copies, quorum, self.counting, limits=limits, clock=clock
        )
        self._ledger_begins = 0
        self._lock = threading.Lock()
        in_each_child(self._after_fork)

    # ---- the root's document

    def registry_keys_in_memory(self) -> RegistryKeys | None:
        """The root's document, where memory has it and it has not expired."""
        root = self._root
        return root if root is not None and self._clock() < root.expires_at else None

    def registry_keys(self) -> RegistryKeys:
        """The root's document. Raises TrustUnavailable."""
        if self._root is None:
            self._take_newer_copy_of_root(at_once=False)
        return self.registry_keys_in_memory() or self.load_registry_keys()

    def registry_keys_due_in(self) -> float:
        """Seconds until the root's document is to be fetched again; 0 or less where it is to be now."""
        return 0.0 if self.outdated else self._root_loaded_at + self._limits.refresh_interval - self._clock()

    def load_registry_keys(self, *, at_once: bool = False) -> RegistryKeys:
        """Fetch the root's document: no second time in a cooldown, unless ``at_once``. Raises TrustUnavailable."""
        with held_in_time(self._lock, "the registry's keys"):
            return self._load_registry_keys(at_once)

    def note(self, changes: Changes) -> None:
        """Load the root's document where the list says that it changed: the list is not shown again."""
        if changes.reset or registry_id(changes.subject) in changes.services:
            self.outdated = True  # until it is loaded
            try:
                self.load_registry_keys(at_once=True)
            except TrustUnavailable as error:
                log.warning("cannot renew the registry's keys: %s", error)

    def _load_registry_keys(self, at_once: bool) -> RegistryKeys:
        with self.copies.locked(_ROOT_COPY):
            now, known = self._clock(), self.registry_keys_in_memory()
            if now < self._root_cooldown_until and not at_once:
                if known is not None:
                    return known
                failure = f"the last fetch failed, and the next is due soon: {self._root_failure}"
                raise TrustUnavailable(f"the registry's keys: {failure}", retry_after=1)
            if self._take_newer_copy_of_root(at_once) and (known := self.registry_keys_in_memory()) is not None:
                return known
            self._root_cooldown_until = now + (1.0 if self._root is None else self._limits.cooldown)
            try:
                with self.counting("registry_keys"), no_larger_than(RegistryKeys.MAX_SIZE):
                    found = self.fetcher.ask(REGISTRY_KEYS_PATH, self._read_newer_root)
            except (FetchError, DocumentRefused) as error:
                self._root_failure = f"{error}{_remedy(error)}" if self.hints else str(error)
                raise TrustUnavailable(f"the registry's keys: {self._root_failure}", retry_after=1) from error
            self._root_loaded_at, self._root_cooldown_until = now, now + self._limits.cooldown
            self.outdated, self._root_failure = False, _EXPIRED
            if found is not None:
                self.copies.keep(_ROOT_COPY, found[1], found[0].version, now)
                return self._take_over(found[0])
            self.copies.confirm(_ROOT_COPY, now)
            if known is not None:
                return known
            raise TrustUnavailable(f"the registry's keys: {_EXPIRED}", retry_after=1)

    def _take_newer_copy_of_root(self, at_once: bool) -> bool:
        """Take over a copy that another process has fetched since, or one from before a restart; return whether there
        was one."""
        fetched_at = self.copies.fetched_at(_ROOT_COPY)
        if at_once or self.outdated or fetched_at <= self._root_loaded_at:
            return False
        copy = self.copies.read(_ROOT_COPY)
        if copy is None:
            return False
        try:
            found = self.newer_root(copy.jws)
        except DocumentRefused as error:
            log.warning("the copy of the registry's keys is refused (%s): %s", error.code, error)
            return False
        if found is not None:
            self._take_over(found)
        self._root_loaded_at = fetched_at
        return True

    def _read_newer_root(self, answer: Answer) -> tuple[RegistryKeys, str] | None:
        """The root's document in an answer, and as it was signed. None for the one that is held: then the next mirror
        is asked, since a mirror that hides a newer one must not keep a dropped key alive."""
        self.clock_offset = clock_offset(answer, self._clock())
        try:
            jws = text_of(answer, RegistryKeys)
            found = self.newer_root(jws)
        except FetchError as error:
            raise (_with_url(error) if self.hints else error) from error
        except DocumentRefused as error:
            clear = with_clocks(error, answer, self._clock())
            raise (_with_hint(clear) if self.hints else clear) from error
        return None if found is None else (found, jws)

    def newer_root(self, jws: str) -> RegistryKeys | None:
        """The root's document, checked, if it is newer than the one in memory; None for that one. Raises
        DocumentRefused."""
        found, root = read_registry_keys(jws, pin=self._pin, now=self._clock()), self._root
        if root is None:
            if found.version < self.copies.read_seen(_ROOT_COPY):
                raise DocumentRefused(
                    "document_rolled_back", f"version {found.version}, this host has seen a newer one"
                )
            return found
        if found.root.thumbprint != root.root.thumbprint:
            raise DocumentRefused("document_wrong_root", f"{found.root.thumbprint} instead of {root.root.thumbprint}")
        if found.subject != root.subject:
            raise DocumentRefused("document_wrong_subject", f"the registry of {found.subject}, not of {root.subject}")
        if found.version < root.version:
            raise DocumentRefused("document_rolled_back", f"version {found.version} after {root.version}")
        return found if (found.version, found.expires_at) > (root.version, root.expires_at) else None

    def _take_over(self, found: RegistryKeys) -> RegistryKeys:
        before, self._root = self._root, found
        if before is not None:
            named = {key.thumbprint for key in found.signing_keys}
            if not {key.thumbprint for key in before.signing_keys} <= named:
                self.generation += 1
            self._ledger.forget_dropped_keys(found)
        return found

    # ---- another ledger

    def is_of_lost_ledger(self, generation: int) -> bool:
        """Whether what was read in that ``generation`` belongs to a ledger that the root has replaced since."""
        return generation < self._ledger_begins

    def retrying_on_new_ledger(self, fetch: Callable[[], T]) -> T:
        """The result of ``fetch``, called once more where it failed because the registry has another ledger, which the
        root declared. Raises what it raises."""
        try:
            return fetch()
        except (DocumentRefused, FetchError) as error:
            if not self.adopt_new_ledger_after(error):
                raise
        return fetch()

    def adopt_new_ledger_after(self, error: DocumentRefused | FetchError) -> bool:
        """Adopt another ledger, if the root declared one and this explains the error; return whether it did. Then
        ``generation`` rises, and the caches are told to fetch again."""
        root = self._root
        if root is None or not self.replaced_ledgers.adopt_after(error, root):
            return False
        self.generation += 1
        self._ledger_begins = self.generation
        for cache in self.replaced_ledgers.caches:
            cache.on_new_ledger()
        return True

    # ---- documents that its keys sign

    @property
    def ledger(self) -> SeenLedger:
        """The history that was seen."""
        return self._ledger

    def signed_registry_keys(self) -> str:
        """The root's document as it is signed, fetched now. Raises FetchError, DocumentRefused or TrustUnavailable."""
        root = self.registry_keys()

        def read(answer: Answer) -> str:
            jws = text_of(answer, RegistryKeys)
            read_registry_keys(jws, pin=root.root.thumbprint, now=self._clock())
            return jws

        with no_larger_than(RegistryKeys.MAX_SIZE):
            return self.fetcher.ask(REGISTRY_KEYS_PATH, read) or ""

    def seen(self) -> int:
        """Entries of the newest checkpoint that was seen, before a restart too; 0 where none was. Each later document
        must cover as many. Raises TrustUnavailable, FetchError or DocumentRefused."""
        return self._ledger.size(self.registry_keys())

    def fetch(self, question: Question[D]) -> Fetched[D] | None:
        """The document of the first mirror whose answer passes every check; None for a 304: the document that is held
        is the newest. Raises FetchError (with ``http_status`` 404 where there is no such document), DocumentRefused or
        TrustUnavailable."""
        path = path_covering(question.path, question.covers)
        headers = {} if question.headers is None else dict(question.headers(path))
        if question.etag is not None:
            headers["If-None-Match"] = question.etag

        with self.counting(_NAMES[question.kind]):
            most, wait = question.kind.MAX_SIZE, question.wait
            for offer in offers(self.fetcher, path, most=most, headers=headers, wait=wait):
                with offer as answer, question.within:
                    if answer.status == 304 and question.etag is not None:
                        return None
                    return self._fetched(question, answer)
        raise AssertionError("unreachable: where each answer is refused, `offers` raises")

    def _fetched(self, question: Question[D], answer: Answer) -> Fetched[D]:
        """The document in an answer, after all checks. Raises DocumentRefused, FetchError or TrustUnavailable."""
        jws = text_of(answer, question.kind)
        document, generation = self.checked(
            question.kind, jws, question.subject, at_least=question.covers, witnessed=question.witnessed
        )
        if question.check is not None:
            question.check(document)
        return Fetched(document, jws, entity_tag(answer), generation)

    def fetch_whole(self, question: Question[D]) -> Fetched[D]:
        """As `fetch`, for a question without an ETag: each answer has a document."""
        fetched = self.fetch(question)
        if fetched is None:
            raise AssertionError("unreachable: only a question with an ETag is answered without a document")
        return fetched

    @contextmanager
    def counting(self, what: str) -> Iterator[None]:
        """Counts the block as one fetch of a document of that kind. Neither a 404, which is an answer, nor a
        call that this process ended is a failure."""
        self.fetches[what] += 1
        try:
            yield
        except PeersealError as error:
            self.failed[what] += not isinstance(error, HungUp) and getattr(error, "http_status", None) != 404
            if isinstance(error, DocumentRefused):
                self.refused[error.code] += 1
            raise

    def read(
        self,
        kind: type[D],
        jws: str,
        subject: str | None = None,
        *,
        at_least: int = 0,
        from_disk: bool = False,
        witnessed: bool = True,
    ) -> D:
        """A document that the registry signed, about ``subject`` where one is given, covering ``at_least`` entries of
        the ledger, and with its place in it. The root's document is fetched again where the signer is unknown.
        ``from_disk`` says that it is a copy of this host, whose place in history was checked when it was fetched.
        ``witnessed`` is as of Question.

        Raises DocumentRefused, FetchError (no proof of consistency can be had) or TrustUnavailable.
        """
        return self.checked(kind, jws, subject, at_least=at_least, from_disk=from_disk, witnessed=witnessed)[0]

    def checked(
        self,
        kind: type[D],
        jws: str,
        subject: str | None = None,
        *,
        at_least: int = 0,
        from_disk: bool = False,
        witnessed: bool = True,
    ) -> tuple[D, int]:
        """As `read`, with the ``generation`` in which the document was read."""
        generation = self.generation  # before the root is: it may change meanwhile, and drop the signer
        root = self.registry_keys()
        try:
            document, checkpoint = self._read_with(root, kind, jws)
        except DocumentRefused as error:
            if error.code != "document_unknown_signer":
                raise
            self.load_registry_keys()
            generation = self.generation
            root = self.registry_keys()
            document, checkpoint = self._read_with(root, kind, jws)
        if subject is not None and document.subject != subject:
            raise DocumentRefused("document_wrong_subject", f"{document.subject} instead of {subject}")
        if checkpoint.size < at_least:
            raise DocumentRefused("document_rolled_back", f"covers {checkpoint.size} entries of {at_least}")
        if isinstance(document, KeySetDocument | KeySetPart | KeyStatement):
            check_admissions(document, checkpoint)
        elif isinstance(document, FederationDocument):
            check_federation(document, checkpoint)
        if from_disk:
            self._ledger.accept_copy(checkpoint, document.checkpoint, root)
        else:
            offered = (document.since, document.proof) if isinstance(document, Changes) else None
            self._ledger.follow(checkpoint, document.checkpoint, root, offered)
        believed: D = self.replaced_ledgers.endings.applied(document)
        if witnessed and self._for_use and self.witnessed.is_wanted(root):
            believed = self.witnessed.applied(believed, checkpoint, root)
        return believed, generation

    def _read_with(self, root: RegistryKeys, kind: type[D], jws: str) -> tuple[D, Checkpoint]:
        """The document and the checkpoint in it, both signed by keys that the root names. Raises DocumentRefused."""
        signers = {make_kid(root.issuer, key.thumbprint): key for key in root.signing_keys}
        document = read_document(kind, jws, signers, now=self._clock(), domain=root.subject)
        checkpoint = verify_checkpoint(document.checkpoint, root.subject, root.ledger_keys)
        head = document.seq if isinstance(document, Changes | CurrentServices) else document.head
        if checkpoint.size != head or document.seq > head:
            raise DocumentRefused("document_malformed", "the checkpoint is not of the entries that it covers")
        return document, checkpoint

    def _after_fork(self) -> None:
        """In a forked child: a new lock, and counts of its own."""
        self._lock = threading.Lock()
        self.fetches, self.failed = Counter(), Counter()


def check_age(document: Document, max_age: float, now: float) -> None:
    """Passes where it was signed less than ``max_age`` seconds ago. Raises DocumentRefused."""
    if now >= document.issued_at + max_age:
        raise DocumentRefused("document_stale", f"signed {now - document.issued_at:.0f} s ago")


def path_covering(path: str, entries: int) -> str:
    """The path of a document that covers so many entries, 0 for any number. The number is in the URL, so that no cache
    on the way answers with an older document."""
    if not entries:
        return path
    return f"{path}{'&' if '?' in path else '?'}seq={entries}"


def _remedy(error: FetchError | DocumentRefused) -> str:
    """What to look for where there was no answer at all."""
    silent = isinstance(error, FetchError) and error.http_status is None
    return "; is PEERSEAL_REGISTRY_URL right, and does the registry run?" if silent else ""


def _with_url(error: FetchError) -> FetchError:
    """The error with what to look for, where the URL has no document of the root."""
    return FetchError(f"{error}; {_NO_REGISTRY}", 404) if error.http_status == 404 else error


def _with_hint(error: DocumentRefused) -> DocumentRefused:
    """The error with what to look for, where an answer for the root's document shows that the URL or pin is wrong."""
    hint = _HINTS.get(error.code)
    return error if hint is None else DocumentRefused(error.code, f"{error.detail}; {hint}")


def text_of(answer: Answer, kind: type[Document]) -> str:
    """The body of a 200 as the compact JWS of a document of that kind. Raises FetchError."""
    body = content(answer)
    if len(body) > kind.MAX_SIZE:
        raise AnswerTooLarge(f"{len(body)} bytes, and a {kind.TYP} has {kind.MAX_SIZE} at most")
    try:
        return body.decode("ascii")
    except UnicodeDecodeError as error:
        raise FetchError("the registry's answer is not a JWS") from error
