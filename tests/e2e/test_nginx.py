"""Odd paths at gunicorn, and at nginx before gunicorn, have the outcomes of docs/reference/on-the-wire.md."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from peerseal.requests import PeerSession
from tests.support.nginx import nginx_command
from tests.support.processes import LOOPBACK, Process, free_port, gunicorn
from tests.support.wire import Keys, RawAnswer, RawServer, Seen, Service, raw_request, raw_server
from tests.support.wire_app import CALLEE, CALLER

pytestmark = pytest.mark.e2e

DOC = Path(__file__).parents[2] / "docs/reference/on-the-wire.md"
SETUPS = ("gunicorn", "passed on", "stripped by `/`", "stripped raw")
HOST = "http://wire.test"

HTTP = """
    map $request_uri $rest {{ ~^/api(?<path>/.*)$ $path; }}
    upstream up {{ server {up}; }}
    upstream prefixed {{ server {prefixed}; }}
    upstream several {{ server {lossy}; server {up}; }}
    server {{ listen {balanced}; location / {{ proxy_pass http://several; }} }}
    server {{ listen {passed_on}; location / {{ proxy_pass http://up; proxy_next_upstream off; }} }}
    server {{
        listen {slash};
        location /api/ {{ proxy_pass http://prefixed/; }}
        location / {{ return 404; }}
    }}
    server {{
        listen {raw};
        location /api/ {{ proxy_pass http://prefixed$rest; }}
        location / {{ return 404; }}
    }}
"""


@dataclass(frozen=True)
class Place:
    """Where a set-up is called, and the prefix that its callers put before every path."""

    port: int
    prefix: str = ""

    @property
    def address(self) -> tuple[str, int]:
        return LOOPBACK, self.port

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}{self.prefix}"


def documented(setup: str) -> list[Any]:
    """``(target, outcome)`` of every row of the document's table."""
    table = re.search(r"<!-- table: targets -->\n(.*?)<!-- end -->", DOC.read_text(), re.DOTALL)
    assert table is not None
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table[1].strip().splitlines())
    column = head.index(setup)
    return [pytest.param(row[0].strip("`"), row[column].strip("`"), id=row[0].strip("`")) for row in rows]


@pytest.fixture(scope="module")
def caller() -> Service:
    return Service(CALLER, Keys(), now=int(time.time()))


Serve = Callable[..., Place]


@pytest.fixture(scope="module")
def serve(caller: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts the protected application under gunicorn."""
    with ExitStack() as running:

        def serve(**settings: str) -> Place:
            public = json.dumps(dict(caller.pair.public.jwk))
            server = gunicorn(
                "wire",
                "tests.support.wire_app:create_app()",
                port=free_port(),
                log=tmp_path_factory.mktemp("gunicorn") / "log",
                settings={"WIRE_CALLER": public, **settings},
                workers=1,
            )
            running.enter_context(server)
            server.wait_until_answers(server.url + settings.get("SCRIPT_NAME", "") + "/health")
            return Place(int(server.url.rpartition(":")[2]))

        yield serve


@pytest.fixture(scope="module")
def alone(serve: Serve) -> Place:
    return serve()


@pytest.fixture(scope="module")
def lossy() -> Iterator[RawServer]:
    """A server of the service between which and nginx the line breaks: tests say when."""
    with raw_server() as server:
        yield server


@pytest.fixture(scope="module")
def balanced() -> Place:
    """Where nginx has two servers for one service, `lossy` and `alone`."""
    return Place(free_port())


@pytest.fixture(scope="module")
def behind(
    serve: Serve, alone: Place, lossy: RawServer, balanced: Place, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Place]]:
    """The three set-ups with nginx, by their names in the document."""
    folder = tmp_path_factory.mktemp("nginx")
    passed_on, slash, raw = Place(free_port()), Place(free_port(), "/api"), Place(free_port(), "/api")
    places = {"up": alone, "prefixed": serve(WIRE_PREFIX="/api"), "passed_on": passed_on, "slash": slash, "raw": raw}
    places |= {"lossy": Place(lossy.port), "balanced": balanced}
    ports = {name: f"{LOOPBACK}:{place.port}" for name, place in places.items()}
    with Process("nginx", nginx_command(folder, HTTP.format(**ports)), log=folder / "log") as nginx:
        for place in (passed_on, slash, raw):
            nginx.wait_until_answers(f"{place.url}/health")
        yield {"passed on": passed_on, "stripped by `/`": slash, "stripped raw": raw}


def called(caller: Service, place: Place, target: str) -> RawAnswer:
    """The answer to this very target, with a token for its origin form."""
    if target.startswith("/"):
        target = place.prefix + target
    method = "OPTIONS" if target == "*" else "GET"
    signed = target.removeprefix(HOST).partition("#")[0]
    token = caller.sign_request(CALLEE, method=method, target=signed)
    return raw_request(place.address, target, method=method, headers={"Authorization": f"Bearer {token}"})


def outcome(answer: RawAnswer) -> str:
    """As the document writes it."""
    if answer.status == 200:
        assert json.loads(answer.body)["caller"] == CALLER
        return "accepted"
    return answer.code or str(answer.status)


@pytest.mark.parametrize(("target", "expected"), documented("gunicorn"))
def test_gunicorn_alone_answers_as_documented(caller: Service, alone: Place, target: str, expected: str) -> None:
    assert outcome(called(caller, alone, target)) == expected


@pytest.mark.nginx
@pytest.mark.parametrize("setup", SETUPS[1:])
def test_behind_nginx_it_answers_as_documented(caller: Service, behind: dict[str, Place], setup: str) -> None:
    rows = [row.values for row in documented(setup)]
    measured = {target: outcome(called(caller, behind[setup], target)) for target, _ in rows}
    assert measured == dict(rows)


@pytest.mark.nginx
def test_a_target_that_was_not_signed_is_never_accepted(caller: Service, behind: dict[str, Place]) -> None:
    """Whatever nginx makes of one spelling, a token for another spelling is not good for it."""
    spellings = ["/a/b", "/a%2Fb", "/a%2fb", "/a//b", "/a/./b", "/a/c/../b", "/a/%62", "/a/b?", "/a/b/"]
    for place in behind.values():
        for signed in spellings:
            for sent in spellings:
                token = caller.sign_request(CALLEE, target=place.prefix + signed)
                answer = raw_request(place.address, place.prefix + sent, headers={"Authorization": f"Bearer {token}"})
                if answer.status == 200:
                    routed = json.loads(answer.body)
                    assert (routed["raw"], routed["path"]) == (signed, unquote(signed.partition("?")[0]))


@pytest.mark.nginx
@pytest.mark.parametrize("setup", ["passed on", "stripped raw"])
def test_a_session_s_calls_pass_whatever_the_path(caller: Service, behind: dict[str, Place], setup: str) -> None:
    with PeerSession(caller, CALLEE, behind[setup].url) as session:
        session.trust_env = False
        for path in (
            "/a%2fb",
            "/a//b",
            "/a/../b",
            "/%7ea",
            "/café",
            "/a b;c",
            "/a?x=%2f&y=é#z",
            "/c/%2e%2e/b",
            "/a%25",
        ):
            response = session.put(path, data={"a": "ü"}, files={"file": b"content"})
            assert response.status_code == 200, (path, response.text)
            assert response.json()["form"] == {"a": "ü"}
            assert response.json()["files"] == {"file": "content"}


@pytest.mark.nginx
def test_nginx_lets_no_header_shift_the_routing(caller: Service, behind: dict[str, Place]) -> None:
    token = caller.sign_request(CALLEE, target="/admin/x")
    headers = {"Authorization": f"Bearer {token}", "SCRIPT_NAME": "/admin"}
    answer = raw_request(behind["passed on"].address, "/admin/x", headers=headers)
    assert json.loads(answer.body)["path"] == "/admin/x"


@pytest.mark.nginx
def test_two_authorization_headers_are_refused_behind_nginx_too(caller: Service, behind: dict[str, Place]) -> None:
    tokens = [("Authorization", f"Bearer {caller.sign_request(CALLEE, target='/a')}") for _ in range(2)]
    assert raw_request(behind["passed on"].address, "/a", headers=tuple(tokens)).status in (400, 401)


class NoAnswer:
    """What a server sends that goes down before it has answered."""

    def encode(self) -> bytes:
        return b""


@pytest.mark.nginx
@pytest.mark.usefixtures("behind")
def test_a_call_that_nginx_sends_to_two_servers_passes_with_a_second_token(
    caller: Service, alone: Place, balanced: Place, lossy: RawServer
) -> None:
    """The first has accepted it and goes down; nginx sends the same token to the second, which has heard of it."""
    statuses = []

    def accepted_and_lost(seen: Seen) -> NoAnswer:
        headers = {"Authorization": seen.authorization or ""}
        statuses.extend(raw_request(alone.address, seen.target, headers=headers).status for _ in range(2))
        return NoAnswer()

    lossy.script[:] = [accepted_and_lost] * 2
    with PeerSession(caller, CALLEE, balanced.url, retries=0) as session:
        session.trust_env = False
        answers = [session.get("/a") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert statuses == [200, 401], "accepted there, and refused as a copy"
    (lost,) = lossy.seen
    assert lost.claims["jti"] not in {answer.json()["jti"] for answer in answers}


def test_a_script_name_header_that_gunicorn_obeys_is_refused(caller: Service, alone: Place) -> None:
    """gunicorn on loopback routes /admin/x to the view of /x."""
    token = caller.sign_request(CALLEE, target="/admin/x")
    headers = {"Authorization": f"Bearer {token}", "SCRIPT_NAME": "/admin"}
    assert raw_request(alone.address, "/admin/x", headers=headers).code == "wrong_binding"


def test_two_authorization_headers_and_a_comma_in_one_are_refused(caller: Service, alone: Place) -> None:
    one, two = (("Authorization", f"Bearer {caller.sign_request(CALLEE, target='/a')}") for _ in range(2))
    assert raw_request(alone.address, "/a", headers=(one, two)).code == "malformed_token"
    joined = ("Authorization", f"{one[1]}, {two[1]}")
    assert raw_request(alone.address, "/a", headers=(joined,)).code == "malformed_token"
    assert raw_request(alone.address, "/a", headers=(one,)).status == 200


def test_an_application_served_below_a_prefix_needs_no_external_prefix(caller: Service, serve: Serve) -> None:
    place = replace(serve(SCRIPT_NAME="/api"), prefix="/api")
    for target in ("/a", "/a%2fb", "/a//b", "/a/../b", "/caf%c3%a9"):
        assert outcome(called(caller, place, target)) == "accepted"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", "hello"),
        (b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "hello"),
        (b"5\r\nhellO\r\n0\r\n\r\n", "wrong_binding"),
        (b"0\r\n\r\n", "wrong_binding"),
        (b"zz\r\nhello\r\n0\r\n\r\n", "content_unreadable"),
        (b"20000\r\n" + b"x" * 0x20000 + b"\r\n0\r\n\r\n", "content_too_large"),
    ],
)
def test_a_chunked_body_is_read_and_checked(caller: Service, alone: Place, body: bytes, expected: str) -> None:
    token = caller.sign_request(CALLEE, method="POST", target="/echo", body=b"hello")
    headers = {"Authorization": f"Bearer {token}", "Transfer-Encoding": "chunked"}
    answer = raw_request(alone.address, "/echo", method="POST", headers=headers, body=body)
    assert (answer.code or json.loads(answer.body)["body"]) == expected


def test_a_body_is_bound_on_every_method_and_compressed_as_it_came(caller: Service, alone: Place) -> None:
    for method in ("GET", "POST", "DELETE"):
        for signed, sent, expected in ((b"", b"x", "wrong_binding"), (b"x", b"", "wrong_binding"), (b"x", b"x", None)):
            token = caller.sign_request(CALLEE, method=method, target="/echo", body=signed)
            headers = {"Authorization": f"Bearer {token}", "Content-Length": str(len(sent))}
            answer = raw_request(alone.address, "/echo", method=method, headers=headers, body=sent)
            assert answer.code == expected
