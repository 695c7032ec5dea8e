"""A refusal has the id of its line in the log, and the line says what arrived and what was expected."""

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from flask import Flask

from peerseal import Identity
from peerseal.flask import PeerAuth
from peerseal.logs import RequestIds
from peerseal.requests import PeerRefusal, PeerSession, refusal_of
from peerseal.testing import MemoryRegistry
from tests.support.wire import Answer, RawServer, Service, raw_server

Refused = Callable[..., dict[str, str]]


def flask_app(registry: MemoryRegistry, **options: Any) -> Flask:
    app = Flask(__name__)
    PeerAuth(app, registry.identity("callee"), allow={"client": {"read"}}, **options)
    return app


def by_flask(registry: MemoryRegistry, target: str, headers: dict[str, str], **options: Any) -> dict[str, str]:
    """The headers of Flask's answer, by lower-case names."""
    answer = flask_app(registry, **options).test_client().get(target, headers=headers)
    assert answer.status_code in (401, 403)
    return {name.lower(): value for name, value in answer.headers}


def by_asgi(registry: MemoryRegistry, target: str, headers: dict[str, str], **options: Any) -> dict[str, str]:
    """The same of an ASGI application."""
    from peerseal.asgi import PeerAuth as AsgiAuth

    auth = AsgiAuth(_unreached, registry.identity("callee"), allow={"client": {"read"}}, **options)
    path, _, query = target.partition("?")
    sent: list[dict[str, Any]] = []
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query.encode()}
    scope["headers"] = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    asyncio.run(auth(scope, receive, send))
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


async def _unreached(*_: Any) -> None:
    raise AssertionError("the application was called")


@pytest.fixture(params=[by_flask, by_asgi])
def refused(request: pytest.FixtureRequest, registry: MemoryRegistry) -> Refused:
    """The headers of the answer to a refused GET."""

    def refused(target: str, token: str = "", request_id: str | None = None, **options: Any) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= {} if request_id is None else {"X-Request-Id": request_id}
        found: dict[str, str] = request.param(registry, target, headers, **options)
        return found

    return refused


def line(caplog: pytest.LogCaptureFixture) -> str:
    [message] = [record.getMessage() for record in caplog.records if record.name == "peerseal"]
    return message


def test_the_answer_has_the_id_of_the_line_in_the_log(refused: Refused, caplog: pytest.LogCaptureFixture) -> None:
    request_id = refused("/orders")["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", request_id)
    assert f"request {request_id};" in line(caplog)


def test_a_plain_id_of_the_caller_is_kept(refused: Refused, caplog: pytest.LogCaptureFixture) -> None:
    assert refused("/orders", request_id="req-42")["x-request-id"] == "req-42"
    assert "request req-42;" in line(caplog)


@pytest.mark.parametrize("given", ["a b", "x" * 129, "<script>", ""])
def test_any_other_id_is_replaced(refused: Refused, given: str) -> None:
    assert re.fullmatch("[0-9a-f]{16}", refused("/orders", request_id=given)["x-request-id"])


def test_the_line_has_method_target_and_both_audiences(
    refused: Refused, client: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    target = "/orders?access_token=secret"
    refused(target, client.sign_request("shop", method="GET", target=target))
    message = line(caplog)
    assert "secret" not in message
    assert message.startswith("refused: wrong_audience; 'GET' '/orders?...'; unverified caller 'test.internal/client'")
    assert "audience 'test.internal/shop', expected 'test.internal/callee'" in message
    assert "PEERSEAL_EXTERNAL_PREFIX" not in message


def test_a_stripped_prefix_is_hinted_at(refused: Refused, client: Identity, caplog: pytest.LogCaptureFixture) -> None:
    refused("/orders", client.sign_request("callee", method="GET", target="/api/orders"))
    message = line(caplog)
    assert message.startswith("refused: wrong_binding; 'GET' '/orders'; ")
    assert message.endswith("does a proxy strip a prefix? Set PEERSEAL_EXTERNAL_PREFIX to it (not set)")


def test_a_wrong_prefix_is_hinted_at_with_its_value(
    refused: Refused, client: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    token = client.sign_request("callee", method="GET", target="/api/orders")
    refused("/orders", token, external_prefix="/app")
    assert line(caplog).endswith("Set PEERSEAL_EXTERNAL_PREFIX to it (now /app)")


def test_no_line_has_the_token_and_long_values_are_cut(
    refused: Refused, client: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    target = f"/{'x' * 1000}"
    token = client.sign_request("shop", method="GET", target=target)
    refused(target, token)
    message = line(caplog)
    assert len(message) < 1200
    assert not any(segment in message for segment in token.split("."))


def test_an_application_with_request_ids_answers_with_one_id(registry: MemoryRegistry) -> None:
    app = flask_app(registry)
    app.wsgi_app = RequestIds(app.wsgi_app)  # type: ignore[method-assign] # as Flask has middleware put in
    answer = app.test_client().get("/orders", headers={"X-Request-Id": "req-42"})
    assert answer.headers.getlist("X-Request-Id") == ["req-42"]


# ---- what the caller sees


PROBLEM = b'{"type":"about:blank","title":"Forbidden","status":403,"code":"insufficient_scope"}'
HEADERS = {"Content-Type": "application/problem+json", "X-Request-Id": "req-42"}


@pytest.fixture
def session(caller: Service, server: RawServer) -> Iterator[PeerSession]:
    with PeerSession(caller, "callee", server.url, retries=0) as session:
        session.trust_env = False
        yield session


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_a_typed_value_and_the_body_can_still_be_read(
    session: PeerSession, server: RawServer, stream: bool
) -> None:
    server.script.append(Answer(403, HEADERS, PROBLEM))
    response = session.get("/orders", stream=stream)
    refusal = refusal_of(response)
    assert refusal == PeerRefusal(
        403, "insufficient_scope", "Forbidden", None, "req-42", "docs/reference/errors.md#a-call-is-refused"
    )
    assert response.peerseal_refusal is refusal  # type: ignore[attr-defined] # requests does not declare it
    assert response.content == PROBLEM


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, HEADERS, PROBLEM),
        Answer(403, {"Content-Type": "application/json"}, PROBLEM),
        Answer(404, HEADERS, b'{"title":"Not Found"}'),
        Answer(404, HEADERS, b'{"code":7}'),
        Answer(404, HEADERS, b'["code"]'),
        Answer(404, HEADERS, b"{"),
        Answer(404, HEADERS, b'{"code":"x","detail":"' + b"x" * 5000 + b'"}'),
        Answer(404),
    ],
)
def test_every_other_answer_has_none(session: PeerSession, server: RawServer, answer: Answer) -> None:
    server.script.append(answer)
    response = session.get("/orders")
    assert refusal_of(response) is None
    assert response.content == answer.body


def test_a_request_id_that_is_not_plain_is_left_out(session: PeerSession, server: RawServer) -> None:
    server.script.append(Answer(403, HEADERS | {"X-Request-Id": "<script>"}, PROBLEM))
    refusal = refusal_of(session.get("/orders"))
    assert refusal is not None
    assert refusal.request_id is None


def test_another_origin_refuses_nothing_in_the_name_of_the_callee(session: PeerSession) -> None:
    with raw_server(Answer(403, HEADERS, PROBLEM)) as other:
        assert session.get(f"{other.url}/orders").peerseal_refusal is None  # type: ignore[attr-defined] # as above


def test_an_answer_of_another_session_is_none() -> None:
    assert refusal_of(requests.Response()) is None
