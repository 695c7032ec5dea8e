"""What a client does when the registry has another ledger than the client remembers.

A registry may lose ledger entries for good that this client has seen. The client then refuses every answer until a
statement of the root key, which is pinned, says which entries were lost and where the ledger goes on
(`peerseal.protocol.documents.history_statement`). Then the client drops what it believed and fetches it again. A key
that it knew as revoked stays revoked, and one that ended stays ended: the entry that says so may be lost.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Protocol

from peerseal.errors import DocumentRefused, FetchError, MalformedToken
from peerseal.protocol.documents.history_statement import (
    MAX_HISTORY_BYTES,
    HistoryStatement,
    decode_statements,
    signed_histories,
)
from peerseal.protocol.documents.key_set import REVOKED, KeySetDocument, KeySetPart, ListedKey, RevokedKey
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.runtime.forks import in_each_child
from peerseal.transport.fetch import Answer, Fetcher, content, no_larger_than
from peerseal.trust.beliefs import REVOKED_FOR_GOOD
from peerseal.trust.disk.document_cache import CopyFolder
from peerseal.trust.seen_ledger import SeenLedger

log = logging.getLogger("peerseal.trust")

PATH: Final = "/v1/history"
_COPY: Final = "endings"
_MOST: Final = 50_000
"""Keys whose end is remembered; the oldest are forgotten."""


class LedgerCache(Protocol):
    """A cache of documents that belong to the ledger."""

    def on_new_ledger(self) -> None:
        """Drop pending entry numbers and retry times, which belong to the lost ledger. What the cache holds is fetched
        again at once."""

    def endings(self) -> Mapping[str, int]:
        """Until when the keys that it knows are good, by kid; `REVOKED_FOR_GOOD` for a revoked one."""


class ReplacedLedgers:
    """Adopts another ledger in place of the one that was seen (``ledger``), where the root says so.

    It asks for the root's statements at most once in ``pause`` seconds. ``caches`` and ``copies`` hold documents of
    the ledger; ``read_copy`` reads the copy of a key set or of a part. Safe to use from threads.
    """

    def __init__(
        self,
        fetcher: Callable[[], Fetcher],
        ledger: SeenLedger,
        copies: CopyFolder,
        read_copy: Callable[[type[KeySetDocument | KeySetPart], str], KeySetDocument | KeySetPart],
        *,
        clock: Callable[[], float],
        pause: float,
    ) -> None:
        self.caches: tuple[LedgerCache, ...] = ()
        self.endings = KeyEndings(copies)
        self._fetcher = fetcher
        self._ledger = ledger
        self._copies = copies
        self._read_copy = read_copy
        self._clock = clock
        self._pause = pause
        self._asked_at = float("-inf")
        self._renew_lock()
        in_each_child(self._renew_lock)

    def adopt_after(self, error: DocumentRefused | FetchError, root: RegistryKeys) -> bool:
        """Adopt another ledger, if the root declared one and this explains the error; return whether it did. Then the
        copies on disk are removed, and the ends of keys are kept."""
        statements = self._statements_after(error, root)
        try:
            return bool(statements) and self._ledger.adopt(statements, root, self._drop_lost_ledger)
        except (DocumentRefused, FetchError) as failure:
            log.warning("the registry does not show the ledger that the root declared (%s): %s", failure.code, failure)
            return False

    def _drop_lost_ledger(self) -> None:
        """Keep the ends of keys, and remove the copies. Called before the new head is written down: a process that is
        killed in between does this again."""
        self._keep_endings()
        self._copies.clear()

    def _keep_endings(self) -> None:
        """Remember the keys that ended, as the caches of this process and the copies on disk know them."""
        ended: dict[str, int] = {}
        for known in (self._copied_endings(), *(cache.endings() for cache in self.caches)):
            for kid, until in known.items():
                ended[kid] = min(until, ended.get(kid, until))
        now = self._clock()
        self.endings.add({kid: until for kid, until in ended.items() if until <= now})

    def _copied_endings(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        kinds: dict[str, type[KeySetDocument | KeySetPart]] = {"keys-": KeySetDocument, "part-": KeySetPart}
        for kind, name in ((kind, name) for begin, kind in kinds.items() for name in self._copies.names(begin)):
            copy = self._copies.read(name)
            with suppress(DocumentRefused):
                document = self._read_copy(kind, copy.jws if copy is not None else "")
                found |= {key.kid: key.active_until for key in document.keys}
                found |= {key.kid: REVOKED_FOR_GOOD for key in document.revoked}
        return found

    def explained_by(self, explains: Callable[[Sequence[str]], bool]) -> tuple[bool, Sequence[str]]:
        """Whether statements that the registry, or a mirror, serves now explain something, and those statements, as
        compact JWSs, not verified. All are asked: a mirror may be late. Raises FetchError or DocumentRefused where none
        does and the registry itself does not answer."""
        served = list[str]()

        def read(answer: Answer) -> bool:
            served[:] = statements_in(content(answer))
            if explains(served):
                return True
            raise DocumentRefused("document_inconsistent", "no statement of the root explains it")

        try:
            with no_larger_than(MAX_HISTORY_BYTES):
                return bool(self._fetcher().ask(PATH, read)), served
        except (FetchError, DocumentRefused) as error:
            absent = (
                error.http_status == 404 if isinstance(error, FetchError) else error.code == "document_inconsistent"
            )
            if error.by_mirror or not absent:
                raise
            return False, served

    def _statements_after(self, error: DocumentRefused | FetchError, root: RegistryKeys) -> list[HistoryStatement]:
        """The root's statements, if the error may come from another ledger and the pause is over."""
        if not _tells_of_another(error) or not self._asking.acquire(blocking=False):
            return []
        try:
            now = self._clock()
            if abs(now - self._asked_at) < self._pause:  # a clock that was set back must not stop the questions
                return []
            self._asked_at = now
            return self._read(self._fetched(), root)
        except (FetchError, DocumentRefused) as failure:
            if getattr(failure, "http_status", None) != 404:
                log.warning("the root's statements about a replaced ledger cannot be fetched: %s", failure)
            return []
        finally:
            self._asking.release()

    def _fetched(self) -> list[str]:
        def read(answer: Answer) -> list[str] | None:
            return statements_in(content(answer)) or None  # another mirror may know of one

        with no_larger_than(MAX_HISTORY_BYTES):
            return self._fetcher().ask(PATH, read) or []

    def _read(self, jws: Iterable[str], root: RegistryKeys) -> list[HistoryStatement]:
        def refused(error: DocumentRefused) -> None:
            log.warning("a statement about a new history is refused (%s): %s", error.code, error)

        now = self._clock()
        return list(signed_histories(jws, root.root, domain=root.subject, now=now, refused=refused).values())

    def _renew_lock(self) -> None:
        self._asking = threading.Lock()


def _tells_of_another(error: DocumentRefused | FetchError) -> bool:
    """Whether the registry may have another ledger than was seen: one that contradicts it, or is shorter."""
    if isinstance(error, DocumentRefused):
        return error.code in ("document_inconsistent", "document_rolled_back")
    return error.http_status == 503


class KeyEndings:
    """The ends (seconds since the epoch) of the keys that had ended in a lost ledger, by kid; `REVOKED_FOR_GOOD` for a
    key that was revoked in it. The processes of a host share them through its folder of copies, and restarts keep
    them."""

    def __init__(self, copies: CopyFolder) -> None:
        self._copies = copies
        self._until: dict[str, int] | None = None

    def add(self, until: Mapping[str, int]) -> None:
        """Remembers these as well."""
        if not until:
            return
        with self._copies.locked(_COPY):
            known = self._read() | self._known()
            for kid, end in until.items():
                known[kid] = min(end, known.get(kid, end))
            self._until = dict(list(known.items())[-_MOST:])
            self._copies.write(_COPY, canonical_json(self._until).decode("ascii"), 0.0)

    def applied(self, document: Any) -> Any:
        """The document, in which each key ends no later than the end that is remembered for it."""
        until = self._known()
        if not until:
            return document
        if isinstance(document, KeySetDocument | KeySetPart):
            return _capped(document, until)
        if isinstance(document, KeyStatement) and document.kid in until:
            end = until[document.kid]
            if end == REVOKED_FOR_GOOD:
                revoked_at = document.revoked_at or document.issued_at
                return replace(document, state=REVOKED, revoked_at=revoked_at)
            return replace(document, active_until=min(document.active_until, end))
        return document

    def _known(self) -> dict[str, int]:
        if self._until is None:
            self._until = self._read()
        return self._until

    def _read(self) -> dict[str, int]:
        copy = self._copies.read(_COPY)
        if copy is None:
            return {}
        try:
            members = strict_json_object(copy.jws)
        except MalformedToken:
            log.warning("the file of keys that a lost ledger had ended cannot be read, and is ignored")
            return {}
        return {kid: end for kid, end in members.items() if type(end) is int}


def statements_in(body: bytes) -> list[str]:
    """The compact JWSs in the answer of a registry. Raises DocumentRefused."""
    try:
        return decode_statements(body)
    except MalformedToken as error:
        raise DocumentRefused("document_malformed", f"the root's statements: {error}") from error


def _capped(document: KeySetDocument | KeySetPart, until: Mapping[str, int]) -> KeySetDocument | KeySetPart:
    keys, revoked = list[ListedKey](), list(document.revoked)
    for key in document.keys:
        end = until.get(key.kid, key.active_until)
        if end == REVOKED_FOR_GOOD:
            revoked.append(RevokedKey(key.kid, document.issued_at, key.admission.index))
        else:
            keys.append(replace(key, active_until=min(key.active_until, end)))
    return replace(document, keys=tuple(keys), revoked=tuple(revoked))
