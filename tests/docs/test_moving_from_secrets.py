"""docs/how-to/moving-from-secrets.md: both checks, one after the other."""

from typing import Any

import pytest
import responses
from flask import Flask

from peerseal.testing import MemoryRegistry, SignedClient
from tests.docs.pages import named_blocks

BLOCKS = named_blocks("docs/how-to/moving-from-secrets.md")
SECRET = {"X-Api-Key": "s3cret"}


def names_of(program: str) -> dict[str, Any]:
    """What a program of the page defines."""
    names: dict[str, Any] = {"__name__": program.removesuffix(".py")}
    exec(BLOCKS[program], names)
    return names


@pytest.fixture
def reporting(peerseal_registry: MemoryRegistry) -> Flask:
    """The callee of the second step."""
    return names_of("billing.py")["create_app"](peerseal_registry.identity("billing"), "s3cret")


@pytest.fixture
def deciding(peerseal_registry: MemoryRegistry) -> Flask:
    """The callee of the fourth step."""
    return names_of("billing.py")["create_app"](peerseal_registry.identity("billing"), "s3cret", report_only=False)


def test_a_secret_is_enough_while_the_callee_reports(reporting: Flask) -> None:
    assert reporting.test_client().get("/invoices/7", headers=SECRET).json == {"invoice": "7"}
    assert set(reporting.auth.refusals) == {"missing_token"}


def test_a_signature_is_enough_too(reporting: Flask, signed_client: SignedClient) -> None:
    client = signed_client(reporting.test_client(), "shop", "billing")
    assert client.get("/invoices/7").json == {"invoice": "7"}
    assert reporting.auth.refusals == {}


def test_neither_is_not_enough(reporting: Flask, signed_client: SignedClient) -> None:
    assert reporting.test_client().get("/invoices/7").status_code == 401
    assert signed_client(reporting.test_client(), "stranger", "billing").get("/invoices/7").status_code == 401


def test_in_the_end_a_signature_alone_counts(deciding: Flask, signed_client: SignedClient) -> None:
    assert deciding.test_client().get("/invoices/7", headers=SECRET).json["code"] == "missing_token"
    assert signed_client(deciding.test_client(), "shop", "billing").get("/invoices/7").json == {"invoice": "7"}


@pytest.fixture
def session(peerseal_registry: MemoryRegistry) -> Any:
    return names_of("shop.py")["billing_session"](peerseal_registry.identity("shop"), "s3cret")


def test_a_caller_sends_the_secret_with_each_signed_call(session: Any) -> None:
    with responses.RequestsMock() as http:
        sent = http.get("http://billing:8080/invoices/7", json={})
        session.get("/invoices/7")
        headers = sent.calls[0].request.headers
    assert headers["X-Api-Key"] == "s3cret"
    assert headers["Authorization"].startswith("Bearer ")
