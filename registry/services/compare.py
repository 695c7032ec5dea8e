"""Every row of every public table, compared with what the entries amount to."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, select

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.names import split_kid
from peerseal.protocol.policies import CallPolicy
from registry.domain.differences import Difference
from registry.domain.keys import KeyRecord
from registry.domain.policy import policy_in
from registry.domain.rebuild import PublicState
from registry.storage import ledger
from registry.storage.tables import (
    domain_settings,
    join_tokens,
    keys,
    operator_tokens,
    policies,
    registry_documents,
    services,
)

_PAGE = 1000
_SETTINGS = 1  # the primary key of the one row


@dataclass(frozen=True, slots=True)
class Retention:
    """What may be gone: tokens are deleted ``kept`` seconds after their end. ``now`` is the time of the comparison."""

    now: int
    kept: int

    def over(self, ended_at: int) -> bool:
        """Whether a token with that end may have been deleted."""
        return ended_at + self.kept <= self.now


class _Expected(NamedTuple):
    """What a table should hold: its primary keys, the compared columns of each row, and which rows may be gone."""

    table: Table[Any]
    keys: Collection[Any]
    row: Callable[[Any], Mapping[str, Any]]
    may_be_gone: Callable[[Any], bool] = lambda _: False


def compare(
    connection: Connection, state: PublicState, documents: Mapping[int, str], retention: Retention
) -> Iterator[Difference]:
    """Every difference. ``documents`` are the root-signed ones, by version."""
    for expected in _tables(connection, state, documents, retention):
        yield from _differences(connection, expected)


def _tables(
    connection: Connection, state: PublicState, documents: Mapping[int, str], retention: Retention
) -> Iterator[_Expected]:
    tokens, operators = state.join_tokens, state.operators
    yield _Expected(keys, state.keys, lambda key: _key_row(state.keys[key]))
    yield _Expected(services, state.services, lambda name: {"seq": state.services[name]})
    yield _Expected(
        join_tokens,
        tokens,
        lambda key: _members(tokens[key], "service", "expires_at", "uses", "used", "withdrawn"),
        lambda key: retention.over(tokens[key].expires_at),
    )
    yield _Expected(
        operator_tokens,
        operators,
        lambda key: _members(operators[key], "role", "expires_at", "secret_hash", "revoked"),
        lambda key: retention.over(operators[key].expires_at),
    )
    yield _Expected(policies, state.policies, lambda name: _policy_row(connection, *state.policies[name]))
    settings = (_SETTINGS,) if state.settings[0] else ()
    yield _Expected(domain_settings, settings, lambda _: _body_row(*state.settings))
    yield _Expected(registry_documents, documents, lambda version: {"jws": documents[version]})


def _differences(connection: Connection, expected: _Expected) -> Iterator[Difference]:
    [key_column] = expected.table.primary_key.columns
    seen = set()
    for row in _rows(connection, expected.table, key_column):
        key = row[key_column.name]
        seen.add(key)
        if key not in expected.keys:
            yield Difference.unexpected(expected.table.name, key)
            continue
        for column, should in expected.row(key).items():
            if row[column] != should:
                yield Difference.of(expected.table.name, key, column, row[column], should)
    for key in expected.keys:
        if key not in seen and not expected.may_be_gone(key):
            yield Difference.missing(expected.table.name, key)


def _rows(connection: Connection, table: Table[Any], key_column: Any) -> Iterator[Mapping[str, Any]]:
    """All rows, a page at a time."""
    page = select(table).order_by(key_column).limit(_PAGE)
    rows = connection.execute(page).mappings().all()
    while rows:
        yield from rows  # type: ignore[misc]
        rows = connection.execute(page.where(key_column > rows[-1][key_column.name])).mappings().all()


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
    """Of a restricted policy the entry has a digest only. What it is of lies beside; where that was altered, its entry
    is reported."""
    if policy is None:
        try:
            [entry] = ledger.read_some(connection, [seq])
            policy = policy_in(entry, ledger.evidence(connection, seq))
        except (MalformedToken, InvalidName):
            return {"seq": seq}
    return _body_row(seq, policy)


def _body_row(seq: int, value: Any) -> dict[str, Any]:
    return {"seq": seq, "body": canonical_json(value.to_json()).decode("utf-8")}


def _members(value: object, *names: str) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}
