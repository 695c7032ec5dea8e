"""One suite of requests at every server that people use with Python; docs/reference/servers.md has the outcomes."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.processes import BIN, LOOPBACK, ProcessFailed, Server, free_port
from tests.support.wire import Keys, RawAnswer, Service, raw_exchange, raw_request
from tests.support.wire_app import CALLEE, CALLER

pytestmark = [pytest.mark.e2e, pytest.mark.thorough]

DOC = Path(__file__).parents[2] / "docs/reference/servers.md"
APP = "tests.support.server_app"
CHUNKED = "Transfer-Encoding: chunked"


def chunks(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


CASES: dict[str, Callable[["Caller"], str]] = {
    "a signed GET with a query": lambda c: c.send("/a?b=1&c=%2f"),
    "the same token again": lambda c: c.again(),
    "another query than was signed": lambda c: c.send("/a?b=2", signed="/a?b=1"),
    "an escaped path": lambda c: c.send("/a%20b/%C3%A9"),
    "an escaped slash": lambda c: c.send("/a%2Fb"),
    "two slashes": lambda c: c.send("//a"),
    "dot segments": lambda c: c.send("/a/../b"),
    "an absolute target": lambda c: c.send("http://wire.test/a", signed="/a"),
    "a body with its length": lambda c: c.send("/a", body=b"hello"),
    "another body than was signed": lambda c: c.send("/a", body=b"hello", signed_body=b"hallo"),
    "a chunked body": lambda c: c.send("/a", body=b"hello", chunked=True),
    "spaces after a bound header": lambda c: c.send("/a", body=b"{}", kind="application/json \t"),
    "another content-type than was signed": lambda c: c.send("/a", body=b"{}", kind="text/plain", signed_kind="a/b"),
    "two Authorization headers": lambda c: c.twice("/a"),
    "no token": lambda c: c.bare("/a"),
    "no token, at a path that is not there": lambda c: c.bare("/nowhere/at/all"),
    "a header of 3,000 characters more": lambda c: c.send("/a", ctx="x" * 900, long=True),
    "Expect: 100-continue": lambda c: c.send("/a", body=b"hello", more=(("Expect", "100-continue"),)),
    "HTTP/1.0": lambda c: c.put(version="1.0"),
    "`/%7ea`, an escape that need not be": lambda c: c.put(target="/%7ea"),
    "`/%ff`, a byte that is no UTF-8": lambda c: c.put(target="/%ff"),
    "`/a?`": lambda c: c.put(target="/a?"),
    "`/a?`, signed as `/a`": lambda c: c.put(target="/a?", signed="/a"),
    "`/a#f`, signed as `/a`": lambda c: c.put(target="/a#f", signed="/a"),
    "`OPTIONS *`": lambda c: c.put(target="*", method="OPTIONS"),
    "another chunked body than was signed": lambda c: c.put(CHUNKED, body=chunks(b"hallo"), signed_body=b"hello"),
    "another chunked body than none": lambda c: c.put(CHUNKED, body=chunks(b"hello"), signed_body=b""),
    "a length and chunks": lambda c: c.put("Content-Length: 4", CHUNKED, body=chunks(b"hello"), signed_body=b"hello"),
    "a length of 5,000 digits": lambda c: c.put(f"Content-Length: {'9' * 5000}", body=b"hello"),
    "a length below zero": lambda c: c.put("Content-Length: -1", body=b"hello"),
    "tabs around a bound header": lambda c: c.put("X-Tenant:\t7\t", bound="7"),
    "a bound header without a value": lambda c: c.put("X-Tenant:", bound=""),
    "another line of a bound header (obs-fold)": lambda c: c.put("X-Tenant: 7", " 8", bound="7"),
    "another value of a bound header next to the signed one": lambda c: c.put("X-Tenant: 7", "X-Tenant: 8", bound="7"),
    "a header `X_Tenant: 8` next to a bound one": lambda c: c.put("X-Tenant: 7", "X_Tenant: 8", bound="7"),
    "a header `X_Tenant: 7` in the place of a bound one": lambda c: c.put("X_Tenant: 7", bound="7"),
    "`é` in a bound header, as latin-1": lambda c: c.put("X-Tenant: \xe9", bound="\xe9"),
    "a content-type without a value": lambda c: c.put("Content-Type:"),
    "a header `SCRIPT_NAME: /a`": lambda c: c.put("SCRIPT_NAME: /a", target="/a/b"),
    "a header of 7,000 characters": lambda c: c.put(f"X-Long: {'x' * 7000}"),
    "a header of 16,000 characters": lambda c: c.put(f"X-Long: {'x' * 16000}"),
}
"""By the name in the document."""


class Caller:
    """Sends requests to one server as they are, signed."""

    def __init__(self, service: Service, port: int) -> None:
        self._service = service
        self._address = LOOPBACK, port
        self._last: tuple[str, str] = ("", "")

    def send(
        self,
        target: str,
        *,
        signed: str | None = None,
        body: bytes = b"",
        signed_body: bytes | None = None,
        kind: str | None = None,
        signed_kind: str | None = None,
        chunked: bool = False,
        more: tuple[tuple[str, str], ...] = (),
        ctx: str | None = None,
        long: bool = False,
    ) -> str:
        method = "POST" if body else "GET"
        bound = {} if kind is None else {"content-type": signed_kind or kind.strip()}
        extra = {} if ctx is None else {"ctx": {"a": ctx}}
        token = self._service.sign_request(
            CALLEE,
            method=method,
            target=target if signed is None else signed,
            body=body if signed_body is None else signed_body,
            headers=bound,
            **extra,
        )
        self._last = target, token
        pairs = [("Authorization", f"Bearer {token}"), *more]
        pairs += [("Content-Type", kind)] if kind is not None else []
        if long:
            pairs.append(("X-Padding", "x" * 3000))
        sent = body
        if chunked:
            pairs.append(("Transfer-Encoding", "chunked"))
            sent = chunks(body)
        elif body:
            pairs.append(("Content-Length", str(len(body))))
        return self._outcome(target, method, tuple(pairs), sent)

    def again(self) -> str:
        target, token = self._last
        return self._outcome(target, "GET", (("Authorization", f"Bearer {token}"),), b"")

    def twice(self, target: str) -> str:
        tokens = [self._service.sign_request(CALLEE, target=target) for _ in range(2)]
        return self._outcome(target, "GET", tuple(("Authorization", f"Bearer {token}") for token in tokens), b"")

    def bare(self, target: str) -> str:
        return self._outcome(target, "GET", (), b"")

    def put(
        self,
        *lines: str,
        target: str = "/a",
        signed: str | None = None,
        method: str = "POST",
        body: bytes = b"",
        signed_body: bytes | None = None,
        bound: str | None = None,
        version: str = "1.1",
    ) -> str:
        """These very lines and bytes, with a token for ``signed``, ``signed_body`` and a bound ``X-Tenant``."""
        token = self._service.sign_request(
            CALLEE,
            method=method,
            target=target if signed is None else signed,
            body=body if signed_body is None else signed_body,
            headers={} if bound is None else {"x-tenant": bound},
        )
        head = [f"{method} {target} HTTP/{version}", "Host: wire.test", "Connection: close"]
        head += [f"Authorization: Bearer {token}", *lines, "", ""]
        return self._answered(lambda: raw_exchange(self._address, "\r\n".join(head).encode("latin-1") + body))

    def _outcome(self, target: str, method: str, headers: tuple[tuple[str, str], ...], body: bytes) -> str:
        return self._answered(lambda: raw_request(self._address, target, method=method, headers=headers, body=body))

    @staticmethod
    def _answered(exchange: Callable[[], RawAnswer]) -> str:
        """200, our code, or the status of a refusal of the server's own."""
        try:
            answer = exchange()
        except (OSError, ValueError, IndexError):
            return "cut off"
        return answer.code or str(answer.status)


def uwsgi(port: int) -> list[str]:
    command = [str(BIN / "uwsgi"), "--http-socket", f"{LOOPBACK}:{port}", "--module", f"{APP}:wsgi", "--need-app"]
    return [*command, "--master", "--die-on-term", "--buffer-size", "16384", "--enable-threads"]


def waitress(port: int) -> list[str]:
    return [sys.executable, "-m", "waitress", f"--listen={LOOPBACK}:{port}", f"{APP}:wsgi"]


def werkzeug(port: int) -> list[str]:
    return [sys.executable, "-m", "flask", "--app", f"{APP}:wsgi", "run", "--port", str(port)]


def hypercorn(kind: str) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, "-m", "hypercorn", "--bind", f"{LOOPBACK}:{port}", f"{kind}:{APP}:{kind}"]


def uvicorn(parser: str) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, "-m", "uvicorn", "--http", parser, "--port", str(port), f"{APP}:asgi"]


def granian(kind: str) -> Callable[[int], list[str]]:
    return lambda port: [str(BIN / "granian"), "--interface", kind, "--port", str(port), f"{APP}:{kind}"]


def gunicorn(sort: str) -> Callable[[int], list[str]]:
    return lambda port: [str(BIN / "gunicorn"), f"{APP}:wsgi", "--bind", f"{LOOPBACK}:{port}", "--worker-class", sort,
                         "--no-control-socket", *(["--threads", "4"] if sort == "gthread" else [])]  # fmt: skip


SERVERS: dict[str, Callable[[int], list[str]]] = {
    "gunicorn sync": gunicorn("sync"),
    "gunicorn gthread": gunicorn("gthread"),
    "gunicorn gevent": gunicorn("gevent"),
    "uWSGI": uwsgi,
    "waitress": waitress,
    "Werkzeug": werkzeug,
    "hypercorn WSGI": hypercorn("wsgi"),
    "granian WSGI": granian("wsgi"),
    "uvicorn h11": uvicorn("h11"),
    "uvicorn httptools": uvicorn("httptools"),
    "hypercorn ASGI": hypercorn("asgi"),
    "granian ASGI": granian("asgi"),
}
PACKAGES = {"uWSGI": "pyuwsgi", "granian WSGI": "granian", "granian ASGI": "granian", "waitress": "waitress"}


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(CALLER, Keys(), now=int(time.time()))


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Caller]]:
    name, port = request.param, free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    settings = {"WIRE_CALLER": json.dumps(dict(service.pair.public.jwk)), "PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        started = Server(name, SERVERS[name](port), url=f"http://{LOOPBACK}:{port}", log=log, settings=settings)
    except FileNotFoundError:
        why = f"needs {PACKAGES.get(name, name)}, of which there may be no wheel for this Python"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    with started:
        try:
            started.wait_until_answers(f"{started.url}/health")
        except ProcessFailed as error:
            pytest.fail(str(error))
        yield name, Caller(service, port)


def documented() -> dict[tuple[str, str], str]:
    """By case and server: the cell of the document."""
    table = re.search(r"<!-- table: servers -->\n(.*?)<!-- end -->", DOC.read_text(), re.DOTALL)
    assert table is not None
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table[1].strip().splitlines())
    return {(row[0], name): cell.strip("`") for row in rows for name, cell in zip(head[1:], row[1:], strict=True)}


def outcomes(caller: Caller) -> dict[str, str]:
    return {case: request(caller) for case, request in CASES.items()}


def test_every_request_has_the_outcome_that_the_document_says(server: tuple[str, Caller]) -> None:
    name, caller = server
    table = documented()
    assert outcomes(caller) == {case: table[case, name] for case in CASES}


def test_the_document_has_a_cell_for_each_case_and_server() -> None:
    assert set(documented()) == {(case, name) for case in CASES for name in SERVERS}


def test_no_server_lets_in_what_was_not_signed() -> None:
    table = documented()
    never = [case for case in CASES if case.startswith(("another", "no token", "two Auth", "the same token"))]
    assert len(never) == 11
    assert not [(case, name) for case in never for name in SERVERS if table[case, name] == "200"]
