"""npm's jose and jwks-rsa read our request tokens with the registry's ``jwks.json`` over HTTP, and the other way."""

from typing import Any

import pytest

import peerseal
from peerseal.protocol.tokens.request import REQUEST_TYP
from tests.judges.conftest import CALLEE, Caller, Node, accepted, tampered
from tests.support.stack import DOMAIN

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def ask(node: Node, judge: str, caller: Caller, token: str, **changes: Any) -> dict[str, Any]:
    expected = {
        "jwks": caller.jwks_url,
        "issuer": caller.identity.id,
        "audience": f"{DOMAIN}/{CALLEE}",
        "typ": REQUEST_TYP,
        "algorithms": ["RS256", "ES256"],
    }
    return node.ask(judge, **{"token": token, **expected, **changes})


@pytest.mark.parametrize("judge", ["jose", "jwks-rsa"])
def test_a_request_token_verifies_against_the_registrys_jwks(node: Node, judge: str, caller: Caller) -> None:
    answer = ask(node, judge, caller, caller.token())
    assert answer["header"] == caller.header
    assert answer["payload"]["iss"] == answer["payload"]["sub"] == caller.identity.id
    assert answer["payload"]["aud"] == f"{DOMAIN}/{CALLEE}"


@pytest.mark.parametrize("judge", ["jose", "jwks-rsa"])
def test_a_tampered_token_does_not(node: Node, judge: str, caller: Caller) -> None:
    assert "refused" in ask(node, judge, caller, tampered(caller.token()))


def test_another_audience_issuer_or_type_is_refused_there_too(node: Node, caller: Caller) -> None:
    token = caller.token()
    for changes in (
        {"audience": f"{DOMAIN}/other"},
        {"issuer": f"{DOMAIN}/other"},
        {"typ": "JWT"},
        {"algorithms": ["PS256"]},
    ):
        assert "refused" in ask(node, "jose", caller, token, **changes)


def test_what_npm_jose_signs_is_accepted(node: Node, caller: Caller, verifier: peerseal.Verifier) -> None:
    pem = caller.key.to_pem().decode()
    answer = node.ask("sign", pem=pem, header=caller.header, claims=caller.claims())
    assert accepted(verifier, answer["token"]).id == caller.identity.id
