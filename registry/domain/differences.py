"""Differences between a database and its ledger, and faults in a ledger."""

from dataclasses import dataclass
from typing import Any

from peerseal.protocol.encoding import b64url

_LONGEST = 300
"""Characters of a value that are shown."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is wrong. ``key`` is its primary key in words; ``column`` is None where the whole row is wrong.
    ``says`` is None for a missing row, ``should_say`` for a row that should not exist."""

    table: str
    key: str
    column: str | None
    says: str | None
    should_say: str | None

    @classmethod
    def of(cls, table: str, key: object, column: str, says: Any, should_say: Any) -> "Difference":
        """Of two values of a column."""
        return cls(table, str(key), column, shown(says), shown(should_say))

    @classmethod
    def missing(cls, table: str, key: object) -> "Difference":
        """A row that should be there."""
        return cls(table, str(key), None, None, "a row")

    @classmethod
    def unexpected(cls, table: str, key: object) -> "Difference":
        """A row that nothing in the ledger explains."""
        return cls(table, str(key), None, "a row", None)

    def __str__(self) -> str:
        place = f"{self.table} {self.key}" + (f", {self.column}" if self.column else "")
        if self.says is None:
            return f"{place}: missing"
        if self.should_say is None:
            return f"{place}: should not be there"
        return f"{place}: says {self.says}, should say {self.should_say}"


def shown(value: Any) -> str:
    """A column's value as people can read it, cut where it is long."""
    text = b64url(value) if isinstance(value, bytes) else "nothing" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
