"""The replay guard of the registry itself, shared by its workers and nodes through the database."""

import hashlib
import time
from collections.abc import Callable

from sqlalchemy import Connection, delete

from peerseal.errors import TrustUnavailable
from registry.domain.errors import StorageUnavailable
from registry.storage.tables import used_tokens
from registry.storage.unit import Store
from registry.storage.upsert import inserts

_CLAIM = {
    dialect: insert.on_conflict_do_nothing().returning(used_tokens.c.until)
    for dialect, insert in inserts(used_tokens).items()
}

PURGE_EVERY = 60
"""Seconds between two purges by one process."""


def remove_past(connection: Connection, now: int) -> int:
    """Forgets tokens that can be accepted no more, and says how many they were."""
    return connection.execute(delete(used_tokens).where(used_tokens.c.until < now)).rowcount


class DatabaseReplayGuard:
    """A `peerseal.peers.replay.ReplayGuard`: one INSERT that does nothing where the token is known."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._purged_at = 0.0

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """See ReplayGuard. Raises TrustUnavailable where the database cannot be written: fail closed."""
        token = hashlib.sha256(f"{issuer}\0{jti}".encode()).digest()
        now = self._clock()
        try:
            with self._store.write() as connection:
                if now - self._purged_at > PURGE_EVERY:
                    self._purged_at = now
                    remove_past(connection, int(now))
                row = {"token": token, "until": int(until) + 1}
                return connection.execute(_CLAIM[connection.dialect.name], row).first() is not None
        except StorageUnavailable as error:
            raise TrustUnavailable(str(error), error.retry_after) from error
