"""The shapes of transaction and event tokens: whatever JSON says, it is read or refused as malformed, and what is read
is what was written."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.policies import DomainSettings
from peerseal.protocol.tokens.event import EventToken, check_event_claims
from peerseal.protocol.tokens.transaction import TransactionToken, transaction_hash

JTI = "AAAAAAAAAAAAAAAAAAAAAA"
TRANSACTION = TransactionToken(
    issuer="acme.internal/edge",
    audience="acme.internal",
    user="ada",
    id="t-1",
    scopes=frozenset(("orders:write", "orders:read")),
    workload="acme.internal/edge",
    issued_at=1_800_000_000,
    expires_at=1_800_000_300,
    facts={"order": 7},
    authentication={"iss": "https://login.example.com", "jti": "u-1"},
)
EVENT = EventToken(
    issuer="acme.internal/edge",
    user="ada",
    audience="jobs.example.com",
    scope="trigger_invoicing",
    event_id="e-1",
    transaction_id="t-1",
    topic="OrderCreated",
    payload_hash="0" * 64,
    issued_at=1_800_000_000,
    expires_at=1_800_000_300,
    jti=JTI,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


def read_transaction(claims: dict[str, Any]) -> None:
    TransactionToken.read(canonical_json(claims))


READERS: dict[str, tuple[Callable[[dict[str, Any]], None], dict[str, Any]]] = {
    "transaction": (read_transaction, TRANSACTION.claims()),
    "event": (check_event_claims, EVENT.claims()),
    "exchanged event": (check_event_claims, {**EVENT.claims(), "act": {"sub": "acme.internal/legacy"}}),
}


@pytest.mark.parametrize(("read", "honest"), READERS.values(), ids=READERS)
@given(data=st.data())
def test_no_value_of_any_claim_ends_in_another_error(
    read: Callable[[dict[str, Any]], None], honest: dict[str, Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(honest)))
    claims = {**honest, name: data.draw(json_values.filter(_can_be_written))}
    try:
        read(claims)
    except MalformedToken:
        return
    assert type(claims[name]) is type(honest[name])


@pytest.mark.parametrize(("read", "honest"), READERS.values(), ids=READERS)
def test_a_claim_too_many_or_too_few_is_refused(read: Callable[[dict[str, Any]], None], honest: dict[str, Any]) -> None:
    read(dict(honest))
    with pytest.raises(MalformedToken):
        read({**honest, "cp": 1})  # cp is a text, in tokens that may have it
    for name in honest:
        fewer = {other: value for other, value in honest.items() if other != name}
        if "act" in honest and name in ("act", "topic", "event_payload_hash"):
            read(fewer)
        else:
            with pytest.raises(MalformedToken):
                read(fewer)


def test_a_transaction_token_says_what_was_written() -> None:
    assert TransactionToken.read(canonical_json(TRANSACTION.claims())) == TRANSACTION


@pytest.mark.parametrize(
    "changes",
    [
        {"scope": "a  b"},
        {"scope": "a a"},
        {"scope": ' a"b'},
        {"sub": ""},
        {"txn": "t 1"},
        {"txn": "t" * 201},
        {"tctx": {"x": "y" * 1100}},
        {"rctx": []},
        {"exp": 1.5},
    ],
    ids=str,
)
def test_what_is_no_transaction_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        read_transaction({**TRANSACTION.claims(), **changes})


def test_a_transaction_may_allow_nothing() -> None:
    nothing = {**TRANSACTION.claims(), "scope": ""}
    assert TransactionToken.read(canonical_json(nothing)).scopes == frozenset()


def test_a_text_that_is_no_token_has_no_hash() -> None:
    with pytest.raises(MalformedToken):
        transaction_hash("tökén")


# ---- who may exchange

GRANTED = {"acme.internal/legacy": {"jobs.example.com": ["trigger_invoicing"]}}


def test_settings_say_who_may_exchange_and_nothing_where_nobody_may() -> None:
    settings = DomainSettings.from_json({"minters": [], "issuers": [], "exchange": GRANTED})
    assert settings.exchange["acme.internal/legacy"]["jobs.example.com"] == {"trigger_invoicing"}
    assert DomainSettings.from_json(settings.to_json()) == settings
    assert "exchange" not in DomainSettings().to_json()


@pytest.mark.parametrize(
    "exchange",
    [
        [],
        {"legacy": {"jobs.example.com": ["x"]}},
        {"acme.internal/legacy": {}},
        {"acme.internal/legacy": {"acme.internal/callee": ["x"]}},
        {"acme.internal/legacy": {"jobs.example.com": "x"}},
        {"acme.internal/legacy": {"jobs.example.com": ["x", "x"]}},
        {"acme.internal/legacy": {"jobs.example.com": ["x y"]}},
    ],
    ids=str,
)
def test_what_is_no_grant_is_refused(exchange: Any) -> None:
    with pytest.raises((MalformedToken, InvalidName)):
        DomainSettings.from_json({"minters": [], "issuers": [], "exchange": exchange})


def _can_be_written(value: Any) -> bool:
    try:
        canonical_json(value)
    except UnicodeEncodeError:
        return False
    return True
