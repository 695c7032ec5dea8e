"""The replay guard of the registry itself, shared by its workers and nodes through the database.

A restored database has forgotten tokens that were accepted. So a restore closes the guard until all of them have
expired, by a row that is not a token's; the row expires like all others.
"""

import hashlib
import time
from collections.abc import Callable

from sqlalchemy import BigInteger, Connection, LargeBinary, bindparam, delete, exists, insert, select

from peerseal.errors import TrustUnavailable
from registry.domain.errors import StorageUnavailable
from registry.storage.tables import used_tokens
from registry.storage.unit import Store
from registry.storage.upsert import inserts

_CLOSED = hashlib.sha256(b"closed").digest()
_IS_CLOSED = select(used_tokens.c.until).where(
    used_tokens.c.token == _CLOSED, used_tokens.c.until >= bindparam("now", type_=BigInteger)
)
_CLAIMED = select(bindparam("claimed", type_=LargeBinary), bindparam("ends", type_=BigInteger)).where(
    ~exists(_IS_CLOSED)
)
_CLAIM = {
    dialect: insert.from_select(["token", "until"], _CLAIMED).on_conflict_do_nothing().returning(used_tokens.c.until)
    for dialect, insert in inserts(used_tokens).items()
}

PURGE_EVERY = 60
"""Seconds between two purges by one process."""


def remove_past(connection: Connection, now: int) -> int:
    """Removes expired tokens, and returns their number."""
    return connection.execute(delete(used_tokens).where(used_tokens.c.until < now)).rowcount


def close(connection: Connection, until: int) -> None:
    """Refuses all tokens up to that time."""
    connection.execute(delete(used_tokens).where(used_tokens.c.token == _CLOSED))
    connection.execute(insert(used_tokens).values(token=_CLOSED, until=until))


class DatabaseReplayGuard:
    """A `peerseal.verify.replay.guards.ReplayGuard`: one INSERT that does nothing if the token is known or the guard is
    closed."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._purged_at = 0.0

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """See ReplayGuard. Fails closed: raises TrustUnavailable if the database cannot be written, or was restored a
        moment ago."""
        token = hashlib.sha256(f"{issuer}\0{jti}".encode()).digest()
        now = self._clock()
        try:
            with self._store.write() as connection:
                if now - self._purged_at > PURGE_EVERY:
                    self._purged_at = now
                    remove_past(connection, int(now))
                row = {"claimed": token, "ends": int(until) + 1, "now": int(now)}
                if connection.execute(_CLAIM[connection.dialect.name], row).first() is not None:
                    return True
                closed = connection.execute(_IS_CLOSED, {"now": int(now)}).scalar_one_or_none()
        except StorageUnavailable as error:
            raise TrustUnavailable(str(error), error.retry_after) from error
        if closed is not None:
            detail = "the database was restored a moment ago, so the tokens that were accepted before are unknown"
            raise TrustUnavailable(detail, closed - int(now) + 1)
        return False
