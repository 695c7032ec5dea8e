"""Answers to public questions, kept as bytes: valid until a change commits on any worker or node.

A signed document is *lasting*: made as of the entry that last changed its service, with the time of that entry or of
the newest signing period. So every node makes the same bytes. Where a client asks for more entries than that, and
for answers without a signature, it is made as of *now*: the newest entry, and the time of the node.
"""

import hashlib
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, Generic, NamedTuple, TypeVar

from peerseal.errors import PeersealError
from peerseal.protocol.encoding import b64url
from peerseal.protocol.names import check_service
from registry.domain.errors import Lagging, LedgerForked, NotFound, StorageUnavailable
from registry.domain.publication import period_start
from registry.limits import Limits
from registry.services.authority.authority import AuthoritySource
from registry.services.bounded_cache import BoundedCache
from registry.storage.group_commit import GroupCommit
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
_SERVICES: Final = 1_000
"""Services whose answers are made in turn. Of a service that was dropped two threads may make the same one."""

LONGEST_WAIT: Final = 3
"""Seconds for which a thread waits for others, which make what it needs or read all keys of large services. A caller
gives up after five, and asks again."""


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


@dataclass(frozen=True, slots=True)
class AsOf:
    """What an answer covers. One that is ``lasting`` covers the entry that last changed its service, and has its time,
    or that of the signing period before ``now`` (seconds since the epoch); another covers the newest entry, at
    ``now``. ``outdated`` is the lasting answer in memory that it takes the place of, if there is one."""

    now: int
    lasting: bool
    outdated: PublicAnswer | None = None


class _Wanted(NamedTuple, Generic[A]):
    """The parameters of `AnswerCache.answer`."""

    name: A
    at_least: int
    make: Callable[[A, AsOf], PublicAnswer]
    of_unknown: bool


class _Found(NamedTuple):
    """The answer in memory that is in force, None if it has to be made; what it covers then, and whether it is kept."""

    kept: PublicAnswer | None
    as_of: AsOf
    keep: bool = True


class AnswerCache(Generic[A]):
    """Keeps answers by a tuple of names; the second name is the service that the answer is about. The answers of
    ``lasting`` kinds (the first names) are lasting where that suffices.

    A lasting answer is served from memory while no node has changed the service, until the next signing period;
    another while it is also younger than ``resign_after``. While the database is down, lags, or holds another ledger
    than the signed one, answers in memory are served until they expire: their signed time shows their age.

    Of the kinds ``in_turn``, which take long to make, one answer of each service is made at a time. The threads that
    want another, or the same, wait for it without a connection to the database.
    """

    def __init__(
        self,
        revisions: Revisions,
        authority: AuthoritySource,
        limits: Limits,
        clock: Callable[[], float] = time.time,
        *,
        lasting: Collection[str] = (),
        in_turn: Collection[str] = (),
    ) -> None:
        self._revisions = revisions
        self._authority = authority
        self._limits = limits
        self._clock = clock
        self._lasting = lasting
        self._in_turn = in_turn
        self._turns: BoundedCache[str, GroupCommit[_Wanted[A], PublicAnswer]] = BoundedCache(_SERVICES)
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
        wanted = _Wanted(name, at_least, make, of_unknown)
        try:
            return self._made_in_turn(wanted) if name[0] in self._in_turn else self._made(wanted)
        except (StorageUnavailable, LedgerForked, Lagging):
            kept = self._older(name, at_least)
            if kept is None:
                raise
            return kept

    def kept(self, name: A, at_least: int) -> PublicAnswer | None:
        """The answer that `answer` would take from memory; None where it would make one, or raise."""
        if not self._holds(name):
            return None
        try:
            return self._find(name, at_least, of_unknown=True).kept
        except (StorageUnavailable, LedgerForked, Lagging):
            return self._older(name, at_least)
        except PeersealError:
            return None

    def _holds(self, name: A) -> bool:
        return self._cache.get((name, True)) is not None or self._cache.get((name, False)) is not None

    def _older(self, name: A, at_least: int) -> PublicAnswer | None:
        for lasting in (True, False):
            kept = self._cache.get((name, lasting))
            if kept is not None and kept.head >= at_least and self._clock() < kept.expires_at:
                return kept
        return None

    def _made_in_turn(self, wanted: _Wanted[A]) -> PublicAnswer:
        kept = self._find(wanted.name, wanted.at_least, of_unknown=wanted.of_unknown).kept
        if kept is not None:
            return kept
        service = wanted.name[1]
        turn = self._turns.get(service) or self._turns.put(service, GroupCommit(self._made_each, LONGEST_WAIT))
        return turn.do(wanted)

    def _made_each(self, several: Sequence[_Wanted[A]]) -> Sequence[PublicAnswer]:
        return [self._made(wanted) for wanted in several]

    def _made(self, wanted: _Wanted[A]) -> PublicAnswer:
        name, at_least, make, of_unknown = wanted
        kept, as_of, keep = self._find(name, at_least, of_unknown=of_unknown)
        if kept is not None:
            return kept
        made = make(name, as_of)
        return self._cache.put((name, as_of.lasting), made) if keep else made

    def _find(self, name: A, at_least: int, *, of_unknown: bool) -> _Found:
        self._authority.require_sound()
        now, (seq, issued) = int(self._clock()), self._revisions.service(name[1])
        if issued != self._issued:  # a new document of the root may have dropped the key that signed
            self._authority.newest()
            self._issued = issued
        if seq is None:
            self._require(at_least)
            if not of_unknown:
                raise NotFound("service_not_found")
            return _Found(None, AsOf(now, lasting=False), keep=False)  # callers can invent names
        lasting = name[0] in self._lasting and seq >= at_least
        kept = self._cache.get((name, lasting))
        if not lasting and (kept is None or kept.head < at_least):
            self._require(at_least)
        if kept is not None and kept.seq == seq and kept.head >= at_least and self._is_young(name[1], kept, lasting):
            return _Found(kept, AsOf(now, lasting))
        return _Found(None, AsOf(now, lasting, kept if lasting else None))

    def _require(self, at_least: int) -> None:
        """Raises Lagging where the ledger is shorter."""
        if self._revisions.head() < at_least:
            raise Lagging(f"the ledger has fewer than {at_least} entries")

    def _is_young(self, service: str, kept: PublicAnswer, lasting: bool) -> bool:
        now, limits = self._clock(), self._limits
        if lasting:
            return kept.issued_at >= period_start(service, now, limits.signing_period) and now < kept.true_until
        return 0 <= now - kept.issued_at < limits.resign_after
