"""Answers to public questions, kept as bytes: valid until a change commits on any worker or node.

A signed document is *lasting*: made as of the entry that last changed its service, with the time of that entry or of
the newest signing period. So every node makes the same bytes. Where a client asks for more entries than that, and
for answers without a signature, it is made as of *now*: the newest entry, and the time of the node.
"""

import hashlib
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, NoReturn, TypeVar

from peerseal.errors import PeersealError
from peerseal.protocol.encoding import b64url
from peerseal.protocol.names import check_service
from registry.domain.errors import Lagging, LedgerForked, NotFound, StorageUnavailable
from registry.domain.publication import period_start
from registry.limits import Limits
from registry.services.authority.authority import AuthoritySource
from registry.services.bounded_cache import BoundedCache
from registry.storage.revisions import Revisions

A = TypeVar("A", bound=tuple[str, ...])

JWT = "application/jwt"
JWK_SET = "application/jwk-set+json"
PEM = "application/x-pem-file"
NOTE = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"

_OVERHEAD = 1024
"""Bytes of an answer in memory without its body and readers: its objects, its name, its place in a dict."""
_READER = 256
"""Bytes of the id of a reader."""


@dataclass(frozen=True, slots=True)
class PublicAnswer:
    """The bytes of an answer, their strong ETag, when it was made, and the ledger entries that it covers. Everyone may
    read it; with ``readers`` only the services with these ids may. It is true until ``true_until``, if nothing changes
    in the ledger: then a key ends by itself."""

    body: bytes = field(repr=False)
    content_type: str
    etag: str
    seq: int
    head: int
    issued_at: int
    expires_at: int
    readers: frozenset[str] | None = None
    true_until: float = math.inf

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return _OVERHEAD + len(self.body) + _READER * len(self.readers or ())

    @classmethod
    def of(
        cls,
        body: bytes,
        content_type: str,
        seq: int,
        head: int,
        issued_at: int,
        expires_at: int,
        *,
        readers: frozenset[str] | None = None,
        true_until: float = math.inf,
    ) -> "PublicAnswer":
        """With the ETag of the bytes: the same from each worker and node that makes the same bytes."""
        etag = f'"{b64url(hashlib.sha256(body).digest()[:16])}"'
        return cls(body, content_type, etag, seq, head, issued_at, expires_at, readers, true_until)


class _NotKept(PeersealError):
    """The answer would have to be made."""


@dataclass(frozen=True, slots=True)
class AsOf:
    """What an answer covers. One that is ``lasting`` covers the entry that last changed its service, and has its time,
    or that of the signing period before ``now`` (seconds since the epoch); another covers the newest entry, at
    ``now``."""

    now: int
    lasting: bool


class AnswerCache(Generic[A]):
    """Keeps answers by a tuple of names; the second name is the service that the answer is about. The answers of
    ``lasting`` kinds (the first names) are lasting where that suffices.

    A lasting answer is served from memory while no node has changed the service, until the next signing period;
    another while it is also younger than ``resign_after``. While the database is down, lags, or holds another ledger
    than the signed one, answers in memory are served until they expire: their signed time shows their age.
    """

    def __init__(
        self,
        revisions: Revisions,
        authority: AuthoritySource,
        limits: Limits,
        clock: Callable[[], float] = time.time,
        *,
        lasting: Collection[str] = (),
    ) -> None:
        self._revisions = revisions
        self._authority = authority
        self._limits = limits
        self._clock = clock
        self._lasting = lasting
        self._cache: BoundedCache[tuple[A, bool], PublicAnswer] = BoundedCache(
            limits.documents_cached, attrgetter("size")
        )
        self._issued: int | None = None
        authority.when_changed(self._cache.clear)

    @property
    def held(self) -> int:
        """Bytes of the answers in memory."""
        return self._cache.held

    def answer(
        self, name: A, at_least: int, make: Callable[[A, AsOf], PublicAnswer], *, of_unknown: bool = False
    ) -> PublicAnswer:
        """The answer as of entry ``at_least`` or later. If none is kept, ``make`` makes one. With ``of_unknown`` there
        is an answer, with ``seq`` 0, about a service that no entry names.

        Raises InvalidName, NotFound for a service that no entry names, Lagging where the ledger is shorter than
        ``at_least``, StorageUnavailable, LedgerContradicted.
        """
        if not self._holds(name):
            check_service(name[1])
        try:
            return self._answer(name, at_least, make, of_unknown)
        except (StorageUnavailable, LedgerForked, Lagging):
            for lasting in (True, False):
                kept = self._cache.get((name, lasting))
                if kept is not None and kept.head >= at_least and self._clock() < kept.expires_at:
                    return kept
            raise

    def kept(self, name: A, at_least: int) -> PublicAnswer | None:
        """The answer that `answer` would take from memory; None where it would make one, or raise."""
        if not self._holds(name):
            return None
        try:
            return self.answer(name, at_least, _make_none, of_unknown=True)
        except PeersealError:
            return None

    def _holds(self, name: A) -> bool:
        return self._cache.get((name, True)) is not None or self._cache.get((name, False)) is not None

    def _answer(
        self, name: A, at_least: int, make: Callable[[A, AsOf], PublicAnswer], of_unknown: bool
    ) -> PublicAnswer:
        self._authority.require_sound()
        now, (seq, issued) = self._clock(), self._revisions.service(name[1])
        if issued != self._issued:  # a new document of the root may have dropped the key that signed
            self._authority.newest()
            self._issued = issued
        if seq is None:
            self._require(at_least)
            if not of_unknown:
                raise NotFound("service_not_found")
            return make(name, AsOf(int(now), lasting=False))  # not kept: callers can invent names
        lasting = name[0] in self._lasting and seq >= at_least
        kept = self._cache.get((name, lasting))
        if not lasting and (kept is None or kept.head < at_least):
            self._require(at_least)
        if kept is not None and kept.seq == seq and kept.head >= at_least and self._is_young(name[1], kept, lasting):
            return kept
        return self._cache.put((name, lasting), make(name, AsOf(int(now), lasting)))

    def _require(self, at_least: int) -> None:
        """Raises Lagging where the ledger is shorter."""
        if self._revisions.head() < at_least:
            raise Lagging(f"the ledger has fewer than {at_least} entries")

    def _is_young(self, service: str, kept: PublicAnswer, lasting: bool) -> bool:
        now, limits = self._clock(), self._limits
        if lasting:
            return kept.issued_at >= period_start(service, now, limits.signing_period) and now < kept.true_until
        return 0 <= now - kept.issued_at < limits.resign_after


def _make_none(name: object, as_of: AsOf) -> NoReturn:
    raise _NotKept(f"no answer about {name} is kept at {as_of.now}")
