"""Checks that acknowledged writes survive the loss of PostgreSQL's host and the promotion of its standby."""

import logging
import threading
import time
from dataclasses import dataclass

from sqlalchemy import Connection, text

from registry.domain.errors import StorageNotDurable, StorageReadOnly
from registry.storage.engine import POSTGRESQL

log = logging.getLogger(__name__)

READ_EVERY = 2.0
"""Seconds for which the server's report is used: a standby may connect at any time."""
SETTING = "REGISTRY_ALLOW_ASYNC_REPLICATION"

_FACTS = text("""
    SELECT pg_is_in_recovery() AS in_recovery,
        current_setting('default_transaction_read_only') = 'on' AS read_only,
        current_setting('fsync') = 'on' AS fsync,
        current_setting('full_page_writes') = 'on' AS full_page_writes,
        current_setting('synchronous_standby_names') AS synchronous_standby_names,
        (SELECT count(*) FROM pg_stat_replication AS sender
            WHERE NOT EXISTS (SELECT FROM pg_stat_progress_basebackup AS backup WHERE backup.pid = sender.pid)
            AND NOT EXISTS (SELECT FROM pg_replication_slots AS slot
                WHERE slot.active_pid = sender.pid AND (slot.temporary OR slot.slot_type = 'logical'))) AS standbys
""")
"""Every role may read these. It sees only the process ids of other roles' replication, which is enough: the other two
views identify base backups and logical subscribers."""


@dataclass(frozen=True, slots=True)
class Durability:
    """A server's report; ``standbys`` is the number of connected physical ones."""

    in_recovery: bool
    read_only: bool
    fsync: bool
    full_page_writes: bool
    synchronous_standby_names: str
    standbys: int

    @property
    def refuses_writes(self) -> str | None:
        """The reason why the server accepts no writes; None where it does."""
        if self.in_recovery:
            remedy = "name all hosts in REGISTRY_DATABASE_URL, with target_session_attrs=read-write"
            return f"the database server is a standby: {remedy}"
        return "the database is read-only: default_transaction_read_only is on" if self.read_only else None

    @property
    def loses_writes(self) -> str | None:
        """How acknowledged writes could be lost, with the remedy; None where they cannot."""
        for name, on in (("fsync", self.fsync), ("full_page_writes", self.full_page_writes)):
            if not on:
                return f"{name} is off, so a crash loses acknowledged keys: set {name} = on, or {SETTING}=1"
        if self.standbys and not self.synchronous_standby_names.strip():
            lost = f"{self.standbys} standbys replicate asynchronously, so a fail-over loses acknowledged keys"
            return f"{lost}: set synchronous_standby_names (docs/how-to/recovery.md), or {SETTING}=1"
        return None


def in_recovery(connection: Connection) -> bool:
    """Whether the server is a standby, which may lack entries that its primary acknowledged."""
    if connection.dialect.name != POSTGRESQL:
        return False
    return bool(connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one())


def read_durability(connection: Connection) -> Durability:
    """The server's report."""
    return Durability(**connection.execute(_FACTS).mappings().one())


class DurabilityGuard:
    """Refuses writing transactions whose writes could be lost. With ``allowed`` the operator accepts the risk, and it
    is only logged."""

    def __init__(self, allowed: bool = False) -> None:
        self._allowed = allowed
        self._lock = threading.Lock()
        self._known: Durability | None = None
        self._read_at = 0.0
        self._logged: str | None = None

    def check(self, connection: Connection) -> None:
        """Asks the server of the connection, unless it was asked a moment ago over a connection as old as this one.
        Raises StorageReadOnly and StorageNotDurable."""
        driver = connection.connection.driver_connection
        made_at: float = getattr(driver, "made_at", 0.0)
        with self._lock:
            known = self._known if time.monotonic() - self._read_at < READ_EVERY and made_at < self._read_at else None
        if known is None:
            now, known = time.monotonic(), read_durability(connection)
            with self._lock:
                self._known, self._read_at = known, now
        if trouble := self.trouble(known):
            raise (StorageReadOnly if known.refuses_writes else StorageNotDurable)(trouble)

    def trouble(self, found: Durability) -> str | None:
        """The reason why this server is not written to, with the remedy; None where it is."""
        risk = found.loses_writes
        if risk != self._logged:
            self._logged = risk
            if risk is not None:
                log.warning("acknowledged writes %s: %s", "may be lost" if self._allowed else "are refused", risk)
        return found.refuses_writes or (None if self._allowed else risk)
