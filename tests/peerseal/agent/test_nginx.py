"""A real nginx, configured as docs/how-to/agent.md says, asks a real agent about each request."""

import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from peerseal import Identity
from tests.support.agents import SERVICE, AgentProcess, curl_program
from tests.support.nginx import nginx_command
from tests.support.processes import LOOPBACK, Process, free_port
from tests.support.waiting import until
from tests.support.wire import RawAnswer, raw_request

pytestmark = [pytest.mark.e2e, pytest.mark.nginx]

PAGE = Path(__file__).parents[3] / "docs/how-to/agent.md"
MORE = """
    location /nowhere { proxy_pass http://agent/healthz; }
    location /unscoped { auth_request /authz; proxy_pass http://127.0.0.1:9000; }
    location /forgetful { auth_request /forgetful-authz; proxy_pass http://127.0.0.1:9000; }
    location = /forgetful-authz { internal; proxy_pass http://agent/authz; proxy_set_header Content-Length ""; }
    location /redirecting { auth_request /authz; try_files /none /orders/7; }
"""


class Application(BaseHTTPRequestHandler):
    """Shows what it received."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"{self.path} of {self.headers.get('Peerseal-Caller')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def application() -> Iterator[int]:
    """The port of the application that nginx protects."""
    with ThreadingHTTPServer((LOOPBACK, 0), Application) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def proxy(agent: AgentProcess, application: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Proxy"]:
    with Proxy(agent.path, application, tmp_path_factory.mktemp("nginx")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def nginx(proxy: "Proxy") -> tuple[str, int]:
    """Where nginx listens."""
    return proxy.address


class Proxy(Process):
    """nginx with the page's configuration and the locations `MORE`."""

    def __init__(self, socket: Path, application: int, folder: Path) -> None:
        self.address, self.http_2 = (LOOPBACK, free_port()), f"{LOOPBACK}:{free_port()}"
        [conf] = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
        conf = conf.replace("listen 8080;", f"listen {LOOPBACK}:{self.address[1]}; listen {self.http_2} http2;{MORE}")
        conf = conf.replace("/run/peerseal-web/agent.sock", str(socket)).replace(
            "127.0.0.1:9000", f"{LOOPBACK}:{application}"
        )
        super().__init__("nginx", nginx_command(folder, conf), log=folder / "log")

    def __enter__(self) -> "Proxy":
        until(lambda: not self.running or self.answers(), what="nginx")
        assert self.running, self.output()
        return self

    def answers(self) -> bool:
        """Whether it listens."""
        try:
            return raw_request(self.address, "/none").status == 404
        except OSError:
            return False


def signed(caller: Identity, target: str = "/orders/7", method: str = "GET", **request: Any) -> dict[str, str]:
    token = caller.sign_request(SERVICE, method=method, target=target, **request)
    return {"Authorization": f"Bearer {token}"}


def call(nginx: tuple[str, int], target: str, headers: Mapping[str, str], **request: Any) -> RawAnswer:
    return raw_request(nginx, target, headers=dict(headers), **request)


@pytest.mark.parametrize("target", ["/orders/7", "/orders?", "/orders/a%2fb?x=%2F&y=a%20b", "/orders/%c3%a9;v=1"])
def test_a_signed_request_reaches_the_application_as_it_was_sent(
    nginx: tuple[str, int], caller: Identity, target: str
) -> None:
    answer = call(nginx, target, signed(caller, target))
    assert (answer.status, answer.body) == (200, f"{target} of acme.internal/shop".encode())


def test_nginx_removes_the_origin_of_a_target_in_absolute_form(nginx: tuple[str, int], caller: Identity) -> None:
    answer = call(nginx, "http://other.test/orders/7", signed(caller))
    assert (answer.status, answer.body) == (200, b"/orders/7 of acme.internal/shop")


def test_a_token_passes_once(nginx: tuple[str, int], caller: Identity) -> None:
    headers = signed(caller)
    assert [call(nginx, "/orders/7", headers).status for _ in range(3)] == [200, 401, 401]


def test_a_stranger_is_told_how_to_prove_itself(nginx: tuple[str, int]) -> None:
    answer = call(nginx, "/orders/7", {})
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_another_target_or_method_is_refused(nginx: tuple[str, int], caller: Identity) -> None:
    for other in ("/orders/8", "/orders/7?", "/orders/7#f", "/orders/%37", "/orders/7?x"):
        assert call(nginx, other, signed(caller)).status == 401
    assert call(nginx, "/orders/7", signed(caller), method="DELETE").status == 401


@pytest.mark.parametrize("target", ["/orders/../orders/7", "/x/%2e%2e/orders/7", "/orders//7", "/orders/..;/admin"])
def test_a_path_with_two_readings_is_refused(nginx: tuple[str, int], caller: Identity, target: str) -> None:
    assert call(nginx, target, signed(caller, target)).status == 403


def test_a_header_of_the_client_is_never_taken_for_the_proxy_s(nginx: tuple[str, int], caller: Identity) -> None:
    spoofed = {"X-Original-URI": "/orders/7", "X-Original-Method": "GET", "X-Original-Body": "none"}
    assert call(nginx, "/orders/8", signed(caller) | spoofed).status == 401
    answer = call(nginx, "/orders/7", signed(caller) | {"Peerseal-Caller": "acme.internal/root"})
    assert answer.body == b"/orders/7 of acme.internal/shop"


@pytest.mark.parametrize("framing", [{"Content-Length": "5"}, {"Transfer-Encoding": "chunked"}])
@pytest.mark.parametrize("bound", [b"hello", b""])
def test_a_request_with_a_body_is_refused_whatever_is_signed(
    nginx: tuple[str, int], caller: Identity, framing: dict[str, str], bound: bytes
) -> None:
    sent = b"hello" if "Content-Length" in framing else b"5\r\nhello\r\n0\r\n\r\n"
    headers = signed(caller, method="POST", body=bound) | framing
    assert call(nginx, "/orders/7", headers, method="POST", body=sent).status == 401


def test_a_content_length_of_zero_is_no_body(nginx: tuple[str, int], caller: Identity) -> None:
    assert call(nginx, "/orders/7", signed(caller) | {"Content-Length": "0"}).status == 200


def test_bound_headers_are_compared(nginx: tuple[str, int], caller: Identity) -> None:
    headers = signed(caller, headers={"content-type": "text/plain", "x-tenant": "7"})
    assert call(nginx, "/orders/7", headers | {"Content-Type": "text/plain", "X-Tenant": "8"}).status == 401
    assert call(nginx, "/orders/7", headers | {"Content-Type": "text/plain", "X-Tenant": "7"}).status == 200


def test_the_location_says_which_scope_is_needed(nginx: tuple[str, int], agent: AgentProcess) -> None:
    own = {"Authorization": agent.sign(SERVICE, target="/orders/7")}  # --allow gives it no scope
    assert call(nginx, "/orders/7", own).status == 403
    own = {"Authorization": agent.sign(SERVICE, target="/unscoped")}
    assert call(nginx, "/unscoped", own).status == 200


def test_a_configuration_that_lacks_a_header_lets_nothing_pass(
    nginx: tuple[str, int], agent: AgentProcess, caller: Identity
) -> None:
    assert call(nginx, "/forgetful", signed(caller, "/forgetful")).status == 500
    assert "x-original-body: the proxy must set it" in agent.output()


def test_an_internal_redirect_asks_again_and_is_refused(
    nginx: tuple[str, int], agent: AgentProcess, caller: Identity
) -> None:
    headers = signed(caller, "/redirecting") | {"X-Request-Id": "redirected-once"}
    assert call(nginx, "/redirecting", headers).status == 401
    [line] = [line for line in agent.output().splitlines() if "redirected-once" in line and "refused" in line]
    assert "refused: replayed" in line


def test_over_http_2_nothing_passes(proxy: Proxy, agent: AgentProcess, caller: Identity) -> None:
    headers = signed(caller) | {"X-Request-Id": "over-http-2"}
    command = [curl_program(), "--silent", "--http2-prior-knowledge", "--write-out", "%{http_code} %{http_version}"]
    for name, value in headers.items():
        command += ["--header", f"{name}: {value}"]
    done = subprocess.run(
        [*command, "--output", "/dev/null", f"http://{proxy.http_2}/orders/7"], capture_output=True, check=True
    )
    assert done.stdout == b"401 2"
    [line] = [line for line in agent.output().splitlines() if "over-http-2" in line]
    assert "the proxy does not send the body" in line


def test_nothing_passes_while_the_agent_is_gone(application: int, caller: Identity, tmp_path: Path) -> None:
    with Proxy(tmp_path / "none.sock", application, tmp_path) as proxy:
        assert call(proxy.address, "/orders/7", signed(caller)).status == 500
