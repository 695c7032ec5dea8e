"""Answers to public questions, kept as bytes: valid until a change commits on any worker or node."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, NoReturn, TypeVar

from peerseal.errors import PeersealError
from peerseal.protocol.encoding import b64url
from peerseal.protocol.names import check_service
from registry.domain.errors import Lagging, LedgerForked, NotFound, StorageUnavailable
from registry.services.authority.authority import AuthoritySource
from registry.services.bounded_cache import BoundedCache
from registry.settings import Limits
from registry.storage.revisions import Revisions

A = TypeVar("A", bound=tuple[str, ...])

JWT = "application/jwt"
JWK_SET = "application/jwk-set+json"
PEM = "application/x-pem-file"
NOTE = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class PublicAnswer:
    """The bytes of an answer, their strong ETag, when it was made, and the ledger entries that it covers. Everyone may
    read it; with ``readers`` only the services with these ids may."""

    body: bytes = field(repr=False)
    content_type: str
    etag: str
    seq: int
    head: int
    issued_at: int
    expires_at: int
    readers: frozenset[str] | None = None

    @classmethod
    def of(
        cls,
        body: bytes,
        content_type: str,
        seq: int,
        head: int,
        issued_at: int,
        expires_at: int,
        readers: frozenset[str] | None = None,
    ) -> "PublicAnswer":
        """With the ETag of the bytes: the same from each worker and node that makes the same bytes."""
        etag = f'"{b64url(hashlib.sha256(body).digest()[:16])}"'
        return cls(body, content_type, etag, seq, head, issued_at, expires_at, readers)


class _NotKept(PeersealError):
    """The answer would have to be made."""


class AnswerCache(Generic[A]):
    """Keeps answers by a tuple of names, of which the second is the service that the answer is about.

    An answer is served from memory while no node has changed the service and the answer is younger than
    ``resign_after``. While the database is down, lags, or holds another ledger than the signed one, answers in memory
    are served until they expire: their signed time shows their age.
    """

    def __init__(
        self,
        revisions: Revisions,
        authority: AuthoritySource,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._revisions = revisions
        self._authority = authority
        self._limits = limits
        self._clock = clock
        self._cache: BoundedCache[A, PublicAnswer] = BoundedCache(limits.documents_cached)
        self._issued: int | None = None
        authority.when_changed(self._cache.clear)

    def answer(
        self, name: A, at_least: int, make: Callable[[A, int], PublicAnswer], *, of_unknown: bool = False
    ) -> PublicAnswer:
        """The answer as of entry ``at_least`` or later. If none is kept, ``make`` makes one for the name and the
        current time. With ``of_unknown`` there is an answer, with ``seq`` 0, about a service that no entry names.

        Raises InvalidName, NotFound for a service that no entry names, Lagging where the ledger is shorter than
        ``at_least``, StorageUnavailable, LedgerContradicted.
        """
        if self._cache.get(name) is None:
            check_service(name[1])
        try:
            return self._answer(name, at_least, make, of_unknown)
        except (StorageUnavailable, LedgerForked, Lagging):
            kept = self._cache.get(name)
            if kept is not None and kept.head >= at_least and self._clock() < kept.expires_at:
                return kept
            raise

    def kept(self, name: A, at_least: int) -> PublicAnswer | None:
        """The answer that `answer` would take from memory; None where it would make one, or raise."""
        if self._cache.get(name) is None:
            return None
        try:
            return self.answer(name, at_least, _make_none, of_unknown=True)
        except PeersealError:
            return None

    def _answer(self, name: A, at_least: int, make: Callable[[A, int], PublicAnswer], of_unknown: bool) -> PublicAnswer:
        self._authority.require_sound()
        kept, now = self._cache.get(name), self._clock()
        seq, issued = self._revisions.service(name[1])
        if issued != self._issued:  # a new document of the root may have dropped the key that signed
            self._authority.newest()
            self._issued, kept = issued, self._cache.get(name)
        if at_least and (kept is None or at_least > kept.head) and self._revisions.head() < at_least:
            raise Lagging(f"the ledger has fewer than {at_least} entries")
        if seq is None:
            if not of_unknown:
                raise NotFound("service_not_found")
            seq = 0
        if (
            kept is not None
            and kept.seq == seq
            and kept.head >= at_least
            and 0 <= now - kept.issued_at < self._limits.resign_after
        ):
            return kept
        return self._cache.put(name, make(name, int(now)))


def _make_none(name: object, now: int) -> NoReturn:
    raise _NotKept(f"no answer about {name} is kept at {now}")
