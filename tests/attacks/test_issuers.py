"""Issuers that turn on those who trust them: where they may send a fetch, and what they can keep open."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from peerseal.errors import ConfigurationError, FetchError, TrustUnavailable
from peerseal.protocol.tokens.oidc import UnverifiedToken
from peerseal.runtime.limits import IssuerLimits
from peerseal.transport.fetch import HttpFetcher
from peerseal.verify.issuers import OidcIssuer, check_jwks_uri
from tests.attacks.test_proxies import own_address, resolving
from tests.support.issuer import DISCOVERY, JWKS, Issuer, private_ca, running_issuer
from tests.support.waiting import until
from tests.support.wire import raw_server

NAMES = ("issuer.test", "keys.test")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    """An issuer whose name is not one of this machine, as far as a reader can tell."""
    monkeypatch.setattr(socket, "getaddrinfo", resolving({"issuer.test": "127.0.0.1"}))
    with running_issuer(tls=private_ca(tmp_path, *NAMES)) as issuer:
        issuer.url = issuer.url.replace("127.0.0.1", "issuer.test")
        yield issuer


def verified(issuer: Issuer, tmp_path: Path) -> str:
    trusted = OidcIssuer.configured(issuer.url, ca_file=tmp_path / "ca.pem")
    return trusted.verify(UnverifiedToken.parse(issuer.token("subject", "audience")), audience="audience").subject


class TestARemoteIssuerSendsNobodyToThisMachine:
    @pytest.mark.parametrize(
        "host",
        [
            *("127.0.0.3", "127.255.0.1", "localhost", "LocalHost.", "x.localhost", "[::1]", "[::ffff:127.0.0.1]"),
            *(
                "[::ffff:7f00:3]",
                "0.0.0.0",
                "0.1.2.3",
                "[::]",
                "[::ffff:0.0.0.0]",
                "127.1",
                "2130706433",
                "0x7f.1",
                "0",
            ),
            *("0177.0.0.1", "127.1.", "169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "2852039166"),
            *(
                "224.0.0.1",
                "[ff02::1]",
                "255.255.255.255",
                "240.0.0.1",
                "[::127.0.0.1]",
                "[2002:7f00:1::]",
                "[64:ff9b::7f00:1]",
            ),
        ],
    )
    def test_by_an_address(self, host: str) -> None:
        with pytest.raises(ConfigurationError):
            check_jwks_uri(f"https://{host}/keys", "https://issuer.test")
        with pytest.raises(FetchError):
            HttpFetcher([f"https://{host}"], elsewhere=True).call("GET", "/keys")

    @pytest.mark.parametrize(
        "host",
        [
            "10.0.0.1",
            "192.168.1.1",
            "[fd00::1]",
            "[64:ff9b::a00:1]",
            "[2002:a00:1::]",
            "172.16.0.1",
            "idp.corp",
            "127.0.0.1.test",
        ],
    )
    def test_but_to_a_private_network(self, host: str) -> None:
        assert check_jwks_uri(f"https://{host}/keys", "https://issuer.test") == f"https://{host}/keys"

    @pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"])
    def test_by_a_name(self, remote: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        """The connection is made, since only that tells, and nothing is sent on it: not even a TLS hello."""
        monkeypatch.setattr(socket, "getaddrinfo", resolving({"issuer.test": "127.0.0.1", "keys.test": address}))
        with Silent("127.0.0.1") as other:
            remote.answers[DISCOVERY] = remote.discovery | {"jwks_uri": f"https://keys.test:{other.port}{JWKS}"}
            with pytest.raises(TrustUnavailable):
                verified(remote, tmp_path)
            assert other.received() == b""

    def test_by_a_name_for_an_address_of_its_own_on_a_network(
        self, remote: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = own_address()
        monkeypatch.setattr(socket, "getaddrinfo", resolving({"issuer.test": "127.0.0.1", "keys.test": own}))
        with Silent(own) as other:
            remote.answers[DISCOVERY] = remote.discovery | {"jwks_uri": f"https://keys.test:{other.port}{JWKS}"}
            with pytest.raises(TrustUnavailable, match="may not lead to this machine"):
                verified(remote, tmp_path)
            assert other.received() == b""

    def test_by_a_redirect(self, remote: Issuer, tmp_path: Path) -> None:
        with raw_server() as other:
            for path in (DISCOVERY, JWKS):
                remote.answers = {path: (302, {"Location": f"{other.url}/keys"})}
                with pytest.raises(TrustUnavailable):
                    verified(remote, tmp_path)
            assert other.seen == []

    def test_but_to_itself_wherever_its_own_name_leads(self, remote: Issuer, tmp_path: Path) -> None:
        """An operator of this host configured that server."""
        assert verified(remote, tmp_path) == "subject"

    def test_but_through_a_proxy_on_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It makes the connection, and may do so where it runs."""
        with raw_server() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            with pytest.raises(FetchError):
                HttpFetcher(["https://keys.test"], elsewhere=True).call("GET", "/keys")
            assert [seen.target for seen in proxy.seen] == ["keys.test:443"]

    def test_but_where_somebody_here_configured_the_url_of_the_keys(self, remote: Issuer, tmp_path: Path) -> None:
        here = remote.url.replace("issuer.test", "127.0.0.1")
        trusted = OidcIssuer.configured(remote.url, jwks_url=here + JWKS, ca_file=tmp_path / "ca.pem")
        token = UnverifiedToken.parse(remote.token("subject", "audience"))
        assert trusted.verify(token, audience="audience").subject == "subject"


@pytest.mark.parametrize("elsewhere", [1, 5])
def test_an_issuer_that_names_another_server_each_time_keeps_two_connections_open(elsewhere: int) -> None:
    """An issuer on loopback may name every server; this one names 30, of which each would keep its connection."""
    now = [1_900_000_000.0]
    limits = IssuerLimits()
    with Patient() as server:
        url = f"http://127.0.0.1:{server.port}"
        issuer = Issuer(url)
        server.documents = {JWKS: issuer.jwks}
        trusted = OidcIssuer.configured(url, clock=lambda: now[0], limits=limits)
        for count in range(30):
            named = f"http://127.0.{elsewhere}.{count + 2}:{server.port}{JWKS}"
            server.documents[DISCOVERY] = issuer.discovery | {"jwks_uri": named}
            token = issuer.token("subject", "audience", now=now[0])
            assert trusted.verify(UnverifiedToken.parse(token), audience="audience").subject == "subject"
            now[0] += limits.refresh_interval + 1
        assert server.accepted >= 30
        until(lambda: server.open <= 2)


class Silent:
    """Accepts connections, says nothing, and keeps what comes in until the other side is done."""

    def __init__(self, address: str) -> None:
        self._listener = socket.create_server((address, 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def received(self) -> bytes:
        """What came in on the connections that were made."""
        self._listener.settimeout(0.2)
        content = b""
        while True:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                return content
            with connection:
                connection.settimeout(5)
                content += connection.recv(65536)


class Patient:
    """A server that keeps connections open, and counts those that are; on all addresses of this machine's loopback."""

    def __init__(self) -> None:
        self.documents: dict[str, object] = {}
        self.accepted = self.open = 0
        self._lock = threading.Lock()
        patient = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def setup(self) -> None:
                super().setup()
                patient.count(+1)

            def finish(self) -> None:
                patient.count(-1)
                super().finish()

            def do_GET(self) -> None:
                body = json.dumps(patient.documents[self.path]).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port

    def count(self, change: int) -> None:
        with self._lock:
            self.open += change
            self.accepted += change > 0

    def __enter__(self) -> "Patient":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
