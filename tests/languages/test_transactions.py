"""Our edge mints transactions, each peer verifies them, and forwards them to a service of ours."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import peerseal
from tests.languages.conftest import Peer, send, settings_of, started
from tests.support.issuer import Issuer
from tests.support.processes import Server
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = [pytest.mark.languages, pytest.mark.e2e, pytest.mark.slow]

USER = "ada@example.com"
AUDIENCE = "https://orders.example.com"
TARGET = "/greetings/ada"

Mint = Callable[..., peerseal.Transaction]
"""Makes a transaction of the user with these scopes."""


def allow_minters(domain: Stack, issuer: Issuer, *minters: str) -> None:
    file = domain.root / "settings.json"
    login = {"issuer": issuer.url, "audience": AUDIENCE, "jwks": issuer.jwks}
    file.write_text(json.dumps({"minters": minters, "issuers": [login]}))
    domain.operate("domain", "set", str(file))


@pytest.fixture(scope="session")
def issuer(domain: Stack) -> Issuer:
    """The issuer of users' tokens, of which the domain's settings hold the keys. ``caller`` is the edge."""
    made = Issuer("https://login.example.com", alg="ES256")
    allow_minters(domain, made, "caller")
    return made


@pytest.fixture
def mint(caller: peerseal.Identity, issuer: Issuer) -> Mint:
    """The edge mints for a user who may do everything."""
    everything = "greetings:read read profile"
    user = peerseal.UserVerifier(caller.trust).verify(issuer.token(USER, AUDIENCE, scope=everything))
    return lambda *scopes: caller.mint_transaction(user, scope=scopes)


def call_in(service: Server, caller: peerseal.Identity, transaction: peerseal.Transaction | None) -> tuple[int, Any]:
    """A call by one of our sessions: the status, and the answer."""
    with caller.session(service.name, service.url) as session, peerseal.carrying(transaction):
        answer = session.get(TARGET)
        return answer.status_code, answer.json()


def test_a_peer_answers_in_a_users_transaction(service: Server, caller: peerseal.Identity, mint: Mint) -> None:
    expected = {"hello": "ada", "caller": "caller", "user": USER}
    assert call_in(service, caller, mint("greetings:read", "profile")) == (200, expected)
    assert call_in(service, caller, None) == (200, {"hello": "ada", "caller": "caller"})


@pytest.mark.parametrize("scopes", [(), ("profile", "read")], ids=["none", "others"])
def test_a_peer_needs_a_scope_of_the_transaction_and_of_the_caller(
    service: Server, caller: peerseal.Identity, mint: Mint, scopes: tuple[str, ...]
) -> None:
    status, problem = call_in(service, caller, mint(*scopes))
    assert (status, problem["code"]) == (403, "insufficient_scope")


def test_a_peer_refuses_a_transaction_token_that_the_request_does_not_bind(
    service: Server, caller: peerseal.Identity, mint: Mint
) -> None:
    first, second = mint("greetings:read").carry(), mint("greetings:read").carry()

    def told(bound: Mapping[str, str], sent: Mapping[str, str]) -> tuple[int, str]:
        token = caller.sign_request(service.name, method="POST", target=TARGET, headers=bound)
        return send(service.url + TARGET, token, b"", sent)

    assert told({"txn-token": first}, {"txn-token": first})[0] == 200
    refused = (401, "bad_transaction_token")
    assert told({"txn-token": first}, {"txn-token": second}) == refused
    assert told({"txn-token": first}, {}) == refused
    assert told({}, {"txn-token": first}) == refused
    altered = f"{first[:-4]}AAAA"
    assert told({"txn-token": altered}, {"txn-token": altered}) == refused


def test_a_peer_learns_which_services_may_mint(
    service: Server, caller: peerseal.Identity, mint: Mint, domain: Stack, issuer: Issuer
) -> None:
    transaction = mint("greetings:read")

    def wait_for(status: int) -> None:
        until(lambda: call_in(service, caller, transaction)[0] == status, 60, what=str(status), every=0.3)

    assert call_in(service, caller, transaction)[0] == 200
    allow_minters(domain, issuer, "another")
    try:
        wait_for(401)
        assert call_in(service, caller, transaction)[1]["code"] == "bad_transaction_token"
        assert call_in(service, caller, None)[0] == 200
    finally:
        allow_minters(domain, issuer, "caller")
    wait_for(200)


def test_a_peer_forwards_a_transaction_to_our_callee(
    peer: Peer, domain: Stack, callee: Server, caller: peerseal.Identity, mint: Mint
) -> None:
    settings = settings_of(domain, "client-service", f"{peer.language}-in-between")
    between = started(peer, domain, "client-service", settings, "resource-service", f"{callee.url}/orders/7")

    def next_answer(transaction: peerseal.Transaction | None) -> tuple[str, Any]:
        """What our callee said to the peer."""
        status, answer = call_in(between, caller, transaction)
        assert status == 200, answer
        code, _, body = answer["next"].partition(" ")
        return code, json.loads(body)

    expected = {"caller": "client-service", "path": "orders/7"}
    assert next_answer(mint("greetings:read", "read")) == ("200", {**expected, "user": USER})
    assert next_answer(None) == ("200", expected)
    code, problem = next_answer(mint("greetings:read"))
    assert (code, problem["code"]) == ("403", "insufficient_scope")
