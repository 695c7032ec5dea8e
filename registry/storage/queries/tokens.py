"""Join tokens and operator tokens: queries and changes. Times are seconds since the epoch."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import BigInteger, Connection, Table, bindparam, delete, insert, select, update

from registry.domain.admission import JoinTokenUses
from registry.storage.batched_writes import Write
from registry.storage.queries.keys import has_more_keys
from registry.storage.tables import join_tokens, operator_tokens


@dataclass(frozen=True, slots=True)
class JoinTokenRecord(JoinTokenUses):
    """The row of a join token, of which ``used`` of ``uses`` are spent."""

    id: str
    service: str
    sealed_key: bytes = field(repr=False)
    created_at: int
    expires_at: int
    uses: int
    used: int = 0
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class OperatorTokenRecord:
    """The row of an operator token."""

    id: str
    secret_hash: bytes = field(repr=False)
    role: str
    created_at: int
    expires_at: int
    revoked: bool = False


R = TypeVar("R", JoinTokenRecord, OperatorTokenRecord)


def public_members(record: JoinTokenRecord | OperatorTokenRecord) -> dict[str, Any]:
    """The members that operators see: all but the secret."""
    return {name: value for name, value in asdict(record).items() if name not in ("sealed_key", "secret_hash")}


class TokenTable(Generic[R]):
    """The queries of one kind of token. ``ended`` is the column that says that an operator ended the token."""

    def __init__(self, table: Table[Any], record: type[R], ended: str) -> None:
        self._table = table
        self._record: type[R] = record
        self._ended = table.c[ended]
        self._select = select(*(table.c[member.name] for member in fields(record)))
        self._find = self._select.where(table.c.id == bindparam("of"))

    def add(self, connection: Connection, record: R) -> None:
        """Writes a new token."""
        connection.execute(insert(self._table).values(**asdict(record)))

    def find(self, connection: Connection, token_id: str) -> R | None:
        """The token with that id."""
        row = connection.execute(self._find, {"of": token_id}).first()
        return None if row is None else self._record(*row)

    def end(self, connection: Connection, token_id: str) -> bool:
        """Makes a token useless. False where there is none, or where it was ended before."""
        found = (self._table.c.id == token_id, ~self._ended)
        ending = update(self._table).where(*found).values({self._ended.name: True})
        return connection.execute(ending).rowcount == 1

    def page(self, connection: Connection, after: str, limit: int) -> list[tuple[object, dict[str, Any]]]:
        """A page of all tokens by id, past ones too: the id and the public members of each."""
        found = self._select.where(self._table.c.id > after).order_by(self._table.c.id).limit(limit)
        records = [self._record(*row) for row in connection.execute(found)]
        return [(record.id, public_members(record)) for record in records]

    def remove_past(self, connection: Connection, before: int) -> int:
        """Removes tokens that ended at or before that time, and returns their number. Their entries stay."""
        return connection.execute(delete(self._table).where(self._table.c.expires_at <= before)).rowcount


JOIN_TOKENS: Final = TokenTable(join_tokens, JoinTokenRecord, "withdrawn")
OPERATOR_TOKENS: Final = TokenTable(operator_tokens, OperatorTokenRecord, "revoked")

_TIMES = bindparam("times", type_=BigInteger)
_SPEND = (
    update(join_tokens)
    .where(join_tokens.c.id == bindparam("token_id"), join_tokens.c.service == bindparam("token_service"))
    .where(join_tokens.c.used + _TIMES <= join_tokens.c.uses)
    .where(~join_tokens.c.withdrawn, join_tokens.c.expires_at > bindparam("now"))
    .where(~has_more_keys(join_tokens.c.service))
    .values(used=join_tokens.c.used + _TIMES)
)
_LOCK = (
    select(*(join_tokens.c[member.name] for member in fields(JoinTokenRecord)))
    .where(join_tokens.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(join_tokens.c.id)
    .with_for_update()
)
_SPENT = (
    update(join_tokens)
    .where(join_tokens.c.id == bindparam("token_id"))
    .values(used=bindparam("new_used", type_=BigInteger))
)


def spending(token_id: str, service: str, *, times: int, most: int, now: int, retired_after: int) -> Write:
    """Takes that many uses of a valid join token for that service, or none. It is one conditional UPDATE: concurrent
    transactions take no more than ``uses`` in all. It takes none where the token is no longer valid, or where the
    service has more than ``most`` keys, of any kind, whose natural end is after ``retired_after``."""
    names = {"token_id": token_id, "token_service": service, "times": times, "most": most}
    return Write(_SPEND, {**names, "now": now, "retired_after": retired_after})


def lock(connection: Connection, token_ids: Iterable[str]) -> dict[str, JoinTokenRecord]:
    """The join tokens with these ids, locked in one order until the transaction ends."""
    rows = connection.execute(_LOCK, {"ids": sorted(set(token_ids))})
    return {record.id: record for record in (JoinTokenRecord(*row) for row in rows)}


def save_uses(connection: Connection, records: Iterable[JoinTokenRecord]) -> None:
    """Writes ``used`` of tokens that this transaction has locked."""
    uses = [{"token_id": record.id, "new_used": record.used} for record in records]
    if uses:
        connection.execute(_SPENT, uses)
