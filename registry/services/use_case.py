"""The common base of the use cases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from registry.limits import Limits
from registry.services.authority.authority import AuthoritySource
from registry.services.documents.ledger import LedgerView
from registry.storage.revisions import Revisions
from registry.storage.unit import Store

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """The database, the signing authority, the ledger and the limits of a node. ``clock`` returns seconds since the
    epoch."""

    store: Store
    revisions: Revisions
    authority: AuthoritySource
    ledger: LedgerView
    limits: Limits
    clock: Callable[[], float]


class UseCase:
    """The base of the use cases."""

    def __init__(self, node: Node) -> None:
        self._store = node.store
        self._authority = node.authority
        self._limits = node.limits
        self._clock = node.clock

    def _now(self) -> int:
        return int(self._clock())

    def _page(
        self, name: str, limit: int | None, read: Callable[[Connection, int], Sequence[tuple[object, Json]]]
    ) -> Json:
        """``{name: […], "next"}``. ``read`` returns up to so many rows, each with its position. ``next`` is the
        position from which the next page continues, None at the end."""
        size = min(limit or self._limits.page, self._limits.page)
        with self._store.read() as connection:
            rows = read(connection, size)
        return {name: [row for _, row in rows], "next": rows[-1][0] if len(rows) == size else None}
