"""Attacks on derived scopes: a user's token with ``orders:write`` yields one event to have an order invoiced, and
nothing wider, at the edge, at its consumers, and at the services that these call. Each refusal has its code."""

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, NoReturn

import pytest

from peerseal import Event, EventVerifier, Identity, Transaction, TrustLimits, User, Verifier, carrying
from peerseal.errors import PeersealError, TrustUnavailable
from peerseal.protocol.policies import Derivation, DomainSettings
from peerseal.protocol.tokens.transaction import TRANSACTION_TYP, transaction_hash
from peerseal.testing import Clock, MemoryRegistry
from peerseal.verify.replay.guards import MemoryReplayGuard
from peerseal.verify.request import Peer
from tests.attacks import forge
from tests.attacks.forge import CALLER, DOMAIN, NOW, OTHER
from tests.attacks.test_event_tokens import (
    PAYLOAD,
    REGISTRY,
    SCOPE,
    TOPIC,
    Consumer,
    event_claims,
    event_header,
    exchanged,
    trusting,
)
from tests.attacks.test_transaction_tokens import transaction_claims

WRITE, SHIPPING = "orders:write", "trigger_shipping"
LOGIN = "https://login.example.com"
SENT: dict[str, Any] = {"topic": TOPIC, "audience": "jobs.example.com", "event_id": "e-1"}
GRANTED = [{"minter": "client-service", "from": WRITE, "to": [SCOPE, SHIPPING]}]


# ---- at the edge


class Edge:
    """``client-service`` has the derivation, ``invoicing`` consumes its events and has none; both may mint."""

    def __init__(self, registry: MemoryRegistry, clock: Clock) -> None:
        self.registry, self.clock = registry, clock
        self.lay_down(GRANTED)
        quiet = TrustLimits(poll_interval=3600.0, wait=0.0)
        self.client, self.invoicing = (
            registry.identity(name, limits=quiet) for name in ("client-service", "invoicing")
        )

    def lay_down(self, derived_scopes: list[dict[str, Any]]) -> None:
        self.registry.set_domain(minters=["client-service", "invoicing"], derived_scopes=derived_scopes)

    def user(self, *scopes: str) -> User:
        return User("ada", LOGIN, frozenset(scopes or ("openid", "profile", WRITE)), "u-1", 2**40, {})

    def minted(self, by: Identity | None = None, scope: str = WRITE, **options: Any) -> Transaction:
        user = options.pop("user", self.user())
        return (by or self.client).mint_transaction(user, scope=[scope], **options)

    def signed(self, transaction: Transaction | None, scope: str = SCOPE, by: Identity | None = None) -> dict[str, str]:
        """An event's headers, signed in that transaction."""
        with carrying(transaction):
            return (by or self.client).sign_event(PAYLOAD, **SENT, scope=scope)

    def consumed(self, headers: dict[str, str]) -> Event:
        allow = {"client-service": {SCOPE, WRITE}, "invoicing": {SCOPE}}
        consumer = EventVerifier(
            self.invoicing.trust, audience="jobs.example.com", allow=allow, max_age=timedelta(days=7), clock=self.clock
        )
        return consumer.verify(PAYLOAD, headers, topic=TOPIC)

    def handling(self, headers: dict[str, str]) -> Transaction:
        """The transaction in which the consumer works on that event."""
        transaction = self.invoicing.transaction_for_event(self.consumed(headers))
        assert transaction is not None
        return transaction


@pytest.fixture
def edge() -> Iterator[Edge]:
    clock = Clock(1_800_000_000.0)
    with MemoryRegistry(clock=clock) as registry:
        yield Edge(registry, clock)


def test_a_users_scope_yields_an_event_of_the_derived_one_which_says_so(edge: Edge) -> None:
    transaction = edge.minted()
    event = edge.consumed(edge.signed(transaction))
    assert (event.user, event.scope, event.transaction_id) == ("ada", SCOPE, transaction.id)
    assert event.authentication == {"iss": LOGIN, "jti": "u-1", "derived_from": WRITE}


def test_a_scope_of_the_users_own_is_derived_from_nothing(edge: Edge) -> None:
    owned = edge.minted(user=edge.user(SCOPE, WRITE), scope=SCOPE)
    assert "derived_from" not in edge.consumed(edge.signed(owned)).authentication


def without_settings(edge: Edge) -> NoReturn:
    transaction = edge.minted()
    edge.registry.down = True
    edge.clock.advance(3601)
    edge.signed(transaction)
    raise AssertionError("signed")


def later(edge: Edge, seconds: int) -> dict[str, str]:
    transaction = edge.minted(lifetime=timedelta(minutes=15))
    edge.clock.advance(seconds)
    return edge.signed(transaction)


def after(edge: Edge, derived_scopes: list[dict[str, Any]]) -> dict[str, str]:
    """Signed once the operator laid down other derivations."""
    transaction = edge.minted()
    edge.lay_down(derived_scopes)
    edge.client.trust.refresh()
    return edge.signed(transaction)


def for_another_purpose(edge: Edge, scope: str) -> dict[str, str]:
    """Of what a derived event allows, by a consumer that was given a derivation, too."""
    given = {"minter": "invoicing", "from": WRITE, "to": [SCOPE, SHIPPING]}
    edge.lay_down([*GRANTED, given])
    return edge.signed(edge.handling(edge.signed(edge.minted())), scope, edge.invoicing)


def from_an_event_of_the_source(edge: Edge) -> dict[str, str]:
    """An event for ``orders:write`` itself is read days later: no user is at the edge then."""
    edge.lay_down([*GRANTED, {"minter": "invoicing", "from": WRITE, "to": [SCOPE]}])
    return edge.signed(edge.handling(edge.signed(edge.minted(), WRITE)), SCOPE, edge.invoicing)


def called_for_an_event_of_the_source(edge: Edge) -> dict[str, str]:
    """The same over a hop: the service that the consumer calls has a token of the transaction, which is young."""
    handled = edge.handling(edge.signed(edge.minted(), WRITE))
    edge.clock.advance(3 * 24 * 3600)
    return edge.signed(Called(edge).call(edge.invoicing, handled, WRITE).transaction)


AT_THE_EDGE: Mapping[str, tuple[Callable[[Edge], object], str]] = {
    "a transaction of the derived scope": (lambda e: e.minted(scope=SCOPE), "insufficient_scope"),
    "a transaction of both": (
        lambda e: e.client.mint_transaction(e.user(), scope=[WRITE, SCOPE]),
        "insufficient_scope",
    ),
    "a scope that is not derived": (lambda e: e.signed(e.minted(), "trigger_refund"), "unsignable_request"),
    "two derived scopes in one event": (lambda e: e.signed(e.minted(), f"{SCOPE} {SHIPPING}"), "unsignable_request"),
    "source and derived scope in one event": (lambda e: e.signed(e.minted(), f"{WRITE} {SCOPE}"), "unsignable_request"),
    "a user without the source": (
        lambda e: e.signed(e.minted(user=e.user("orders:read"), scope="orders:read")),
        "unsignable_request",
    ),
    "a transaction without the user's source": (
        lambda e: e.signed(e.minted(user=e.user(WRITE, "orders:read"), scope="orders:read")),
        "unsignable_request",
    ),
    "a minter without a derivation": (
        lambda e: e.signed(e.minted(e.invoicing), by=e.invoicing),
        "unsignable_request",
    ),
    "a service that is no minter": (
        lambda e: e.signed(e.minted(), by=e.registry.identity("billing")),
        "unsignable_request",
    ),
    "another user than the transaction's": (
        lambda e: _carried(e.minted(), lambda: e.client.sign_event(PAYLOAD, **SENT, scope=SCOPE, subject="grace")),
        "unsignable_request",
    ),
    "once the transaction has ended": (lambda e: later(e, 15 * 60 + 30), "unsignable_request"),
    "a derivation that was withdrawn": (lambda e: after(e, []), "unsignable_request"),
    "a derivation that became another's": (
        lambda e: after(e, [{"minter": "invoicing", "from": WRITE, "to": [SCOPE]}]),
        "unsignable_request",
    ),
    "a second event of the derived scope": (lambda e: for_another_purpose(e, SCOPE), "unsignable_request"),
    "an event derived from the derived scope": (lambda e: for_another_purpose(e, SHIPPING), "unsignable_request"),
    "derived from an event of the source": (from_an_event_of_the_source, "unsignable_request"),
    "derived where the consumer of such an event calls": (called_for_an_event_of_the_source, "unsignable_request"),
    "settings that cannot be had": (without_settings, "trust_unavailable"),
}


def _carried(transaction: Transaction, act: Callable[[], object]) -> object:
    with carrying(transaction):
        return act()


@pytest.mark.parametrize(("act", "code"), AT_THE_EDGE.values(), ids=AT_THE_EDGE)
def test_nothing_wider_is_signed_at_the_edge(edge: Edge, act: Callable[[Edge], object], code: str) -> None:
    with pytest.raises(PeersealError) as refused:
        act(edge)
    assert refused.value.code == code, refused.value


def test_the_derivation_lasts_as_long_as_the_transaction(edge: Edge) -> None:
    assert edge.consumed(later(edge, 15 * 60 + 29)).scope == SCOPE


CHAINS: Mapping[str, list[dict[str, Any]]] = {
    "to itself": [{"minter": "client-service", "from": WRITE, "to": [WRITE]}],
    "of one minter": [*GRANTED, {"minter": "client-service", "from": SCOPE, "to": ["admin"]}],
    "over the consumer": [*GRANTED, {"minter": "invoicing", "from": SCOPE, "to": ["admin"]}],
    "in a circle": [*GRANTED, {"minter": "invoicing", "from": SHIPPING, "to": [WRITE]}],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_no_settings_have_a_chain_of_derivations(edge: Edge, chain: list[dict[str, Any]]) -> None:
    with pytest.raises(PeersealError) as refused:
        edge.lay_down(chain)
    assert (refused.value.code, "chains are not allowed" in str(refused.value)) == ("malformed_token", True)


# ---- over HTTP


class Called:
    """A service that the consumer and the edge call: each may use both scopes, in a transaction that has them."""

    def __init__(self, edge: Edge) -> None:
        allow = {name: {SCOPE, WRITE, "profile"} for name in ("client-service", "invoicing")}
        trust = edge.registry.trust_store(limits=TrustLimits(poll_interval=3600.0, wait=0.0))
        self.trust = trust
        self.verifier = Verifier(trust, audience="resource-service", allow=allow, clock=edge.clock)

    def call(self, by: Identity, transaction: Transaction, scope: str) -> Peer:
        headers = {"txn-token": transaction.carry()}
        token = by.sign_request("resource-service", method="GET", target="/cases/7", headers=headers)
        return self.verifier.verify(token, method="GET", target="/cases/7", headers=headers, scope=scope)

    def refuses(self, by: Identity, transaction: Transaction, scope: str, code: str) -> None:
        with pytest.raises(PeersealError) as refused:
            self.call(by, transaction, scope)
        assert refused.value.code == code, refused.value


def test_the_edge_calls_nothing_with_what_it_may_derive_and_the_consumer_only_with_that(edge: Edge) -> None:
    called, transaction = Called(edge), edge.minted()
    called.refuses(edge.client, transaction, SCOPE, "insufficient_scope")
    handled = edge.handling(edge.signed(transaction))
    peer = called.call(edge.invoicing, handled, SCOPE)
    assert peer.transaction is not None
    assert peer.transaction.user == "ada"
    assert peer.transaction.scopes == {SCOPE}
    called.refuses(edge.invoicing, handled, WRITE, "insufficient_scope")
    called.refuses(edge.invoicing, handled, "profile", "insufficient_scope")


def test_a_withdrawn_derivation_is_refused_in_events_on_their_way_and_in_calls_for_them(edge: Edge) -> None:
    headers, called = edge.signed(edge.minted()), Called(edge)
    handled = edge.handling(headers)
    called.call(edge.invoicing, handled, SCOPE)
    edge.lay_down([])
    for trust in (edge.invoicing.trust, called.trust):
        trust.refresh()
    with pytest.raises(PeersealError) as refused:
        edge.consumed(headers)
    assert refused.value.code == "insufficient_scope"
    called.refuses(edge.invoicing, handled, SCOPE, "bad_transaction_token")
    edge.lay_down(GRANTED)
    edge.invoicing.trust.refresh()
    assert edge.consumed(headers).scope == SCOPE, "a dead letter that is sent again counts again"


def test_an_event_of_a_derived_scope_opens_no_http_endpoint(edge: Edge) -> None:
    token = edge.signed(edge.minted())["authorization"].removeprefix("Bearer ")
    with pytest.raises(PeersealError) as refused:
        Called(edge).verifier.verify(token, method="GET", target="/cases/7", scope=SCOPE)
    assert refused.value.code == "wrong_type"


# ---- what a minter claims


SETTINGS = DomainSettings(
    frozenset((CALLER, f"{DOMAIN}/invoicing")),
    derived_scopes=(Derivation(CALLER, WRITE, frozenset((SCOPE, "other_purpose"))),),
)
EVIDENCE = {"iss": LOGIN, "jti": "u-1", "derived_from": WRITE}


@pytest.fixture
def consumer() -> Consumer:
    consumer = Consumer()
    consumer.keys.domain_settings = SETTINGS
    return consumer


CLAIMED: Mapping[str, tuple[dict[str, Any], str]] = {
    "a scope that the settings do not derive": ({"scope": "trigger_refund"}, "insufficient_scope"),
    "a scope that the consumer does not take": ({"scope": "other_purpose"}, "insufficient_scope"),
    "a source that the settings do not name": ({"rctx": {**EVIDENCE, "derived_from": "profile"}}, "insufficient_scope"),
    "the scope itself as source": ({"rctx": {**EVIDENCE, "derived_from": SCOPE}}, "insufficient_scope"),
    "no scope as source": ({"rctx": {**EVIDENCE, "derived_from": ""}}, "insufficient_scope"),
    "null as source": ({"rctx": {**EVIDENCE, "derived_from": None}}, "insufficient_scope"),
    "a list of sources": ({"rctx": {**EVIDENCE, "derived_from": [WRITE]}}, "insufficient_scope"),
    "an object as source": ({"rctx": {**EVIDENCE, "derived_from": {WRITE: 1}}}, "insufficient_scope"),
    "for no user who was authenticated": ({"rctx": {"derived_from": WRITE}}, "insufficient_scope"),
    "several scopes": ({"scope": f"{SCOPE} other_purpose"}, "malformed_token"),
}


@pytest.mark.parametrize(("changes", "code"), CLAIMED.values(), ids=CLAIMED)
def test_a_consumer_refuses_a_derivation_that_the_domain_does_not_grant(
    consumer: Consumer, changes: dict[str, Any], code: str
) -> None:
    assert consumer.consume(consumer.token(rctx=EVIDENCE)).scope == SCOPE
    consumer.refuses(consumer.token(**{"rctx": EVIDENCE, **changes}), code)


def test_a_derivation_is_its_minters_only() -> None:
    consumer = Consumer(allow={"client-service": {SCOPE}, "billing": {SCOPE}})
    consumer.keys.domain_settings = SETTINGS
    other = forge.ec_key("other")
    token = forge.forge(event_header(other, OTHER), event_claims(OTHER, rctx=EVIDENCE), other.sign)
    consumer.refuses(token, "insufficient_scope")


def test_the_exchange_derives_for_its_client_only() -> None:
    consumer, key = trusting()
    consumer.keys.domain_settings = SETTINGS
    assert consumer.consume(exchanged(key, rctx=EVIDENCE)).publisher == "client-service"
    both, key = Consumer(allow={"billing": {SCOPE}, "registry": {SCOPE}}), forge.ec_key("registry")
    both.keys.add(REGISTRY, key)
    both.keys.domain_settings = SETTINGS
    both.refuses(exchanged(key, OTHER, rctx=EVIDENCE), "insufficient_scope")


def test_settings_that_cannot_be_had_are_no_verdict_and_only_derived_scopes_need_them(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> NoReturn:
        raise TrustUnavailable("no settings now")

    monkeypatch.setattr(consumer.keys, "settings", away)
    consumer.refuses(consumer.token(rctx=EVIDENCE), "trust_unavailable")
    assert consumer.consume(consumer.token()).scope == SCOPE


MINTED: Mapping[str, dict[str, Any]] = {
    "with the source, too": {"scope": f"{SCOPE} {WRITE}"},
    "with two derived scopes": {"scope": f"{SCOPE} other_purpose"},
    "with the source only": {"scope": WRITE},
    "with no scope": {"scope": ""},
    "with a scope that is not derived": {"scope": "trigger_refund"},
    "for an event of another service": {"req_wl": OTHER},
    "for an event of the consumer's own": {"req_wl": f"{DOMAIN}/invoicing"},
    "from a source that is not granted": {"rctx": {**EVIDENCE, "derived_from": "profile"}},
    "from something that is no scope": {"rctx": {**EVIDENCE, "derived_from": [WRITE]}},
    "for no user who was authenticated": {"rctx": {"derived_from": WRITE}},
}


class Callee:
    """A service that the consumer ``invoicing``, a minter, calls in transactions of its own making."""

    def __init__(self) -> None:
        self.keys, self.key = forge.Keys(), forge.ec_key("invoicing")
        self.keys.add(f"{DOMAIN}/invoicing", self.key)
        self.keys.domain_settings = SETTINGS
        allow = {"invoicing": {SCOPE, "other_purpose", "trigger_refund", WRITE}}
        guard = MemoryReplayGuard(clock=lambda: NOW)
        self.verifier = Verifier(self.keys, audience=forge.CALLEE, allow=allow, replay=guard, clock=lambda: NOW)

    def call(self, **changes: Any) -> Peer:
        me = f"{DOMAIN}/invoicing"
        honest = {"iss": me, "scope": SCOPE, "req_wl": CALLER, "rctx": EVIDENCE}
        minted = transaction_claims(**{**honest, **changes})
        token = forge.forge(forge.header(self.key, me, typ=TRANSACTION_TYP), minted, self.key.sign)
        request = forge.claims(me, tth=transaction_hash(token), jti=forge.JTI)
        return self.verifier.verify(
            forge.forge(forge.header(self.key, me), request, self.key.sign),
            method=forge.METHOD,
            target=forge.TARGET,
            body=forge.BODY,
            headers={**forge.HEADERS, "Txn-Token": token},
        )


@pytest.mark.parametrize("changes", MINTED.values(), ids=MINTED)
def test_a_callee_refuses_a_transaction_whose_derivation_the_domain_does_not_grant(changes: dict[str, Any]) -> None:
    callee = Callee()
    with pytest.raises(PeersealError) as refused:
        callee.call(**changes)
    assert refused.value.code == "bad_transaction_token", refused.value
    assert callee.call().scopes == {SCOPE}, "and nothing was recorded of the refused one"
