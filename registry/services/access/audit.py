"""The operators' audit trail, for operators."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from registry.settings import Limits
from registry.storage.queries import audit, ledger
from registry.storage.unit import Store


class Audit:
    """Reads the trail; it is written by the acts themselves (`registry.storage.queries.audit.record`)."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    def page(self, after: int = 0, limit: int | None = None) -> dict[str, Any]:
        """``{"audit": [{"id", "time", "by", "act", "subject", "seq", "service"}], "next"}``: what operators did, oldest
        first, behind the row ``after``. ``service`` is None where the act was about none."""
        size = min(limit or self._limits.page, self._limits.page)
        with self._store.read() as connection:
            page = audit.page(connection, after, size)
            services = _services(connection, page)
        following = page[-1].id if len(page) == size else None
        rows = [{**asdict(act), "service": services.get(act.seq or 0)} for act in page]
        return {"audit": rows, "next": following}


def _services(connection: Connection, acts: list[audit.Act]) -> dict[int, str]:
    """By entry: the service that an act was about. Of a join token or a key the subject alone does not say it."""
    entries = ledger.read_some(connection, sorted({act.seq for act in acts if act.seq is not None}))
    return {entry.seq: entry.service for entry in entries if entry.service is not None}
