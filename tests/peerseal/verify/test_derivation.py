"""A login token without the event's scope, from the edge to the invoice: a real issuer's token, a derived event, its
consumer, and the call that it makes in the user's name."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import flask
import pytest

import peerseal
from peerseal.errors import MalformedToken
from peerseal.flask import PeerAuth
from peerseal.protocol.policies import Derivation, DomainSettings, UserIssuer
from peerseal.testing import Clock, MemoryRegistry
from tests.support.issuer import Issuer, running_issuer

PAYLOAD = b'{"eventID":"e-1"}'
AUDIENCE, SCOPE, TOPIC = "jobs.example.com", "trigger_invoicing", "OrderCreated"
MINTERS = ["client-service", "invoicing"]


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer(alg="ES256") as issuer:
        yield issuer


@pytest.fixture
def registry(issuer: Issuer, clock: Clock) -> Iterator[MemoryRegistry]:
    with MemoryRegistry(clock=clock) as registry:
        registry.set_domain(
            minters=MINTERS,
            issuers=[UserIssuer(issuer.url, "edge")],
            derived_scopes=[{"minter": "client-service", "from": "orders:write", "to": [SCOPE]}],
        )
        yield registry


def cases(registry: MemoryRegistry) -> flask.Flask:
    """The service that the consumer asks for a user's case."""
    app = flask.Flask("cases")
    auth = PeerAuth(app, registry.identity("resource-service"), allow={"invoicing": {SCOPE}})

    @app.get("/cases/<number>")
    @auth.require(scope=SCOPE, transaction=True)
    def case(number: str) -> dict[str, Any]:
        transaction = peerseal.current_transaction()
        assert transaction is not None
        return {"case": number, "user": transaction.user, "scopes": sorted(transaction.scopes)}

    return app


def test_a_login_token_without_the_scope_yields_an_invoice(
    registry: MemoryRegistry, issuer: Issuer, clock: Clock
) -> None:
    edge, invoicing, callee = registry.identity("client-service"), registry.identity("invoicing"), cases(registry)
    users = peerseal.UserVerifier(edge.trust, clock=clock)

    user = users.verify(issuer.token("ada", "edge", now=clock(), scope="openid profile orders:write"))
    assert SCOPE not in user.scopes
    with peerseal.carrying(edge.mint_transaction(user, scope=["orders:write"])):
        headers = edge.sign_event(PAYLOAD, topic=TOPIC, audience=AUDIENCE, scope=SCOPE, event_id="e-1")

    clock.advance(6 * 24 * 3600)
    consumer = peerseal.EventVerifier(
        invoicing.trust, audience=AUDIENCE, allow={"client-service": {SCOPE}}, max_age=timedelta(days=7), clock=clock
    )
    event = consumer.verify(PAYLOAD, headers, topic=TOPIC)
    assert (event.user, event.scope, event.authentication["derived_from"]) == ("ada", SCOPE, "orders:write")
    transaction = invoicing.transaction_for_event(event)
    assert transaction is not None
    txn = {"txn-token": transaction.carry()}
    signed = invoicing.sign_request("resource-service", method="GET", target="/cases/7", headers=txn)
    answer = callee.test_client().get("/cases/7", headers={"Authorization": f"Bearer {signed}", **txn})
    assert (answer.status_code, answer.get_json()) == (200, {"case": "7", "user": "ada", "scopes": [SCOPE]})


def test_an_event_of_the_users_own_scope_asks_for_no_settings_at_its_consumer(
    registry: MemoryRegistry, issuer: Issuer, clock: Clock
) -> None:
    edge, trust = registry.identity("client-service"), registry.trust_store()
    user = peerseal.UserVerifier(edge.trust, clock=clock).verify(
        issuer.token("ada", "edge", now=clock(), scope=f"orders:write {SCOPE}")
    )
    with peerseal.carrying(edge.mint_transaction(user, scope=[SCOPE])):
        headers = edge.sign_event(PAYLOAD, topic=TOPIC, audience=AUDIENCE, scope=SCOPE, event_id="e-1")
    consumer = peerseal.EventVerifier(
        trust, audience=AUDIENCE, allow={"client-service": {SCOPE}}, max_age=timedelta(days=7), clock=clock
    )
    asked = registry.calls["GET /v1/domain.jwt"]
    assert consumer.verify(PAYLOAD, headers, topic=TOPIC).user == "ada"
    assert registry.calls["GET /v1/domain.jwt"] == asked


# ---- as the settings say it

ID = "acme.internal/client-service"
HONEST: dict[str, Any] = {"minter": ID, "from": "orders:write", "to": ["b", "a"]}


def settings(derived_scopes: Any, **more: Any) -> DomainSettings:
    return DomainSettings.from_json({"minters": [ID], "issuers": [], "derived_scopes": derived_scopes, **more})


def test_settings_with_derived_scopes_have_one_spelling() -> None:
    read = settings([{**HONEST, "from": "z"}, HONEST])
    assert [one["from"] for one in read.to_json()["derived_scopes"]] == ["orders:write", "z"]
    assert read.derived_scopes[0] == Derivation(ID, "orders:write", frozenset(("a", "b")))
    assert read.to_json()["derived_scopes"][0]["to"] == ["a", "b"]
    assert DomainSettings.from_json(read.to_json()) == read
    assert "derived_scopes" not in DomainSettings().to_json()


def test_a_client_of_the_exchange_may_have_a_derivation() -> None:
    client = "acme.internal/legacy"
    exchange = {client: {AUDIENCE: ["a"]}}
    assert settings([{**HONEST, "minter": client}], exchange=exchange).sources(client, "a") == {"orders:write"}


@pytest.mark.parametrize(
    ("derived_scopes", "says"),
    [
        ({}, "claim derived_scopes"),
        (["orders:write"], "derived_scopes[0]: expected an object with exactly the members minter, from and to"),
        ([{**HONEST, "scope": "a"}], "derived_scopes[0]: expected an object with exactly"),
        ([HONEST, {**HONEST, "minter": 1}], "derived_scopes[1]: claim minter"),
        ([{**HONEST, "minter": "client-service"}], "derived_scopes[0]: not a service id: 'client-service'"),
        (
            [{**HONEST, "minter": "acme.internal/other"}],
            "acme.internal/other, expected a service of minters or a client",
        ),
        ([{**HONEST, "minter": "acme.internal/registry"}], "expected a service of minters or a client of exchange"),
        ([{**HONEST, "from": "two scopes"}], "derived_scopes[0]: not a scope: 'two scopes'"),
        ([{**HONEST, "from": ["orders:write"]}], "derived_scopes[0]: not a scope"),
        ([{**HONEST, "to": "a"}], "derived_scopes[0]: scopes are not a list"),
        ([{**HONEST, "to": []}], "to has 0 scopes, expected 1 to 20"),
        ([{**HONEST, "to": [f"s{n}" for n in range(21)]}], "to has 21 scopes, expected 1 to 20"),
        ([{**HONEST, "to": ["a", "a"]}], "derived_scopes[0]: scopes are not a list of different texts"),
        ([HONEST, {**HONEST, "to": ["c"]}], "two members have the same minter and from"),
        (
            [{**HONEST, "to": ["orders:write"]}],
            "orders:write is derived (to) and a source (from); chains are not allowed",
        ),
        ([HONEST, {**HONEST, "from": "a", "to": ["c"]}], "a is derived (to) and a source (from); chains"),
        ([{**HONEST, "from": f"s{n}"} for n in range(51)], "51 members, expected 50 at most"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_no_derivation_is_refused_by_name(derived_scopes: Any, says: str) -> None:
    with pytest.raises(MalformedToken) as refused:
        settings(derived_scopes)
    assert says in str(refused.value)
