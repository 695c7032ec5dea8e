"""Compares every row of the public tables with the state that the entries lead to, and repairs rows that differ."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, Connection, Table, delete, insert, select, update

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.names import split_kid
from peerseal.protocol.policies import CallPolicy
from registry.domain.differences import Difference
from registry.domain.keys import KeyRecord
from registry.domain.policy import policy_in
from registry.domain.rebuild import PublicState
from registry.storage.queries import ledger
from registry.storage.tables import (
    domain_settings,
    join_tokens,
    keys,
    operator_tokens,
    policies,
    registry_documents,
    services,
)

LOST: Final = ""
"""The body of a restricted policy that was lost with a database."""
_PAGE = 1000
_SETTINGS = 1  # the primary key of the one row


@dataclass(frozen=True, slots=True)
class Retention:
    """Rows of tokens may be missing ``kept`` seconds after the token's end. ``now`` is the time of the comparison."""

    now: int
    kept: int

    def over(self, ended_at: int) -> bool:
        """Whether a token with that end may have been deleted."""
        return ended_at + self.kept <= self.now


class Expected(NamedTuple):
    """The content that a table should have: its primary keys, the compared columns of each row, and which rows may be
    missing. ``unknown`` are the columns of a new row that no entry speaks of. The columns ``unread`` are not compared:
    databases of earlier revisions lack them."""

    table: Table[Any]
    keys: Collection[Any]
    row: Callable[[Any], Mapping[str, Any]]
    may_be_gone: Callable[[Any], bool] = lambda _: False
    unknown: Mapping[str, Any] = {}
    unread: Collection[str] = ()

    @property
    def key(self) -> Column[Any]:
        """The primary key, which is one column in each of these tables."""
        [column] = self.table.primary_key.columns
        return column

    def wrong(self, key: Any, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a row that differ, with their right values."""
        return {column: should for column, should in self.row(key).items() if row[column] != should}

    def missing(self, seen: Collection[Any]) -> list[Any]:
        """The primary keys that are not among those seen, and may not be missing."""
        return [key for key in self.keys if key not in seen and not self.may_be_gone(key)]


def compare(
    connection: Connection, state: PublicState, documents: Mapping[int, str], retention: Retention
) -> Iterator[Difference]:
    """Every difference. ``documents`` are the root-signed ones, by version."""
    for expected in _tables(connection, state, documents, retention):
        yield from _differences(connection, expected)


def repair(
    connection: Connection, state: PublicState, documents: Mapping[int, str], retention: Retention
) -> dict[str, int]:
    """Makes the tables match the entries, which are written already. Returns by table how many rows were added, changed
    or removed. ``documents`` are the root-signed ones, by version."""
    tables = _tables(connection, state, documents, retention)
    repaired = {expected.table.name: _repair(connection, expected) for expected in tables}
    return {name: count for name, count in repaired.items() if count}


def _tables(
    connection: Connection, state: PublicState, documents: Mapping[int, str], retention: Retention
) -> Iterator[Expected]:
    tokens, operators = state.join_tokens, state.operators
    yield Expected(keys, state.keys, lambda key: _key_row(state.keys[key]))
    yield Expected(services, state.services, lambda name: {"seq": state.services[name]})
    yield Expected(
        join_tokens,
        tokens,
        lambda key: _members(tokens[key], "service", "created_at", "expires_at", "uses", "used", "withdrawn"),
        lambda key: retention.over(tokens[key].expires_at),
        {"sealed_key": b""},
    )
    yield Expected(
        operator_tokens,
        operators,
        lambda key: _members(operators[key], "role", "created_at", "expires_at", "secret_hash", "revoked"),
        lambda key: retention.over(operators[key].expires_at),
        unread=("person", "name"),
    )
    yield Expected(policies, state.policies, lambda name: _policy_row(connection, *state.policies[name]))
    settings = (_SETTINGS,) if state.settings[0] else ()
    yield Expected(domain_settings, settings, lambda _: _body_row(*state.settings))
    yield Expected(registry_documents, documents, lambda version: {"jws": documents[version]})


def _differences(connection: Connection, expected: Expected) -> Iterator[Difference]:
    name, seen = expected.table.name, set()
    for row in _rows(connection, expected):
        key = row[expected.key.name]
        seen.add(key)
        if key not in expected.keys:
            yield Difference.unexpected(name, key)
            continue
        for column, should in expected.wrong(key, row).items():
            yield Difference.of(name, key, column, row[column], should)
    for key in expected.missing(seen):
        yield Difference.missing(name, key)


def _repair(connection: Connection, expected: Expected) -> int:
    changed, seen = 0, set()
    for row in _rows(connection, expected):
        key = row[expected.key.name]
        seen.add(key)
        if key not in expected.keys:
            connection.execute(delete(expected.table).where(expected.key == key))
            changed += 1
        elif wrong := expected.wrong(key, row):
            connection.execute(update(expected.table).where(expected.key == key).values(**wrong))
            changed += 1
    missing = expected.missing(seen)
    for first in range(0, len(missing), _PAGE):
        page = missing[first : first + _PAGE]
        new = [{expected.key.name: key, **expected.row(key), **expected.unknown} for key in page]
        connection.execute(insert(expected.table), new)
    return changed + len(missing)


def _rows(connection: Connection, expected: Expected) -> Iterator[Mapping[str, Any]]:
    """All rows of the table, read page by page."""
    columns = (column for column in expected.table.c if column.name not in expected.unread)
    page = select(*columns).order_by(expected.key).limit(_PAGE)
    found = connection.execute(page).mappings().all()
    while found:
        yield from found  # type: ignore[misc]
        found = connection.execute(page.where(expected.key > found[-1][expected.key.name])).mappings().all()


def _key_row(record: KeyRecord) -> dict[str, Any]:
    names = (
        "service",
        "spki",
        "admitted_seq",
        "active_from",
        "active_until",
        "expires_at",
        "revoked_at",
        "revoked_seq",
    )
    voucher = record.admitted_by.get("kid")
    by = canonical_json(dict(record.admitted_by)).decode("utf-8")
    vouched_by = None if voucher is None else split_kid(voucher)[1]
    return {**_members(record, *names), "admitted_by": by, "vouched_by": vouched_by}


def _policy_row(connection: Connection, seq: int, policy: CallPolicy | None) -> dict[str, Any]:
    """The entry of a restricted policy has only a digest. The policy itself is in the entry's evidence, unless it was
    lost; altered evidence is reported with its entry."""
    if policy is None:
        evidence = ledger.evidence(connection, seq)
        if evidence is None:
            return {"seq": seq, "body": LOST}
        try:
            [entry] = ledger.read_some(connection, [seq])
            policy = policy_in(entry, evidence)
        except (MalformedToken, InvalidName):
            return {"seq": seq}
    return _body_row(seq, policy)


def _body_row(seq: int, value: Any) -> dict[str, Any]:
    return {"seq": seq, "body": canonical_json(value.to_json()).decode("utf-8")}


def _members(value: object, *names: str) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}
