"""The files of docs/how-to/nginx.md in a real nginx, before a real service that gunicorn serves."""

import os
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPSConnection

import pytest
import requests

from peerseal import Identity
from peerseal.testing import MemoryRegistry
from tests.docs.pages import named_blocks
from tests.peerseal.served import served
from tests.support.certificates import Authority
from tests.support.nginx import nginx_command
from tests.support.processes import LOOPBACK, Process, free_port, gunicorn
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.nginx]

FILES = named_blocks("docs/how-to/nginx.md", "nginx")
STRANGE = {"/greetings/ada": "ada", "/greetings/caf%C3%A9": "café", "/greetings/a%3Bb?x=%2F": "a;b"}
Start = Callable[..., str]


@pytest.fixture(scope="module")
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry("acme.internal") as registry:
        yield registry


@pytest.fixture(scope="module")
def caller(registry: MemoryRegistry) -> Identity:
    return registry.identity("caller")


@pytest.fixture(scope="module")
def start(registry: MemoryRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts the service ``callee`` with nginx before it, and returns the URL of nginx."""
    authority = Authority.make(tmp_path_factory.mktemp("tls"), "authority")
    certificate, key = authority.issue("nginx", server=True)
    with ExitStack() as running, pytest.MonkeyPatch.context() as environment:
        environment.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
        url = running.enter_context(served(registry))

        def start(file: str, **settings: str) -> str:
            folder, port = tmp_path_factory.mktemp("callee"), free_port()
            own = {"SERVICE": "callee", "REGISTRY_URL": url, "KEY_DIR": str(folder / "keys")}
            own |= {"JOIN_TOKEN": registry.join_token("callee")} | settings
            target, names = "examples.minimal.callee:create_app()", {f"PEERSEAL_{name}": own[name] for name in own}
            service = gunicorn("callee", target, port=free_port(), log=folder / "log", settings=names, workers=1)
            running.enter_context(service)
            until(lambda: _answers(service.url), what="the service")
            conf = FILES[file].replace("127.0.0.1:9000", service.url.removeprefix("http://"))
            conf = conf.replace("listen 443 ssl", f"listen {LOOPBACK}:{port} ssl")
            for kind, path in (("pem", certificate), ("key", key)):
                conf = re.sub(rf"/etc/nginx/tls/\w+\.{kind}", str(path), conf)
            nginx = Process("nginx", nginx_command(folder, conf), log=folder / "nginx.log")
            running.enter_context(nginx)
            until(lambda: _answers(f"https://{LOOPBACK}:{port}"), what="nginx")
            return f"https://{LOOPBACK}:{port}"

        yield start


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=20).status_code > 0
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def plain(start: Start) -> str:
    return start("billing.conf")


@pytest.fixture(scope="module")
def prefixed(start: Start) -> str:
    return start("api.conf", EXTERNAL_PREFIX="/billing") + "/billing"


@pytest.mark.parametrize("place", ["plain", "prefixed"])
def test_a_signed_call_passes_whatever_its_path(caller: Identity, place: str, request: pytest.FixtureRequest) -> None:
    with caller.session("callee", request.getfixturevalue(place)) as session:
        for path, name in STRANGE.items():
            answer = session.get(path)
            assert (answer.status_code, answer.json()) == (200, {"caller": "caller", "hello": name})
        assert session.get("/greetings/a%2Fb").status_code == 404  # past the verification: Flask has no such route


@pytest.mark.parametrize("place", ["plain", "prefixed"])
def test_a_call_without_a_token_and_a_used_token_are_refused(
    caller: Identity, place: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(place)
    target = f"{url}/greetings/ada".removeprefix("https://").partition("/")[2]
    signed = {"Authorization": f"Bearer {caller.sign_request('callee', method='GET', target=f'/{target}')}"}
    answers = [requests.get(f"{url}/greetings/ada", headers=headers, timeout=20) for headers in ({}, signed, signed)]
    assert [(answer.status_code, answer.json().get("code")) for answer in answers] == [
        (401, "missing_token"),
        (200, None),
        (401, "replayed"),
    ]


def test_a_service_that_does_not_know_its_prefix_refuses_each_call(start: Start, caller: Identity) -> None:
    with caller.session("callee", start("api.conf") + "/billing") as session:
        assert session.get("/greetings/ada").json()["code"] == "wrong_binding"


@pytest.mark.parametrize(
    "target", ["/%62illing/greetings/ada", "//billing/greetings/ada", "/x/../billing/greetings/ada"]
)
def test_a_prefix_in_another_spelling_is_no_way_in(prefixed: str, caller: Identity, target: str) -> None:
    host = prefixed.removeprefix("https://").partition("/")[0]
    trusted = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
    with closing(HTTPSConnection(host, context=trusted, timeout=20)) as connection:
        token = caller.sign_request("callee", method="GET", target=target)
        connection.request("GET", target, headers={"Authorization": f"Bearer {token}"})
        assert connection.getresponse().status in (401, 403, 404)
