"""The operators' audit trail, for operators."""

from dataclasses import asdict
from typing import Any

from registry.settings import Limits
from registry.storage import audit
from registry.storage.unit import Store


class Audit:
    """Reads the trail; it is written by the acts themselves (`registry.storage.audit.record`)."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    def page(self, after: int = 0, limit: int | None = None) -> dict[str, Any]:
        """``{"audit": [{"id", "time", "by", "act", "subject", "seq"}], "next"}``: what operators did, oldest first,
        behind the row ``after``."""
        size = min(limit or self._limits.page, self._limits.page)
        with self._store.read() as connection:
            page = audit.page(connection, after, size)
        following = page[-1].id if len(page) == size else None
        return {"audit": [asdict(act) for act in page], "next": following}
