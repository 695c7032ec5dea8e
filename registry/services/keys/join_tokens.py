"""Join tokens: how an operator lets a service's first key in."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cryptography.fernet import InvalidToken
from sqlalchemy import Connection

from peerseal.errors import PeersealError
from peerseal.protocol.join import JoinToken, join_mac_matches
from peerseal.protocol.ledger.entries import JOIN_TOKEN_CREATED, JOIN_TOKEN_WITHDRAWN
from peerseal.protocol.ledger.merkle import Frontier
from registry.domain.admission import TOKEN_ID, Joined, check_registrable
from registry.domain.errors import BadRequest, JoinRefused, KeyTaken, NotFound
from registry.services.authority.authority import AuthoritySource
from registry.services.bounded_cache import BoundedCache
from registry.services.setup.keyfiles import Sealer
from registry.settings import Limits
from registry.storage.batched_writes import Write
from registry.storage.queries import audit, join_tokens, keys, ledger
from registry.storage.queries.join_tokens import JoinTokenRecord
from registry.storage.queries.ledger import Change, append
from registry.storage.unit import Store


@dataclass(frozen=True, slots=True)
class NewJoinToken:
    """A join token just made: what is kept of it, and its text, which is kept nowhere."""

    record: JoinTokenRecord
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What never changes of a join token."""

    service: str
    mac_key: bytes = field(repr=False)


_OPENED_KEPT = 1_000
"""Join tokens whose MAC keys a process keeps in memory, where the key that seals them is too."""


class JoinTokens:
    """Makes, checks and withdraws join tokens."""

    def __init__(
        self,
        store: Store,
        authority: AuthoritySource,
        sealer: Sealer,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._authority = authority
        self._sealer = sealer
        self._limits = limits
        self._clock = clock
        self._opened: BoundedCache[str, _Opened] = BoundedCache(_OPENED_KEPT)

    def create(self, service: str, ttl: int, uses: int, by: Mapping[str, str]) -> NewJoinToken:
        """A token that registers up to ``uses`` keys for one service within ``ttl`` seconds.

        Raises InvalidName or BadRequest.
        """
        check_registrable(service)
        if not 0 < ttl <= self._limits.join_ttl:
            raise BadRequest("invalid_parameter", f"ttl must be 1 to {self._limits.join_ttl} seconds")
        if not 0 < uses <= self._limits.join_uses:
            raise BadRequest("invalid_parameter", f"uses must be 1 to {self._limits.join_uses}")
        token, now = _generate(self._authority.current().pin), int(self._clock())
        sealed = self._sealer.seal(token.id, token.mac_key)
        record = JoinTokenRecord(token.id, service, sealed, now, now + ttl, uses)
        data = {"id": token.id, "expires_at": record.expires_at, "uses": uses}
        with self._store.write() as connection:
            join_tokens.add(connection, record)
            seq = append(connection, now, Change(JOIN_TOKEN_CREATED, service, by=by, data=data)).entry.seq
            audit.record(connection, now, by, JOIN_TOKEN_CREATED, token.id, seq)
        return NewJoinToken(record, token.encode())

    def check(self, service: str, right: Joined, proof: str) -> None:
        """Passes a MAC over that proof by the holder of a token for that service. Spends nothing, and leaves to
        `spend` whether the token is still good: a fleet that starts brings one token a hundred times, and most of
        the work is to look it up and to unseal its key, which never change. Raises JoinRefused."""
        opened = self._opened.get(right.token_id) or self._open(right.token_id)
        if not join_mac_matches(opened.mac_key, proof, right.mac):
            raise JoinRefused(f"the MAC is not by the holder of join token {right.token_id}")
        if opened.service != service:
            raise JoinRefused(f"join token {right.token_id} is for another service")

    def spend(
        self, connection: Connection, wanted: Sequence[tuple[str, str]], now: int
    ) -> tuple[Frontier | None, Sequence[bool]]:
        """Takes one use for each of ``wanted``, pairs of a token's id and the service that it is for, where the token
        is good and the service has not too many keys by join tokens; and says for which. Once one is taken the
        ledger's head is locked, which is returned."""
        times = Counter(wanted)
        if len(times) == 1:  # mostly: then both are one message
            edge = ledger.lock_by(connection, self._spending(*wanted[0], now, len(wanted), 0))
            if edge is not None:
                return edge, [True] * len(wanted)
        places = sorted(range(len(wanted)), key=lambda place: wanted[place])  # all lock in one order: no deadlock
        taken, ahead = [False] * len(wanted), Counter[str]()
        for place in places:
            token_id, service = wanted[place]
            spending = self._spending(token_id, service, now, 1, ahead[service])
            taken[place] = connection.execute(*spending).rowcount == 1
            ahead[service] += taken[place]
        return ledger.lock_frontier(connection) if any(taken) else None, taken

    def _spending(self, token_id: str, service: str, now: int, times: int, ahead: int) -> Write:
        return join_tokens.spending(token_id, service, now, times, self._limits.joined_keys - ahead)

    def why_not(self, connection: Connection, token_id: str, service: str, now: int) -> PeersealError:
        """The reason for which nothing was spent."""
        if keys.joined_count(connection, service, now) >= self._limits.joined_keys:
            return KeyTaken("too_many_keys", f"{service} has too many active keys that no other key vouched for")
        return JoinRefused(f"join token {token_id} is spent, past or withdrawn")

    def _open(self, token_id: str) -> "_Opened":
        with self._store.look() as connection:
            record = join_tokens.find(connection, token_id) if TOKEN_ID.fullmatch(token_id) else None
        if record is None:
            raise JoinRefused("no such join token")
        try:
            opened = _Opened(record.service, self._sealer.open(record.id, record.sealed_key))
        except (InvalidToken, ValueError) as error:
            raise JoinRefused(f"join token {record.id} was sealed with another key, or altered") from error
        if record.good(self._clock()):
            self._opened.put(token_id, opened)
        return opened

    def withdraw(self, token_id: str, by: Mapping[str, str]) -> None:
        """Makes a token useless. Raises NotFound where there is none that was not withdrawn before."""
        now = int(self._clock())
        with self._store.write() as connection:
            record = join_tokens.find(connection, token_id)
            if record is None or not join_tokens.withdraw(connection, token_id):
                raise NotFound("join_token_not_found")
            change = Change(JOIN_TOKEN_WITHDRAWN, record.service, by=by, data={"id": token_id})
            seq = append(connection, now, change).entry.seq
            audit.record(connection, now, by, JOIN_TOKEN_WITHDRAWN, token_id, seq)

    def page(self, after: str, limit: int | None = None) -> dict[str, Any]:
        """``{"join_tokens": […], "next"}``: a page of them by id behind ``after``, past ones too."""
        size = min(limit or self._limits.page, self._limits.page)
        with self._store.read() as connection:
            page = join_tokens.page(connection, after, size)
        following = page[-1].id if len(page) == size else None
        return {"join_tokens": [public_members(record) for record in page], "next": following}


def public_members(record: JoinTokenRecord) -> dict[str, Any]:
    """What an operator may see of a join token."""
    members = asdict(record)
    del members["sealed_key"]
    return members


def _generate(pin: str) -> JoinToken:
    """A token whose id no command line takes for an option."""
    while (token := JoinToken.generate(pin)).id.startswith("-"):
        pass
    return token
