"""Every row of every public table, compared with what the entries amount to."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, Connection, Table, select

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
"""The body of a restricted policy that nobody knows any more: it was lost with a database."""
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


class Expected(NamedTuple):
    """What a table should hold: its primary keys, the compared columns of each row, which rows may be gone; and what a
    row that has to be made anew says in columns of which no entry speaks."""

    table: Table[Any]
    keys: Collection[Any]
    row: Callable[[Any], Mapping[str, Any]]
    may_be_gone: Callable[[Any], bool] = lambda _: False
    unknown: Mapping[str, Any] = {}

    @property
    def key(self) -> Column[Any]:
        """The primary key, which is one column in each of these tables."""
        [column] = self.table.primary_key.columns
        return column


def compare(
    connection: Connection, state: PublicState, documents: Mapping[int, str], retention: Retention
) -> Iterator[Difference]:
    """Every difference. ``documents`` are the root-signed ones, by version."""
    for expected in tables(connection, state, documents, retention):
        yield from _differences(connection, expected)


def tables(
    connection: Connection, state: PublicState, documents: Mapping[int, str], retention: Retention
) -> Iterator[Expected]:
    """What each public table should hold; for `compare`, and for whoever makes it so."""
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
    )
    yield Expected(policies, state.policies, lambda name: _policy_row(connection, *state.policies[name]))
    settings = (_SETTINGS,) if state.settings[0] else ()
    yield Expected(domain_settings, settings, lambda _: _body_row(*state.settings))
    yield Expected(registry_documents, documents, lambda version: {"jws": documents[version]})


def _differences(connection: Connection, expected: Expected) -> Iterator[Difference]:
    seen = set()
    for row in rows(connection, expected):
        key = row[expected.key.name]
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


def rows(connection: Connection, expected: Expected) -> Iterator[Mapping[str, Any]]:
    """All rows that the table has, a page at a time."""
    page = select(expected.table).order_by(expected.key).limit(_PAGE)
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
    """Of a restricted policy the entry has a digest only. What it is of lies beside, unless it was lost; where that was
    altered, its entry is reported."""
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
