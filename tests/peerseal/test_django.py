"""A Django project under the WSGI adapter, at a real server: views, middleware, parsers, streams."""

import io
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from django.core.wsgi import get_wsgi_application
from werkzeug.serving import make_server

import peerseal
from peerseal import Identity, User, carrying
from peerseal.requests import PeerSession
from peerseal.testing import MemoryRegistry
from peerseal.wsgi import PEER, PUBLIC, Need, PeerAuth
from tests.support.django_site.middleware import seen
from tests.support.wsgi import called, environ_of

NEEDS = {
    "/healthz": PUBLIC,
    "/profiles": Need("read"),
    "/orders": {"GET": Need("read"), "POST": Need("write")},
    "/uploads": {"POST": Need("write")},
    "/export": Need("read"),
    "/file": Need("read"),
    "/late": Need("read"),
    "/late-stream": Need("read"),
    "/fails": Need("read"),
}


@pytest.fixture
def auth(registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch) -> PeerAuth:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.support.django_site.settings")
    seen.clear()
    allow = {"client": {"read", "write"}}
    return PeerAuth(get_wsgi_application(), registry.identity("callee"), allow=allow, needs=NEEDS)


@pytest.fixture
def url(auth: PeerAuth) -> Iterator[str]:
    """Where the project is served."""
    server = make_server("127.0.0.1", 0, auth, threaded=True)
    serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture
def session(client: Identity, url: str) -> Iterator[PeerSession]:
    with client.session("callee", url, retries=0, timeout=20, deadline=20) as session:
        yield session


def test_a_view_has_the_caller_as_request_peer(session: PeerSession) -> None:
    answer = session.get("/profiles/42/", params={"q": "ü/%"})
    assert answer.json() == {"caller": "client", "user": None, "number": 42, "q": "ü/%"}


def test_a_view_works_for_the_user_of_the_call(session: PeerSession, client: Identity) -> None:
    user = User("ada", "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    with carrying(client.mint_transaction(user, scope=["read"])):
        assert session.get("/profiles/42/").json()["user"] == "ada"
    assert session.get("/profiles/42/").json()["user"] is None


def test_the_middleware_of_the_project_runs_after_the_check_and_knows_the_caller(
    session: PeerSession, url: str
) -> None:
    assert requests.get(f"{url}/profiles/42/").status_code == 401
    assert seen == []
    session.get("/profiles/42/")
    requests.get(f"{url}/healthz")
    assert seen == [("/profiles/42/", "client"), ("/healthz", None)]


def test_a_refusal_is_a_problem_document(url: str) -> None:
    answer = requests.get(f"{url}/nothing/here")
    assert (answer.status_code, answer.json()["code"]) == (401, "missing_token")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_public_path_is_open_and_has_no_caller(session: PeerSession, url: str) -> None:
    assert requests.get(f"{url}/healthz").text == "ok"
    assert session.get("/healthz").text == "ok"


Body = Callable[[], dict[str, Any]]


@pytest.mark.parametrize(
    "body",
    [
        lambda: {"json": {"items": ["ü"]}},
        lambda: {"data": io.BytesIO(b'{"items": ["\xc3\xbc"]}')},
    ],
)
def test_a_view_parses_the_body_that_was_checked(session: PeerSession, body: Body) -> None:
    answer = session.post("/orders/", **body())
    assert (answer.status_code, answer.json()) == (201, {"caller": "client", "order": {"items": ["ü"]}})


def test_a_view_parses_a_chunked_body(client: Identity, url: str) -> None:
    body = b'{"items": []}'
    token = client.sign_request("callee", method="POST", target="/orders/", body=body)
    chunks = (bytes([byte]) for byte in body)
    answer = requests.post(f"{url}/orders/", data=chunks, headers={"Authorization": f"Bearer {token}"}, timeout=20)
    assert answer.json()["order"] == {"items": []}


def test_an_altered_body_is_not_parsed(client: Identity, url: str) -> None:
    token = client.sign_request("callee", method="POST", target="/orders/", body=b"{}")
    answer = requests.post(f"{url}/orders/", data=b"[]", headers={"Authorization": f"Bearer {token}"}, timeout=20)
    assert answer.json()["code"] == "wrong_binding"
    assert seen == []


def test_a_view_parses_an_uploaded_file(session: PeerSession) -> None:
    answer = session.post("/uploads/", data={"note": "ü"}, files={"file": ("a.bin", b"\0" * 100_000)})
    assert answer.json() == {"note": "ü", "size": 100_000}


def test_two_authorization_headers_are_refused(client: Identity, url: str) -> None:
    token = client.sign_request("callee", method="GET", target="/profiles/42/")
    answer = requests.get(f"{url}/profiles/42/", headers={"Authorization": f"Bearer {token}, Bearer {token}"})
    assert answer.json()["code"] == "malformed_token"


def test_a_redirect_of_the_project_is_signed_again(session: PeerSession) -> None:
    answer = session.get("/profiles/42")
    assert answer.json()["number"] == 42
    assert [old.status_code for old in answer.history] == [301]


def test_a_stream_keeps_its_caller(session: PeerSession) -> None:
    assert session.get("/export/").text == "0 client\n1 client\n2 client\n"


def test_a_file_is_served(session: PeerSession) -> None:
    assert session.get("/file/").content == b"content"


@pytest.mark.parametrize("path", ["/late/", "/late-stream/"])
def test_a_scope_that_a_view_needs_late_is_refused_as_one_that_the_path_needs(
    session: PeerSession, auth: PeerAuth, path: str
) -> None:
    answer = session.get(path)
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert auth.refusals == {"insufficient_scope": 1}


def test_an_error_of_a_view_is_djangos_answer(session: PeerSession) -> None:
    assert session.get("/fails/").status_code == 500


def test_the_page_runs(registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.support.django_site.settings")
    page = (Path(peerseal.__file__).parents[1] / "docs/how-to/django.md").read_text()
    project, middleware, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"given": registry.identity("callee")}
    exec(project.replace("peerseal.Identity.from_env().start()", "given"), names)
    assert called(names["application"], environ_of(target="/healthz")).body == b"ok"
    assert called(names["application"], environ_of(target="/profiles/1/")).status == 401
    exec(middleware, names)
    request = SimpleNamespace(META={PEER: "the caller"})
    assert names["PeerMiddleware"](lambda request: request.peer)(request) == "the caller"
