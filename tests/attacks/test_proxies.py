"""A proxy in the environment: what is sent to loopback never passes through it, and no secret does in clear text."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerseal import Identity
from peerseal.errors import ConfigurationError, FetchError, PeersealError, TrustUnavailable
from peerseal.peers.fetch import HttpFetcher, is_confidential
from peerseal.peers.limits import FetchLimits, IssuerLimits
from peerseal.peers.oidc import OidcIssuer
from peerseal.peers.webhook import Webhook
from peerseal.protocol.oidc import UnverifiedToken
from peerseal.requests import PeerSession
from peerseal.testing import MemoryRegistry
from registry.console import HttpConsole
from tests.peerseal.served import served
from tests.support.issuer import running_issuer
from tests.support.name_service import own_address, resolve
from tests.support.recording_proxy import PROXY_SETTINGS, RecordingProxy, recording_proxy
from tests.support.wire import NOW, Answer, Keys, RawServer, Service, raw_server

SECRET = "peerseal-secret-text"
BEARER = {"Authorization": f"Bearer {SECRET}"}
QUICK = FetchLimits(1.0, 1.0, 2.0)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_SETTINGS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingProxy]:
    """One that the environment names."""
    with recording_proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        yield proxy


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as server:
        yield server


def session(base_url: str) -> PeerSession:
    return PeerSession(Service("caller", Keys(), now=NOW), "callee", base_url, sleep=lambda _: None)


def moved(url: str) -> bytes:
    """What a server says of a resource that is there now."""
    return f"HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()


# loopback


def fetch(url: str) -> None:
    HttpFetcher([url], QUICK).call("POST", "/v1/register", headers=BEARER, body=SECRET.encode())


def call(url: str) -> None:
    session(url).post("/orders", data=SECRET, headers={"Txn-Token": SECRET})


def tell(url: str) -> None:
    assert Webhook(f"{url}/{SECRET}", sleep=lambda _: None).post({"event": "unknown_key"})


def operate(url: str) -> None:
    HttpConsole(url, SECRET).revoke_operator_token("0")


def redirected(url: str) -> None:
    with raw_server(Answer(302, {"Location": f"{url}/orders?{SECRET}"})) as other:
        session(other.url).get("/")


LOOPBACK = ("127.0.0.1", "localhost", "LOCALHOST", "localhost.", "registry.localhost", "127.1", "0x7f000001",
            "[::ffff:127.0.0.1]", "[::ffff:7f00:1]")  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("send", [fetch, call, tell, operate, redirected])
def test_what_goes_to_loopback_goes_through_no_proxy(
    proxy: RecordingProxy, server: RawServer, monkeypatch: pytest.MonkeyPatch, send: Callable[[str], None], host: str
) -> None:
    resolve(monkeypatch, {"registry.localhost": "127.0.0.1", "localhost.": "127.0.0.1"})
    send(f"http://{host}:{server.port}")
    assert proxy.asked == []
    assert len(server.seen) == 1


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_whichever_setting_names_a_proxy_loopback_has_none(
    server: RawServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with recording_proxy() as proxy:
        monkeypatch.setenv(name, proxy.url)
        fetch(server.url)
        call(server.url)
        assert proxy.asked == []
        HttpFetcher(["http://registry.test"], QUICK).call("GET", "/")
        session("http://callee.test").get("/")
        assert len(proxy.asked) == 2
    assert len(server.seen) == 2


def test_a_platforms_token_reaches_a_registry_on_loopback_and_no_proxy(proxy: RecordingProxy) -> None:
    with MemoryRegistry() as registry, served(registry) as url:
        identity = Identity("billing", registry=url, oidc_token=lambda: SECRET)
        with pytest.raises(PeersealError):  # this registry knows no platform
            identity.start(timeout=5)
    assert proxy.asked == []


def test_an_issuers_keys_on_loopback_are_fetched_through_no_proxy(proxy: RecordingProxy) -> None:
    with running_issuer(alg="ES256") as issuer:
        token = UnverifiedToken.parse(issuer.token("ada", "shop"))
        assert OidcIssuer.configured(issuer.url).verify(token, audience="shop").subject == "ada"
    assert proxy.asked == []


def test_a_session_with_a_proxy_of_its_own_calls_loopback_directly(server: RawServer) -> None:
    with recording_proxy() as proxy:
        asking = session(server.url)
        asking.proxies = {"http": proxy.url, "all": proxy.url}
        asking.get("/", proxies={"http": proxy.url})
        assert proxy.asked == []


def test_a_proxys_password_is_not_handed_to_a_service_on_loopback(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """requests writes it into a request that was redirected, whichever way that goes."""
    with recording_proxy() as proxy:
        proxy.answer = moved(f"{server.url}/")
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", f"http://user:{SECRET}@"))
        session("http://callee.test").get("http://other.test/")
        assert proxy.asked == ["GET http://other.test/"]
    [seen] = server.seen
    assert "proxy-authorization" not in {name.lower() for name in seen.headers}


def test_no_proxy_counts_for_a_redirect_as_for_any_other_request(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, {"inside.test": "127.0.0.1"})
    with recording_proxy() as proxy:
        proxy.answer = (
            f"HTTP/1.1 302 Found\r\nLocation: http://inside.test:{server.port}/\r\nContent-Length: 0\r\n\r\n".encode()
        )
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "inside.test")
        session("http://callee.test").get("http://other.test/")
        assert proxy.asked == ["GET http://other.test/"]
    assert len(server.seen) == 1


@pytest.mark.parametrize("host", ["localhost", "registry.localhost", "localhost."])
def test_a_loopback_name_that_leads_elsewhere_gets_nothing(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """What may be sent to loopback without TLS would otherwise be read wherever the name leads."""
    with raw_server(host=own_address()) as elsewhere:
        resolve(monkeypatch, {host: elsewhere.host})
        with pytest.raises(FetchError, match="not loopback"):
            fetch(f"http://{host}:{elsewhere.port}")
        with pytest.raises(OSError, match="not loopback"):
            call(f"http://{host}:{elsewhere.port}")
    assert elsewhere.seen == []


# other machines


def test_another_machine_is_reached_through_the_proxy_that_the_environment_names(proxy: RecordingProxy) -> None:
    HttpFetcher(["http://registry.test"], QUICK).call("GET", "/v1/changes")
    session("http://callee.test").get("/orders")
    assert proxy.asked == ["GET http://registry.test/v1/changes", "GET http://callee.test/orders"]


@pytest.mark.parametrize("send", [fetch, call, tell, operate])
def test_over_https_a_proxy_learns_the_host_and_nothing_else(
    proxy: RecordingProxy, send: Callable[[str], None]
) -> None:
    with pytest.raises((AssertionError, FetchError, OSError)):
        send("https://other.test")
    assert set(proxy.asked) == {"CONNECT other.test:443"}
    assert SECRET.encode() not in proxy.seen


@pytest.mark.parametrize(
    "url", ["http://registry.test", "http://10.0.0.1", "http://0.0.0.0", "http://127.0.0.1.test", "http://localhost.test",
            "http://[::ffff:10.0.0.1]", "http://128.1"],
)  # fmt: skip
def test_no_operators_or_platforms_token_leaves_without_tls(proxy: RecordingProxy, url: str) -> None:
    assert not is_confidential(url)
    with pytest.raises(ConfigurationError, match="https"):
        HttpConsole(url, SECRET)
    with pytest.raises(ConfigurationError, match="https"):
        Identity("billing", registry=url, oidc_token=lambda: SECRET, pin="x" * 43)
    with pytest.raises(ConfigurationError, match="https"):
        OidcIssuer.configured(url)
    assert proxy.asked == []


def test_a_proxy_between_us_and_an_issuer_sees_no_token(proxy: RecordingProxy) -> None:
    limits = IssuerLimits(fetch=QUICK)
    with running_issuer(alg="ES256") as issuer:
        issuer.url = "https://issuer.test"
        text = issuer.token("ada", "shop")
    with pytest.raises(TrustUnavailable):
        OidcIssuer.configured("https://issuer.test", limits=limits).verify(UnverifiedToken.parse(text), audience="shop")
    assert set(proxy.asked) == {"CONNECT issuer.test:443"}
    assert text.encode() not in proxy.seen


# .netrc


@pytest.mark.parametrize("send", [fetch, operate])
def test_a_password_in_netrc_replaces_no_token_of_ours(
    server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, send: Callable[[str], None]
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ada password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    send(server.url)
    call(server.url)
    assert server.seen[0].authorization == f"Bearer {SECRET}"
    assert str(server.seen[1].authorization).startswith("Bearer ey")
    assert base64.b64encode(b"ada:hunter2").decode() not in str(server.seen)
