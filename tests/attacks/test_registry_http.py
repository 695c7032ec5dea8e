"""Attacks on the registry by way of HTTP: what stands in names, queries, bodies and headers, and how it is sent."""

import gc
import json
import logging
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from peerseal.protocol.encoding import b64url
from peerseal.protocol.keys import KeyPair
from registry.limits import Limits
from registry.services.documents.answer_cache import PublicAnswer
from registry.storage.tables import metadata
from registry.web.routes.openapi import document
from tests.registry.driver import JSON, Clock, Driver
from tests.support.processes import LOOPBACK, Server, free_port, status_of
from tests.support.wire import raw_request

SQL = [
    "' OR '1'='1",
    "'; DROP TABLE keys; --",
    '" OR ""="',
    "1; SELECT pg_sleep(5)",
    "\\'; --",
    "%' OR name LIKE '%",
    "$$",
]
HEADER = [
    "a\r\nSet-Cookie: x=1",
    "a\nX-Evil: 1",
    "a\u2028X-Evil: 1",
    "a\x00b",
    "a\u560d\u560aX-Evil: 1",
    "é\r\n\r\n<html>",
]
WRITES = [
    (path, method.upper())
    for path, methods in document()["paths"].items()
    for method in methods
    if method in ("post", "put", "delete", "patch")
]
CALLS = [(path, method.upper()) for path, methods in document()["paths"].items() for method in methods]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    """A registry on either database that refuses as often as it is asked to."""
    driver = Driver(registry_database, tmp_path / "home", clock, limits=Limits(refusals_per_minute=10**9))
    driver.joined(KeyPair.generate("ES256"), "billing")
    yield driver
    driver.close()


def state(registry: Driver) -> list[tuple[object, ...]]:
    """Every row of every table."""
    with registry.store.read() as connection:
        return [tuple(row) for table in metadata.sorted_tables for row in connection.execute(table.select())]


def filled(path: str, text: str) -> str:
    """The path with the text in each of its places, percent-encoded byte by byte."""
    escaped = "".join(f"%{byte:02x}" for byte in text.encode())
    return re.sub(r"{\w+}", escaped, path)


def harmless(response: TestResponse, text: str) -> None:
    """Refused or answered as anything else: no error of ours, no header of theirs, nothing of it repeated."""
    assert response.status_code < 500, (response.status_code, response.data)
    assert "X-Evil" not in response.headers
    assert "Set-Cookie" not in response.headers
    assert text not in "".join(f"{name}{value}" for name, value in response.headers)
    if response.status_code >= 400:
        assert text.encode() not in response.data
        assert response.content_type == "application/problem+json"


def test_sql_and_header_injection_in_every_part_of_every_path(registry: Driver) -> None:
    before = state(registry)
    for text in SQL + HEADER:
        for path, method in CALLS:
            if "{" in path:
                response = registry.client.open(filled(path, text), method=method, headers=registry.operator)
                harmless(response, text)
                assert response.status_code >= 400
    assert state(registry) == before


def test_sql_and_header_injection_in_every_query_parameter(registry: Driver) -> None:
    before = state(registry)
    for text in SQL + HEADER:
        for target, method, parameter in queried():
            asked = {"query_string": {parameter: text}, "headers": registry.operator}
            harmless(registry.client.open(target, method=method, **asked), text)
    assert state(registry) == before


def queried() -> Iterator[tuple[str, str, str]]:
    """Path, method and name of every query parameter."""
    known = {"service": "billing", "thumbprint": "A" * 43, "token_id": "x", "level": "0", "place": "000", "part": "0"}
    for path, methods in document()["paths"].items():
        for method, call in methods.items():
            for parameter in call.get("parameters", ()):
                if parameter["in"] == "query":
                    yield re.sub(r"{(\w+)}", lambda place: known[place[1]], path), method, parameter["name"]


def test_sql_and_header_injection_in_every_member_of_every_body(registry: Driver) -> None:
    before, proof = state(registry), registry.proof(KeyPair.generate("ES256"), "billing")
    for text in SQL + HEADER:
        for path, bodies in bodies_with(text, proof).items():
            headers = JSON if path.endswith("keys") else {**JSON, **registry.operator, "If-Match": '"0"'}
            method = "POST" if path.endswith(("keys", "tokens")) else "PUT"
            for body in bodies:
                response = registry.client.open(path, method=method, data=json.dumps(body), headers=headers)
                harmless(response, text)
                assert response.status_code in (400, 401)
    assert state(registry) == before


def bodies_with(text: str, proof: str) -> dict[str, list[object]]:
    """Bodies by path, with the text in each place. As a scope it stands next to an invalid one: some of the texts are
    scopes, which are kept as what they are."""
    return {
        "/v1/services/billing/keys": [
            {"proof": text},
            {"proof": text, "join": {"id": text, "mac": text}},
            {"proof": proof, "join": {"id": text, "mac": text}},
            {"proof": text, "oidc": text},
            {text: text},
        ],
        "/v1/join-tokens": [{"service": text}, {"service": "billing", text: 1}],
        "/v1/operator-tokens": [{"role": text, "ttl": 60}, {text: text}],
        "/v1/services/billing/policy": [{"allow": {text: ["read"]}}, {"allow": {"*": [text, " "]}}, {text: text}],
        "/v1/domain": [
            {"minters": [text], "issuers": []},
            {"minters": [], "issuers": [{"issuer": text, "audience": "a"}]},
        ],
    }


def test_sql_and_odd_characters_in_headers(registry: Driver) -> None:
    before = state(registry)
    names = ["AUTHORIZATION", "IF_NONE_MATCH", "IF_MATCH", "X_FORWARDED_FOR", "HOST", "X_REQUEST_ID", "COOKIE"]
    for text in [*SQL, "a\u2028X-Evil: 1", "é"]:
        value = text.encode().decode("latin-1")
        for environ in [{"CONTENT_TYPE": value}, *({f"HTTP_{name}": value} for name in names)]:
            for path in ("/v1/services", "/v1/services/billing/jwks.jwt", "/v1/services/billing/keys"):
                for method in ("GET", "POST"):
                    harmless(registry.client.open(path, method=method, environ_overrides=environ), value)
    assert state(registry) == before


READS_ETAGS = (
    "import sys; from registry.web.published import entity_tags; print([len(entity_tags(a)) for a in sys.argv[1:]])"
)


@pytest.mark.parametrize("end", ["x", '"', ""])
def test_a_header_of_many_etags_is_read_in_one_go(end: str) -> None:
    """Two ways to read each tag would be 2^240 ways to read them all, and one stranger could stop each thread."""
    tags = ['"a-gzip"', '"a--br"', 'W/"-gzip-gzip"', '"a;zstd"\t', '"a" ']
    headers = [f"{tag}," * 240 + end for tag in tags]
    read = subprocess.run([sys.executable, "-c", READS_ETAGS, *headers], timeout=60, capture_output=True, check=True)
    assert json.loads(read.stdout) == [0 if end else 1] * len(tags)


def test_no_line_of_the_log_can_be_made_up(registry: Driver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    forged = "\n2026-01-01 00:00:00 INFO registry key admitted kid=acme.internal/billing/x"
    header = b64url(json.dumps({"alg": "ES256", "kid": forged, "typ": "peerseal-request+jwt"}).encode())
    registry.client.get("/v1/services", headers={"Authorization": f"Bearer {header}.e30.AA"})
    registry.post_key("billing", {"proof": f"{header}.e30.AA"})
    registry.post_key("billing", {forged: forged})
    registry.client.get("/v1/services", query_string={"after": forged}, headers=registry.operator)
    registry.client.delete("/v1/services/billing/keys/" + "A" * 43, query_string={"reason": forged})
    assert all("\n" not in record.getMessage() for record in caplog.records)


# a browser is made to call (CSRF)

EXCHANGE = "/oauth2/token"


def test_every_call_that_changes_something_needs_more_than_a_browser_would_send(registry: Driver) -> None:
    """A foreign page can send forms, with the cookies there are; it cannot add an Authorization header
    without a CORS answer that permits it, which the registry never gives."""
    before = state(registry)
    known = {"service": "billing", "thumbprint": "A" * 43, "token_id": "x"}
    origin = {"Origin": "https://evil.example", "Cookie": f"Authorization={registry.operator['Authorization']}"}
    types = ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "application/json"]
    for path, method in WRITES:
        target = re.sub(r"{(\w+)}", lambda place: known[place[1]], path)
        for media in types:
            response = registry.client.open(
                target, method=method, data=b'{"proof":"x"}', headers={**origin, "Content-Type": media}
            )
            allowed = {401} if not path.endswith("/keys") else {401, 415}
            if path == EXCHANGE:  # it takes a form, with an assertion in it that no browser adds; here it is off
                allowed = {400, 404}
            assert response.status_code in allowed, (method, path, media)
            assert not {name for name, _ in response.headers if name.startswith("Access-Control")}
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": method}
        leave = registry.client.options(target, headers={**asked, "Access-Control-Request-Headers": "authorization"})
        assert not {name for name, _ in leave.headers if name.startswith("Access-Control")}
    assert state(registry) == before


def test_a_body_is_json_by_its_own_word_even_from_an_operator(registry: Driver) -> None:
    before = state(registry)
    for path, method in WRITES:
        if path == EXCHANGE or "requestBody" not in document()["paths"][path][method.lower()]:
            continue
        target = path.replace("{service}", "billing")
        for media in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/problem+json",
            "application/jsonx",
        ):
            headers = {**registry.operator, "Content-Type": media, "If-Match": '"0"'}
            response = registry.client.open(target, method=method, data=b'{"service":"billing"}', headers=headers)
            assert response.status_code in ((415, 400) if path.endswith("keys") else (415,)), (path, media)
    assert state(registry) == before


def test_nothing_is_set_that_a_browser_would_send_back(registry: Driver) -> None:
    for path, method in CALLS:
        response = registry.client.open(path, method=method, headers=registry.operator)
        assert "Set-Cookie" not in response.headers


def test_every_answer_of_every_sort_has_the_headers_that_keep_browsers_from_it(registry: Driver) -> None:
    etag = registry.client.get("/docs").headers["ETag"]
    answers = [registry.client.open(path, method=method, headers=registry.operator) for path, method in CALLS]
    answers += [registry.client.open(path, method="OPTIONS") for path, _ in CALLS]
    answers.append(registry.client.get("/docs", headers={"If-None-Match": etag}))
    answers.append(registry.client.get("/v1/services/billing/jwks.jwt", headers={"If-None-Match": "*"}))
    assert [answer.status_code for answer in answers[-2:]] == [304, 304]
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["Cache-Control"]


# too much, too slow, by halves


SETTINGS = "from registry import gunicorn_conf as g; g.SOCKET_TIMEOUT = 1; g.REQUEST_DEADLINE = 3"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker of eight threads that loses patience sooner than in use."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    settings = {"REGISTRY_HOME": str(folder / "home")}
    serve = f"{SETTINGS}; from registry.__main__ import main; main('serve --dev --workers 1 --port {port}'.split())"
    url = f"http://{LOOPBACK}:{port}"
    with Server("registry", [sys.executable, "-c", serve], url=url, log=folder / "log", settings=settings) as laptop:
        yield laptop.wait_until_answers(f"{url}/readyz")


def address(server: Server) -> tuple[str, int]:
    return LOOPBACK, int(server.url.rpartition(":")[2])


@pytest.mark.e2e
@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /v1/services/b/keys HTTP/1.1\r\nHost: x\r\nContent-Type: "
        b"application/json\r\nContent-Length: 5000\r\n\r\n{",
    ],
    ids=["header", "body"],
)
@pytest.mark.thorough
def test_clients_that_send_a_byte_now_and_then_do_not_keep_others_out(server: Server, head: bytes) -> None:
    with ExitStack() as slow:
        connections = [slow.enter_context(socket.create_connection(address(server))) for _ in range(16)]
        for connection in connections:
            connection.sendall(head)
        began, answered = time.monotonic(), False
        while time.monotonic() < began + 20 and not answered:
            for connection in connections:
                try:
                    connection.sendall(b"a")
                except OSError:
                    continue  # cut off
            answered = status_of(f"{server.url}/healthz", timeout=0.5) == 200
        assert answered


@pytest.mark.e2e
def test_requests_that_are_sent_by_half_and_then_left_are_forgotten(server: Server) -> None:
    for _ in range(40):
        with socket.create_connection(address(server)) as connection:
            connection.sendall(b"POST /v1/services/b/keys HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
    assert status_of(f"{server.url}/healthz", timeout=10) == 200


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("target", "headers", "statuses"),
    [
        ("/" + "x" * 5_000, {}, (400, 414)),
        ("/healthz", {"X-Large": "x" * 9_000}, (400, 431)),
        ("/healthz", {"Authorization": "Bearer " + "x" * 9_000}, (400, 431)),
        ("/healthz", {f"X-{number}": "x" for number in range(60)}, (400, 431)),
        ("/healthz", {"Content-Length": "-1"}, (400,)),
        ("/healthz", {"Content-Length": "1, 2"}, (400,)),
        ("/healthz", {"Bad Name": "x"}, (400,)),
        ("/healthz", {"Transfer-Encoding": "chunked, identity"}, (400, 501)),
    ],
)
def test_oversized_and_malformed_heads_are_refused_by_the_server(
    server: Server, target: str, headers: dict[str, str], statuses: tuple[int, ...]
) -> None:
    answer = raw_request(address(server), target, headers=headers)
    assert answer.status in statuses
    assert b"Traceback" not in answer.body
    assert not re.search(rb"gunicorn/\d|Python/\d|Werkzeug/\d", answer.body + json.dumps(dict(answer.headers)).encode())
    assert status_of(f"{server.url}/healthz") == 200


@pytest.mark.e2e
def test_a_body_of_100_mb_is_not_read(server: Server) -> None:
    head = "POST /v1/services/b/keys HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(address(server), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 100000000\r\n\r\n".encode())
        answer = connection.recv(200)
    assert b" 413 " in answer.splitlines()[0]


@pytest.mark.e2e
def test_the_server_names_no_version(server: Server) -> None:
    for path in ("/healthz", "/docs", "/nothing", "/v1/services"):
        assert raw_request(address(server), path).headers["server"] == "gunicorn"


def answers_in_memory() -> int:
    gc.collect()
    return sum(type(one) is PublicAnswer for one in gc.get_objects())


@pytest.mark.thorough
def test_10000_unknown_kids_from_one_client_leave_nothing_behind(sqlite_url: str, tmp_path: Path) -> None:
    registry = Driver(sqlite_url, tmp_path / "home", limits=Limits(refusals_per_minute=10**9))
    mine, path = registry.joined(KeyPair.generate("ES256"), "billing"), "/v1/services"
    _, claims, signature = registry.signed(mine, "billing", "GET", path)["Authorization"].split(" ")[1].split(".")
    before, kept = state(registry), answers_in_memory()
    for number in range(10_000):
        thumbprint = b64url(number.to_bytes(32))
        assert registry.client.get(f"/v1/services/billing/keys/{thumbprint}.jwt").status_code == 404
        if number % 10 == 0:
            kid = {"alg": "ES256", "kid": f"acme.internal/billing/{thumbprint}", "typ": "peerseal-request+jwt"}
            token = {"Authorization": f"Bearer {b64url(json.dumps(kid).encode())}.{claims}.{signature}"}
            ended = f"/v1/services/billing/keys/{thumbprint}?reason=retired"
            refused = registry.client.delete(ended, headers=token)
            assert (refused.status_code, refused.get_json()["code"]) == (401, "unknown_key")
    assert state(registry) == before
    assert answers_in_memory() == kept
    registry.close()
