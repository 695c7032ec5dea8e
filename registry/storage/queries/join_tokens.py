"""Join tokens: queries and changes."""

from dataclasses import asdict, dataclass, field

from sqlalchemy import BigInteger, Connection, bindparam, delete, insert, select, update

from registry.storage.batched_writes import Write
from registry.storage.queries.keys import joined_count_of
from registry.storage.tables import join_tokens


@dataclass(frozen=True, slots=True)
class JoinTokenRecord:
    """A join token as the registry keeps it. Times are seconds since the epoch; ``used`` of ``uses`` are spent."""

    id: str
    service: str
    sealed_key: bytes = field(repr=False)
    created_at: int
    expires_at: int
    uses: int
    used: int = 0
    withdrawn: bool = False

    def good(self, now: float) -> bool:
        """Whether it admits a key at that time."""
        return not self.withdrawn and now < self.expires_at and self.used < self.uses


_COLUMNS = tuple(join_tokens.c[name] for name in JoinTokenRecord.__slots__)
_FIND = select(*_COLUMNS).where(join_tokens.c.id == bindparam("of"))
_SPEND = (
    update(join_tokens)
    .where(join_tokens.c.id == bindparam("token_id"), join_tokens.c.service == bindparam("token_service"))
    .where(join_tokens.c.used + bindparam("times", type_=BigInteger) <= join_tokens.c.uses)
    .where(~join_tokens.c.withdrawn, join_tokens.c.expires_at > bindparam("now"))
    .where(joined_count_of(join_tokens.c.service) + bindparam("times", type_=BigInteger) <= bindparam("room"))
    .values(used=join_tokens.c.used + bindparam("times", type_=BigInteger))
)


def add(connection: Connection, record: JoinTokenRecord) -> None:
    """Writes a new join token."""
    connection.execute(insert(join_tokens).values(**asdict(record)))


def find(connection: Connection, token_id: str) -> JoinTokenRecord | None:
    """The join token with that id."""
    row = connection.execute(_FIND, {"of": token_id}).first()
    return None if row is None else JoinTokenRecord(*row)


def spending(token_id: str, service: str, now: int, times: int, room: int) -> Write:
    """Takes that many uses of a good token for that service, or none. One conditional UPDATE: of any number at once no
    more than ``uses`` are taken; none where the token is not good any more, or where the service would have more than
    ``room`` active keys that no other key vouched for."""
    names = {"token_id": token_id, "token_service": service, "now": now, "times": times, "room": room}
    return Write(_SPEND, names)


def withdraw(connection: Connection, token_id: str) -> bool:
    """Makes a token useless. False where there is none, or it was withdrawn before."""
    found = (join_tokens.c.id == token_id, ~join_tokens.c.withdrawn)
    return connection.execute(update(join_tokens).where(*found).values(withdrawn=True)).rowcount == 1


def page(connection: Connection, after: str, limit: int) -> list[JoinTokenRecord]:
    """A page of all join tokens, by id."""
    found = select(*_COLUMNS).where(join_tokens.c.id > after).order_by(join_tokens.c.id).limit(limit)
    return [JoinTokenRecord(*row) for row in connection.execute(found)]


def remove_past(connection: Connection, before: int) -> int:
    """Removes tokens whose end lies at or before that time, and says how many they were. Their entries stay."""
    return connection.execute(delete(join_tokens).where(join_tokens.c.expires_at <= before)).rowcount
