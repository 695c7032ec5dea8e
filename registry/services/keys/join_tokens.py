"""Join tokens: how an operator admits a service's first key."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.fernet import InvalidToken
from sqlalchemy import Connection

from peerseal.errors import PeersealError
from peerseal.protocol.join import JoinToken, join_mac_matches
from peerseal.protocol.ledger.entries import JOIN_TOKEN_CREATED, JOIN_TOKEN_WITHDRAWN
from peerseal.protocol.ledger.merkle import Frontier
from registry.domain.admission import TOKEN_ID, Joined, check_registrable
from registry.domain.errors import BadRequest, JoinRefused, KeyTaken, NotFound
from registry.services.bounded_cache import BoundedCache
from registry.services.setup.keyfiles import Sealer
from registry.services.use_case import Json, Node, UseCase
from registry.storage.batched_writes import Write
from registry.storage.queries import audit, keys, ledger
from registry.storage.queries.ledger import Change
from registry.storage.queries.tokens import JOIN_TOKENS, JoinTokenRecord, spending


@dataclass(frozen=True, slots=True)
class NewJoinToken:
    """A new join token: its record, and its text, which is stored nowhere."""

    record: JoinTokenRecord
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Opened:
    """The parts of a join token that never change."""

    service: str
    mac_key: bytes = field(repr=False)


_OPENED_KEPT = 1_000
"""Join tokens whose MAC keys a process keeps in memory. The key that seals them is in memory too."""


class JoinTokens(UseCase):
    """Makes, checks and withdraws join tokens."""

    def __init__(self, node: Node, sealer: Sealer) -> None:
        super().__init__(node)
        self._sealer = sealer
        self._opened: BoundedCache[str, _Opened] = BoundedCache(_OPENED_KEPT)

    def create(self, service: str, ttl: int, uses: int, by: Mapping[str, str]) -> NewJoinToken:
        """A token that registers up to ``uses`` keys of one service during the next ``ttl`` seconds.

        Raises InvalidName or BadRequest.
        """
        check_registrable(service)
        if not 0 < ttl <= self._limits.join_ttl:
            raise BadRequest("invalid_parameter", f"ttl is {ttl}, it must be 1 to {self._limits.join_ttl} seconds")
        if not 0 < uses <= self._limits.join_uses:
            raise BadRequest("invalid_parameter", f"uses is {uses}, it must be 1 to {self._limits.join_uses}")
        token, now = _generate(self._authority.current().pin), self._now()
        sealed = self._sealer.seal(token.id, token.mac_key)
        record = JoinTokenRecord(token.id, service, sealed, now, now + ttl, uses)
        data = {"id": token.id, "expires_at": record.expires_at, "uses": uses}
        with self._store.write() as connection:
            JOIN_TOKENS.add(connection, record)
            audit.append_act(connection, now, Change(JOIN_TOKEN_CREATED, service, by=by, data=data), token.id)
        return NewJoinToken(record, token.encode())

    def check(self, service: str, right: Joined, proof: str) -> None:
        """Passes a MAC over that proof by the holder of a token for that service. It spends nothing, and leaves to
        `spend` whether the token is still valid. A fleet that starts sends one token a hundred times, and most of the
        work is to find the token and to unseal its key, which never change. Raises JoinRefused."""
        opened = self._opened.get(right.token_id) or self._open(right.token_id)
        if not join_mac_matches(opened.mac_key, proof, right.mac):
            raise JoinRefused(f"the MAC is not by the holder of join token {right.token_id}")
        if opened.service != service:
            raise JoinRefused(f"join token {right.token_id} is for {opened.service}, not for {service}")

    def spend(
        self, connection: Connection, wanted: Sequence[tuple[str, str]], now: int
    ) -> tuple[Frontier | None, Sequence[bool]]:
        """Takes one use for each of ``wanted``, pairs of a token's id and its service, where the token is valid and the
        service has room for a key by join token. Returns for which it did, and the ledger's edge, which is locked once
        a use is taken."""
        times = Counter(wanted)
        if len(times) == 1:  # the usual case, and one message to the database
            edge = ledger.lock_by(connection, self._spending(*wanted[0], now, len(wanted), 0))
            if edge is not None:
                return edge, [True] * len(wanted)
        order = sorted(range(len(wanted)), key=lambda number: wanted[number])  # one order of locks: no deadlock
        taken, ahead = [False] * len(wanted), Counter[str]()
        for number in order:
            token_id, service = wanted[number]
            one = self._spending(token_id, service, now, 1, ahead[service])
            taken[number] = connection.execute(*one).rowcount == 1
            ahead[service] += taken[number]
        return ledger.lock_frontier(connection) if any(taken) else None, taken

    def _spending(self, token_id: str, service: str, now: int, times: int, ahead: int) -> Write:
        return spending(token_id, service, now, times, self._limits.joined_keys - ahead)

    def why_not(self, connection: Connection, token_id: str, service: str, now: int) -> PeersealError:
        """The reason why `spend` took no use."""
        if keys.joined_count(connection, service, now) >= self._limits.joined_keys:
            return KeyTaken("too_many_keys", f"{service} has {self._limits.joined_keys} active keys without a voucher")
        return JoinRefused(f"join token {token_id} is spent, expired or withdrawn")

    def _open(self, token_id: str) -> "_Opened":
        with self._store.look() as connection:
            record = JOIN_TOKENS.find(connection, token_id) if TOKEN_ID.fullmatch(token_id) else None
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
        """Makes a token useless. Raises NotFound where there is none, or where it was withdrawn before."""
        with self._store.write() as connection:
            record = JOIN_TOKENS.find(connection, token_id)
            if record is None or not JOIN_TOKENS.end(connection, token_id):
                raise NotFound("join_token_not_found")
            change = Change(JOIN_TOKEN_WITHDRAWN, record.service, by=by, data={"id": token_id})
            audit.append_act(connection, self._now(), change, token_id)

    def page(self, after: str, limit: int | None = None) -> Json:
        """``{"join_tokens": […], "next"}``: all tokens by id, past ones too, after the id ``after``."""
        return self._page("join_tokens", limit, lambda found, size: JOIN_TOKENS.page(found, after, size))


def _generate(pin: str) -> JoinToken:
    """A token whose id does not look like a command-line option."""
    while (token := JoinToken.generate(pin)).id.startswith("-"):
        pass
    return token
