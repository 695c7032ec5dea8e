"""Makes the public tables say what the entries amount to: what `registry.services.recovery.compare` looks for, put
right."""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, delete, insert, update

from registry.domain.rebuild import PublicState
from registry.services.recovery.compare import Expected, Retention, rows, tables

_PAGE = 1000


def align(
    connection: Connection, state: PublicState, documents: Mapping[int, str], retention: Retention
) -> dict[str, int]:
    """How many rows of each table had to be made, changed or removed. The entries are written already. ``documents``
    are the root-signed ones, by version."""
    aligned = {found.table.name: _align(connection, found) for found in tables(connection, state, documents, retention)}
    return {name: count for name, count in aligned.items() if count}


def _align(connection: Connection, expected: Expected) -> int:
    there, changed = set(), 0
    for row in rows(connection, expected):
        key = row[expected.key.name]
        there.add(key)
        changed += _align_row(connection, expected, key, row)
    missing = [key for key in expected.keys if key not in there and not expected.may_be_gone(key)]
    for page in _pages(missing):
        new = [{expected.key.name: key, **expected.row(key), **expected.unknown} for key in page]
        connection.execute(insert(expected.table), new)
    return changed + len(missing)


def _align_row(connection: Connection, expected: Expected, key: Any, row: Mapping[str, Any]) -> bool:
    """Whether the row had to be changed or removed."""
    mine = expected.key == key
    if key not in expected.keys:
        connection.execute(delete(expected.table).where(mine))
        return True
    wrong = {column: should for column, should in expected.row(key).items() if row[column] != should}
    if wrong:
        connection.execute(update(expected.table).where(mine).values(**wrong))
    return bool(wrong)


def _pages(keys: list[Any]) -> Iterator[list[Any]]:
    for first in range(0, len(keys), _PAGE):
        yield keys[first : first + _PAGE]
