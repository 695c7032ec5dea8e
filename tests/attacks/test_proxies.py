"""What a proxy that the environment names gets to see: nothing that is for this machine, and no secret.

The proxy is a real one as far as it can tell: it notes every byte that comes in on any connection.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from peerseal import Identity
from peerseal.errors import ConfigurationError, FetchError, PeersealError
from peerseal.protocol.tokens.oidc import UnverifiedToken
from peerseal.requests import PeerSession
from peerseal.testing import MemoryRegistry
from peerseal.transport.fetch import HttpFetcher
from peerseal.transport.webhook import Webhook
from peerseal.verify.issuers import OidcIssuer
from registry.commands.operator_client import HttpOperatorClient
from tests.peerseal.served import served
from tests.support.issuer import running_issuer
from tests.support.wire import NOW, Answer, Keys, RawServer, Service, raw_server

SECRET = "pso1.0123456789abcdef.a-secret-of-an-operator"
VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


class RecordingProxy:
    """Notes what comes in, and answers each connection with a 502."""

    def __init__(self) -> None:
        self.connections = 0
        self.content = b""
        self.answer = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, suppress(OSError):
                connection.settimeout(5)
                self.content += connection.recv(65536)
                connection.sendall(self.answer)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingProxy]:
    """Named by no variable yet."""
    for name in (*VARIABLES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    proxy = RecordingProxy()
    yield proxy
    proxy.close()


@pytest.fixture(params=VARIABLES)
def named(proxy: RecordingProxy, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RecordingProxy:
    """Named by one of the variables, with a password of its own."""
    monkeypatch.setenv(request.param, f"http://user:of-the-proxy@{proxy.host}")
    return proxy


@pytest.fixture
def in_every_variable(proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch) -> RecordingProxy:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"http://user:of-the-proxy@{proxy.host}")
    return proxy


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as server:
        yield server


def session_for(base_url: str) -> PeerSession:
    return PeerSession(Service("caller", Keys(), now=NOW), "callee", base_url, retries=0, sleep=lambda _: None)


class TestOnLoopbackNoProxyIsAsked:
    def test_by_calls_of_a_registry(self, named: RecordingProxy, server: RawServer) -> None:
        HttpFetcher([server.url]).call("POST", "/v1/x", body=SECRET.encode())
        assert (len(server.seen), named.connections) == (1, 0)

    def test_by_a_start_with_a_platforms_token(self, named: RecordingProxy, tmp_path: Path) -> None:
        with MemoryRegistry() as registry, served(registry) as url, suppress(PeersealError):
            Identity("orders", registry=url, oidc_token=lambda: SECRET, key_dir=tmp_path).start(timeout=0.5).stop()
        assert named.connections == 0

    def test_by_an_operators_commands(self, named: RecordingProxy, server: RawServer) -> None:
        server.script[:] = [Answer(204, {})]
        HttpOperatorClient(server.url, SECRET).withdraw_join_token("0123456789abcdef")
        assert server.seen[0].authorization == f"Bearer {SECRET}"
        assert named.connections == 0

    def test_by_a_session(self, named: RecordingProxy, server: RawServer) -> None:
        session_for(server.url).get("/x")
        assert (len(server.seen), named.connections) == (1, 0)

    def test_by_a_session_for_another_origin(self, named: RecordingProxy, server: RawServer) -> None:
        session_for("http://callee.test").get(server.url)
        assert (len(server.seen), named.connections) == (1, 0)

    def test_by_a_session_whose_request_was_prepared_before(self, named: RecordingProxy, server: RawServer) -> None:
        session = session_for(server.url)
        session.send(session.prepare_request(requests.Request("GET", "/x")))
        assert (len(server.seen), named.connections) == (1, 0)

    def test_by_a_webhook(self, named: RecordingProxy, server: RawServer) -> None:
        assert Webhook(f"{server.url}/hook?secret={SECRET}", sleep=lambda _: None).post({"event": "x"})
        assert named.connections == 0

    def test_by_an_issuers_keys(self, named: RecordingProxy) -> None:
        with running_issuer() as issuer:
            token = UnverifiedToken.parse(issuer.token("subject", "audience"))
            assert OidcIssuer.configured(issuer.url).verify(token, audience="audience").subject == "subject"
        assert named.connections == 0

    @pytest.mark.parametrize(
        "host",
        [
            *("127.0.0.1", "127.0.0.2", "127.255.255.254", "localhost", "LOCALHOST", "localhost.", "x.localhost"),
            *("127.1", "0x7f000001", "2130706433", "0177.0.0.1", "0.0.0.0", "0"),
        ],
    )
    def test_however_it_is_spelled(self, in_every_variable: RecordingProxy, host: str) -> None:
        """Whether this machine knows the name, or anything answers there, is another matter."""
        with suppress(FetchError):
            HttpFetcher([f"http://{host}:9"]).call("POST", "/", body=SECRET.encode())
        assert in_every_variable.connections == 0

    @pytest.mark.parametrize("host", ["[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:2]", "[0:0:0:0:0:0:0:1]"])
    def test_in_ipv6(self, in_every_variable: RecordingProxy, host: str) -> None:
        with suppress(FetchError):
            HttpFetcher([f"http://{host}:9"]).call("POST", "/", body=SECRET.encode())
        assert in_every_variable.connections == 0

    def test_by_a_redirect_that_leads_there(self, in_every_variable: RecordingProxy, server: RawServer) -> None:
        """Nor does the proxy's own password come along."""
        in_every_variable.answer = (
            f"HTTP/1.1 302 Found\r\nLocation: {server.url}/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        assert session_for("http://callee.test").get("http://elsewhere.test/").status_code == 200
        assert in_every_variable.connections == 1
        assert "proxy-authorization" not in server.seen[0].headers

    def test_not_even_where_the_application_names_one(self, proxy: RecordingProxy, server: RawServer) -> None:
        session = session_for(server.url)
        session.proxies = {"http": f"http://{proxy.host}"}
        session.get("/x")
        assert (len(server.seen), proxy.connections) == (1, 0)


@pytest.mark.parametrize("host", ["127.0.0.1%20", "elsewhere.test%2f", "a%40b"])
def test_a_redirect_to_a_host_with_an_escape_is_an_error_of_requests(
    in_every_variable: RecordingProxy, server: RawServer, host: str
) -> None:
    server.script[:] = [Answer(302, {"Location": f"http://{host}/x"})]
    with pytest.raises(requests.exceptions.InvalidURL):
        session_for(server.url).get("/a")
    assert in_every_variable.connections == 0


class TestForAnotherHostTheProxyIsAsked:
    @pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
    def test_as_the_environment_says(
        self, proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv(variable, f"http://{proxy.host}")
        with pytest.raises(FetchError):
            HttpFetcher(["http://registry.test"]).call("GET", "/x")
        assert proxy.content.startswith(b"GET http://registry.test/x HTTP/1.1\r\n")

    def test_unless_no_proxy_names_the_host(
        self, in_every_variable: RecordingProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NO_PROXY", "registry.test")
        monkeypatch.setenv("no_proxy", "registry.test")
        with pytest.raises(FetchError):
            HttpFetcher(["http://registry.test"]).call("GET", "/x")
        assert in_every_variable.connections == 0

    def test_unless_no_proxy_names_the_host_that_a_redirect_leads_to(
        self, in_every_variable: RecordingProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """requests would go on with the proxy of the URL before."""
        in_every_variable.answer = (
            b"HTTP/1.1 302 Found\r\nLocation: http://inside.test:9/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "inside.test")
        caller = Service("caller", Keys(), now=NOW)
        with (
            PeerSession(caller, "callee", "http://callee.test", retries=0) as session,
            pytest.raises(requests.ConnectionError),
        ):
            session.get("http://other.test/x")
        assert in_every_variable.connections == 1

    def test_for_https_it_sees_a_name_and_no_token(self, in_every_variable: RecordingProxy) -> None:
        with pytest.raises(FetchError):
            HttpOperatorClient("https://registry.test", SECRET).withdraw_join_token("0123456789abcdef")
        assert in_every_variable.content.startswith(b"CONNECT registry.test:443 ")
        assert SECRET.encode() not in in_every_variable.content

    @pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.0.0.1", "localhost.test", "127.0.0.1.test"])
    def test_for_what_only_looks_like_loopback(self, in_every_variable: RecordingProxy, host: str) -> None:
        """So no secret may go there over plain http."""
        with pytest.raises(ConfigurationError):
            HttpOperatorClient(f"http://{host}", SECRET)


class TestSecretsGoOverHttpsOrLoopback:
    @pytest.mark.parametrize("url", ["http://registry.test", "http://10.0.0.1:8080", "http://[::ffff:10.0.0.1]"])
    def test_an_operators_token(self, in_every_variable: RecordingProxy, url: str) -> None:
        with pytest.raises(ConfigurationError, match="https or loopback only"):
            HttpOperatorClient(url, SECRET)
        assert in_every_variable.connections == 0

    @pytest.mark.parametrize("given", [True, False])
    def test_a_platforms_token(self, in_every_variable: RecordingProxy, tmp_path: Path, given: bool) -> None:
        url = "http://registry.test"
        with pytest.raises(ConfigurationError, match="https or loopback only"):
            Identity(
                "orders",
                registry=url,
                oidc_token=lambda: SECRET,
                key_dir=tmp_path,
                pin="x" * 43,
                fetcher=HttpFetcher([url]) if given else None,
            )
        assert in_every_variable.connections == 0


class TestANetrcFile:
    @pytest.fixture(autouse=True)
    def netrc(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It has a password for every host."""
        file = tmp_path / "netrc"
        file.write_text("default login user password of-the-file\n")
        file.chmod(0o600)
        monkeypatch.setenv("NETRC", str(file))

    def test_says_nothing_to_where_a_callee_redirects(self, proxy: RecordingProxy, server: RawServer) -> None:
        with raw_server() as other:
            server.script[:] = [Answer(302, {"Location": f"{other.url}/x"})]
            session_for(server.url).get("/x")
            assert [seen.authorization for seen in other.seen] == [None]

    def test_says_nothing_to_another_origin(self, proxy: RecordingProxy, server: RawServer) -> None:
        session_for("http://callee.test").get(server.url)
        assert server.seen[0].authorization is None

    def test_leaves_the_user_that_a_url_names(self, proxy: RecordingProxy, server: RawServer) -> None:
        session_for("http://callee.test").get(server.url.replace("://", "://mine:password@"))
        assert server.seen[0].authorization == "Basic bWluZTpwYXNzd29yZA=="

    def test_says_nothing_to_a_registry_and_a_webhook(self, proxy: RecordingProxy, server: RawServer) -> None:
        HttpFetcher([server.url]).call("GET", "/x")
        Webhook(server.url, sleep=lambda _: None).post({"event": "x"})
        assert [seen.authorization for seen in server.seen] == [None, None]


@pytest.mark.parametrize("url", ["http://[::1", "https://]/hook", "http://[v1.x", ""])
def test_a_webhook_that_is_no_url_is_a_mistake(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Webhook(url)


def test_a_webhook_is_not_redirected(proxy: RecordingProxy, server: RawServer) -> None:
    with raw_server() as other:
        server.script[:] = [Answer(307, {"Location": f"{other.url}/x"})] * 3
        assert not Webhook(server.url, sleep=lambda _: None).post({"event": "x"})
        assert other.seen == []


@pytest.mark.parametrize(
    "call", [lambda url: HttpFetcher([url]).call("GET", "/x"), lambda url: session_for(url).get("/x")]
)
def test_a_name_on_loopback_that_leads_elsewhere_is_not_called(
    proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch, call: Callable[[str], object]
) -> None:
    """A resolver or a hosts file may say anything about it; the token would go out in the clear."""
    own = own_address()
    with raw_server(host=own) as server:
        monkeypatch.setattr(socket, "getaddrinfo", resolving({"registry.localhost": own}))
        with pytest.raises((FetchError, requests.ConnectionError), match="not on loopback"):
            call(f"http://registry.localhost:{server.port}")
        assert server.seen == []


def own_address() -> str:
    """An address of this machine that is not on loopback; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(asking.getsockname()[0])


def resolving(names: dict[str, str]) -> Callable[..., object]:
    """The resolver, where an attacker answers for those names."""
    real = socket.getaddrinfo
    return lambda host, *rest, **options: real(names.get(str(host), host), *rest, **options)
