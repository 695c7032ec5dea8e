"""Libraries that replace HTTP in tests, and the sessions of services that use them."""

import httpx
import pytest
import requests_mock
import responses
import respx

from peerseal import Identity, Verifier
from peerseal.requests import PeerSession
from peerseal.testing import MemoryRegistry, sign_calls

URL = "http://billing:8080/invoices/7?full=1"


@pytest.fixture
def caller(peerseal_registry: MemoryRegistry) -> Identity:
    return peerseal_registry.identity("shop")


@pytest.fixture
def session(caller: Identity) -> PeerSession:
    return caller.session("billing", "http://billing:8080", sleep=lambda _: None)


def caller_of(registry: MemoryRegistry, authorization: str, body: bytes, content_type: str) -> str:
    """The service that signed a request, as the callee finds it."""
    verifier = Verifier(registry, audience="billing", allow={"*": ()}, clock=registry.clock)
    token, headers = authorization.removeprefix("Bearer "), {"content-type": content_type}
    target = "/invoices/7?full=1"
    return verifier.verify(token, method="POST", target=target, body=body, headers=headers).service


@responses.activate
def test_responses_shows_signed_requests(peerseal_registry: MemoryRegistry, session: PeerSession) -> None:
    responses.post(URL, json={"invoice": 7})
    assert session.post("/invoices/7?full=1", json=[1]).json() == {"invoice": 7}
    sent = responses.calls[0].request
    signed = sent.headers["Authorization"], sent.body, sent.headers["Content-Type"]
    assert caller_of(peerseal_registry, *signed) == "shop"


@responses.activate
def test_a_session_tries_again_and_signs_each_attempt(session: PeerSession) -> None:
    responses.get(URL, status=503)
    responses.get(URL, json={"invoice": 7})
    assert session.get("/invoices/7?full=1").json() == {"invoice": 7}
    assert len({call.request.headers["Authorization"] for call in responses.calls}) == 2


def test_requests_mock_answers_in_place_of_the_adapter_that_signs(session: PeerSession) -> None:
    with requests_mock.Mocker() as mocker:
        mocker.post(URL, json={"invoice": 7})
        assert session.post("/invoices/7?full=1", json=[1]).json() == {"invoice": 7}
    (sent,) = mocker.request_history
    assert (sent.json(), sent.headers.get("Authorization")) == ([1], None)


@respx.mock
def test_respx_shows_signed_requests(peerseal_registry: MemoryRegistry, caller: Identity) -> None:
    route = respx.post(URL).respond(json={"invoice": 7})
    with sign_calls(httpx.Client(), caller, "billing") as client:
        assert client.post(URL, json=[1]).json() == {"invoice": 7}
    sent = route.calls[0].request
    signed = sent.headers["authorization"], sent.content, sent.headers["content-type"]
    assert caller_of(peerseal_registry, *signed) == "shop"
