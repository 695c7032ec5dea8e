"""Every route against a minute of generated requests: no 5xx, no refusal without a code, no error past the server."""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlencode

import pytest
from flask import Flask
from werkzeug.routing import Rule
from werkzeug.test import create_environ, run_wsgi_app

from peerseal.protocol.keys import KeyPair
from peerseal.testing import MemoryRegistry
from registry.limits import Limits
from registry.services.access.operators import Role
from tests.attacks import forge
from tests.examples.world import World
from tests.fuzz.generated import TEXTS, bytes_like, json_like, rounds, text_like
from tests.registry.driver import Driver
from tests.support.brokers import Broker, BuiltInBroker

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(900)]

METHODS = ("GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "A" * 300)
TYPES = ("application/json", "application/json; charset=utf-16", "text/html", "", "multipart/form-data; boundary=")
NAMES = (
    "If-Match",
    "If-None-Match",
    "Range",
    "Content-Encoding",
    "X-Forwarded-For",
    "Forwarded",
    "Txn-Token",
    "Expect",
)
QUERY = ("since", "wait", "seq", "kid", "from", "to", "after", "limit", "reason", "state", "service", "at")
LONGEST = 4000
"""Characters of a header or of a target: servers refuse longer ones before the application sees them."""
PARAMETER = re.compile(r"<(?:[^:<>]+:)?(\w+)>")
"""A parameter in a route, such as ``<service>`` or ``<path:place>``."""
BEHIND = {"behind", "trust_unavailable"}
"""The codes of a 503 that is right: an entry was asked for that is not there yet; or a key that cannot be had."""


class Requests:
    """Requests to the routes of one application.

    ``known`` are values of path parameters that lead somewhere; the application accepts ``bodies`` and ``headers``.
    """

    def __init__(self, app: Flask, known: dict[str, Any], bodies: list[Any], headers: list[dict[str, str]]) -> None:
        self.app = app
        self._rules = [*app.url_map.iter_rules()]
        self._known = known
        self._bodies = bodies
        self._headers = headers
        self.statuses: Counter[int] = Counter()

    def send(self, random: Random) -> None:
        """One request. Fails for an answer that no request may get."""
        environ = self._environ(random)
        sent = f"{environ['REQUEST_METHOD']} {environ['RAW_URI']!r:.300} {_headers_of(environ)!r:.600}"
        seed = random.seed_text  # type: ignore[attr-defined]
        try:
            body, status_line, headers = run_wsgi_app(self.app, environ, buffered=True)
        except Exception as error:
            pytest.fail(f"FUZZ_SEED={seed}: {sent} raises {error!r:.300}")
        status, content = int(status_line[:3]), b"".join(body)
        self.statuses[status] += 1
        answered = f"FUZZ_SEED={seed}: {sent} is answered {status} {content[:300]!r}"
        if status >= 400 and environ["REQUEST_METHOD"] != "HEAD":
            assert headers.get("Content-Type", "").startswith("application/problem+json"), answered
            code = json.loads(content)["code"]
            assert status < 500 or (status == 503 and code in BEHIND), answered
        assert status < 500 or status == 503, answered
        if status >= 400:
            assert "immutable" not in headers.get("Cache-Control", ""), answered

    def _environ(self, random: Random) -> dict[str, Any]:
        rule = random.choice(self._rules)
        target = self._target(random, rule)
        path, _, query = target.partition("?")
        method = random.choice([*METHODS, *(rule.methods or ()), *(rule.methods or ())])
        body = self._body(random)
        headers = self._some_headers(random)
        environ = create_environ("/", method=method, headers=headers, input_stream=io.BytesIO(body))
        environ |= {
            "RAW_URI": target,
            "REQUEST_URI": target,
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
        }
        if body:
            environ["CONTENT_TYPE"] = random.choice((TYPES[0], *TYPES))
            environ["CONTENT_LENGTH"] = str(len(body)) if random.random() < 0.95 else random.choice(TEXTS)[:LONGEST]
        return environ

    def _target(self, random: Random, rule: Rule) -> str:
        """A path of the rule with known or generated parameters, and some query."""
        parts = []
        for number, part in enumerate(PARAMETER.split(rule.rule)):
            if number % 2 == 0:
                parts.append(part)
            else:
                known = str(self._known.get(part, "a"))
                parts.append(_quoted(random, known if random.random() < 0.5 else text_like(random, known)))
        path = "".join(parts) if random.random() < 0.95 else _quoted(random, text_like(random, "".join(parts)))
        pairs = [(random.choice(QUERY), self._parameter(random)) for _ in range(random.choice((0, 0, 1, 1, 2, 5)))]
        query = (
            urlencode(pairs, errors="surrogatepass") if random.random() < 0.9 else text_like(random, "since=1&wait=0")
        )
        target = "/" + path.lstrip("/") + ("?" + query if query else "")
        return target.encode("ascii", "replace").decode().replace("\n", "").replace("\r", "")[:LONGEST]

    def _parameter(self, random: Random) -> str:
        kind = random.random()
        if kind < 0.4:
            return str(random.choice((0, 1, 2, -1, 2**31, 2**63, 2**64, 10**30)))
        return text_like(random, str(random.choice([*self._known.values()])))

    def _body(self, random: Random) -> bytes:
        original = random.choice(self._bodies)
        kind = random.random()
        if kind < 0.3:
            return b""
        if kind < 0.7:
            return json.dumps(json_like(random, original)).encode()
        return bytes_like(random, json.dumps(original).encode())

    def _some_headers(self, random: Random) -> dict[str, str]:
        headers = dict(random.choice(self._headers))
        if headers and random.random() < 0.3:
            name = random.choice([*headers])
            headers[name] = text_like(random, headers[name])
        for _ in range(random.choice((0, 0, 1, 2))):
            headers[random.choice(NAMES)] = text_like(
                random, random.choice(('"1"', 'W/"2"', "203.0.113.7", "bytes=0-1"))
            )
        return {name: _header_text(value) for name, value in headers.items()}


def _quoted(random: Random, text: str) -> str:
    return quote(text, safe="/" if random.random() < 0.5 else "", errors="surrogatepass")


def _header_text(value: str) -> str:
    """What a server hands over: latin-1, without line ends and NUL (RFC 9110 section 5.5)."""
    return "".join(one for one in value if ord(one) < 256 and one not in "\r\n\0")[:LONGEST]


def _headers_of(environ: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(("HTTP_", "CONTENT_"))}


def sent_for_a_while(requests: Requests) -> Counter[int]:
    for random in rounds(share=0.5):
        for _ in range(20):
            requests.send(random)
    print(f"\n{requests.statuses.total()} requests: {dict(sorted(requests.statuses.items()))}")
    return requests.statuses


@pytest.fixture
def registry(registry_database: str, tmp_path: Path) -> Iterator[Requests]:
    driver = Driver(registry_database, tmp_path, limits=Limits(refusals_per_minute=10**9, wait=0), applicants=True)
    held = driver.joined(KeyPair.generate("ES256"), "billing")
    _, viewer = driver.registry.operators.create(Role.VIEWER, 600)
    join = driver.join_token("billing", uses=1000)
    known = {"service": "billing", "thumbprint": held.public.thumbprint, "token_id": join.id, "level": 0}
    known |= {"place": "000.p/1", "domain": "acme.internal", "number": 1}
    bodies: list[Any] = [
        {"proof": driver.proof(held, "billing"), "join": {"id": join.id, "mac": "a"}},
        {"service": "billing", "ttl": 600, "uses": 1},
        {"role": "viewer", "ttl": 600},
        {"allow": {"acme.internal/billing": ["a"]}, "restricted": False},
        {"minters": [], "issuers": []},
        {"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange"},
    ]
    signed = driver.signed(held, "billing", "GET", "/v1/services/billing/policy.jwt")
    headers = [{}, driver.operator, driver.operator, {"Authorization": f"Bearer {viewer}"}, signed]
    yield Requests(driver.app, known, bodies, headers)
    driver.close()


def test_the_registry_answers_every_request(registry: Requests) -> None:
    statuses = sent_for_a_while(registry)
    assert {200, 400, 401, 404, 405} <= statuses.keys()


@pytest.fixture
def broker() -> Iterator[Broker]:
    with BuiltInBroker() as broker:
        yield broker


@pytest.fixture
def world(broker: Broker, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        registry = stack.enter_context(MemoryRegistry())
        world = stack.enter_context(World(registry, tmp_path, broker))
        stack.enter_context(world.resource_served())
        yield world


def client_service(world: World) -> Requests:
    user = world.person().log_in("ada").headers
    bodies = [{"items": [{"itemID": "pen", "quantity": 1}]}, {"user": "ada", "password": "a"}]
    return Requests(world.client_app(), {"id": "1"}, bodies, [{}, user, user, {"Operator-Secret": "a"}])


def resource_service(world: World) -> Requests:
    token = forge.honest_token(forge.ec_key("caller"))
    return Requests(world.resource_app, {"id": "1"}, [{"name": "ada"}], [{}, {"Authorization": f"Bearer {token}"}])


@pytest.mark.parametrize("application", [client_service, resource_service])
def test_the_example_services_answer_every_request(application: Callable[[World], Requests], world: World) -> None:
    statuses = sent_for_a_while(application(world))
    assert {200, 401} <= statuses.keys()
