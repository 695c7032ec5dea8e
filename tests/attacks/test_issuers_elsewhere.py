"""Issuers that name servers they should not: this machine, its neighbours on the link, a new one each time."""

import gc
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from peerseal.errors import ConfigurationError, FetchError, TrustUnavailable
from peerseal.peers.addresses import is_loopback, literal, local_class
from peerseal.peers.fetch import HttpFetcher
from peerseal.peers.limits import FetchLimits, IssuerLimits
from peerseal.peers.oidc import OidcIssuer, check_jwks_uri
from peerseal.protocol.oidc import UnverifiedToken
from peerseal.testing import Clock
from tests.support.brokers import eventually
from tests.support.issuer import DISCOVERY, JWKS, Issuer, private_ca, running_issuer
from tests.support.name_service import own_address, resolve

NOW = 1_900_000_000
QUICK = FetchLimits(1.0, 1.0, 2.0)


@dataclass
class Listener:
    """A server on ``port`` that says nothing: how often it was connected to, and what it was sent."""

    port: int
    connections: int = 0
    seen: bytearray = field(default_factory=bytearray)


@contextmanager
def listening(host: str) -> Iterator[Listener]:
    server = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener = Listener(server.getsockname()[1])

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            listener.connections += 1
            connection.settimeout(1)
            with suppress(OSError), connection:
                while piece := connection.recv(1 << 16):
                    listener.seen += piece

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


@pytest.fixture
def issuer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    """One on another machine, as far as its name says: which operators may configure, wherever it leads."""
    with running_issuer(alg="ES256", tls=private_ca(tmp_path, "issuer.test", "keys.test")) as issuer:
        issuer.url = issuer.url.replace("127.0.0.1", "issuer.test")
        resolve(monkeypatch, {"issuer.test": "127.0.0.1"})
        yield issuer


def keys_of(issuer: Issuer, folder: Path) -> str:
    """The subject of a token of this issuer, whose keys are fetched for it."""
    limits = IssuerLimits(fetch=QUICK)
    trusted = OidcIssuer.configured(issuer.url, ca_file=folder / "ca.pem", limits=limits)
    return trusted.verify(UnverifiedToken.parse(issuer.token("ada", "shop")), audience="shop").subject


# where a name leads


def test_a_configured_issuer_may_name_its_own_server_wherever_that_is(issuer: Issuer, tmp_path: Path) -> None:
    assert keys_of(issuer, tmp_path) == "ada"
    assert issuer.fetched == {DISCOVERY: 1, JWKS: 1}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.3", "::1", "own"])
def test_a_name_that_leads_to_this_machine_is_sent_no_byte(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    address = own_address() if host == "own" else host
    with listening(address) as inside:
        resolve(monkeypatch, {"keys.test": address})
        issuer.answers[DISCOVERY] = issuer.discovery | {"jwks_uri": f"https://keys.test:{inside.port}/"}
        with pytest.raises(TrustUnavailable, match="only another machine may be named"):
            keys_of(issuer, tmp_path)
    assert inside.seen == b""


@pytest.mark.parametrize("address", ["0.0.0.0", "::ffff:127.0.0.1", "::ffff:7f00:1"])
def test_another_spelling_of_this_machine_is_sent_no_byte(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with listening("127.0.0.1") as inside:
        resolve(monkeypatch, {"keys.test": address})
        issuer.answers[DISCOVERY] = issuer.discovery | {"jwks_uri": f"https://keys.test:{inside.port}/"}
        with pytest.raises(TrustUnavailable, match="only another machine may be named"):
            keys_of(issuer, tmp_path)
    assert inside.seen == b""


def test_a_name_that_leads_here_only_once_it_was_looked_up_is_sent_no_byte(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: whatever a look-up said before, the connection's own address is looked at."""
    asked = count()
    with listening("127.0.0.3") as inside:
        resolve(monkeypatch, {"keys.test": lambda: "127.0.0.3" if next(asked) else "127.0.0.1"})
        assert socket.getaddrinfo("keys.test", 443)
        issuer.answers[DISCOVERY] = issuer.discovery | {"jwks_uri": f"https://keys.test:{inside.port}/"}
        with pytest.raises(TrustUnavailable, match=r"leads to 127\.0\.0\.3"):
            keys_of(issuer, tmp_path)
    assert inside.seen == b""


def test_an_issuer_on_loopback_may_name_loopback() -> None:
    with running_issuer(alg="ES256") as issuer, running_issuer(alg="ES256") as other:
        issuer.answers[DISCOVERY] = issuer.discovery | {"jwks_uri": other.url + JWKS}
        other.answers[JWKS] = issuer.jwks
        trusted = OidcIssuer.configured(issuer.url)
        assert trusted.verify(UnverifiedToken.parse(issuer.token("ada", "shop")), audience="shop").subject == "ada"


def test_an_issuer_that_redirects_is_not_followed(issuer: Issuer, tmp_path: Path) -> None:
    with listening("127.0.0.1") as inside:
        issuer.answers[JWKS] = (302, {"Location": f"https://127.0.0.1:{inside.port}/"})
        with pytest.raises(TrustUnavailable):
            keys_of(issuer, tmp_path)
    assert inside.connections == 0


def test_what_an_operator_configured_is_reached_on_this_machine() -> None:
    with running_issuer(alg="ES256") as issuer:
        assert HttpFetcher([issuer.url], QUICK).call("GET", JWKS).status == 200
        with pytest.raises(FetchError, match="loopback address"):
            HttpFetcher([issuer.url], QUICK, remote_only=True).call("GET", JWKS)
        assert issuer.fetched == {JWKS: 1}


# what a URL says of itself


LOCAL = ("127.0.0.1", "127.0.0.3", "127.255.255.254", "0.0.0.0", "[::]", "[::1]", "[::ffff:127.0.0.1]",
         "[::ffff:7f00:3]", "[0:0:0:0:0:ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "localhost", "LOCALHOST",
         "localhost.", "keys.localhost", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "169.254.169.254", "0",
         "[fe80::1]", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "224.0.0.1", "[ff02::1]", "255.255.255.255",
         "240.0.0.1")  # fmt: skip


@pytest.mark.parametrize("host", LOCAL)
def test_a_remote_issuer_may_not_name_an_address_of_this_machine_or_its_link(host: str) -> None:
    with pytest.raises(ConfigurationError, match="jwks_uri of a remote issuer"):
        check_jwks_uri(f"https://{host}/keys", "https://issuer.test")


@pytest.mark.parametrize("host", ["10.0.0.1", "192.168.1.1", "172.16.0.1", "[fd00::1]", "203.0.113.7", "[2001:db8::1]",
                                  "keys.test", "localhost.test", "127.0.0.1.test"])  # fmt: skip
def test_it_may_name_another_machine_a_private_address_too(host: str) -> None:
    assert check_jwks_uri(f"https://{host}/keys", "https://issuer.test")


@pytest.mark.parametrize(("host", "kind"), [("169.254.169.254", "link-local"), ("[fe80::1%25eth0]", "link-local"),
                                            ("0.0.0.0", "unspecified"), ("[ff02::1]", "multicast"),
                                            ("255.255.255.255", "reserved"), ("10.0.0.1", None)])  # fmt: skip
def test_each_class_of_addresses_has_its_name(host: str, kind: str | None) -> None:
    address = literal(host)
    assert address is not None
    assert local_class(address) == kind


@pytest.mark.parametrize("url", ["http://localhost.test", "http://127.0.0.1.test", "http://[::ffff:10.0.0.1]", "http://",
                                 "http://[::1", "http://a@127.0.0.1.test", "http://test\\@127.0.0.1:x"])  # fmt: skip
def test_no_other_host_is_taken_for_loopback(url: str) -> None:
    assert not is_loopback(url)


# a new server each time


def test_an_issuer_that_names_a_new_server_each_time_holds_no_more_than_two_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its keys are on a hundred servers, all of which answer and none of which hangs up."""
    clock, limits = Clock(NOW), IssuerLimits(fetch=QUICK)
    names = [f"keys-{number}.localhost" for number in range(100)]
    resolve(monkeypatch, dict.fromkeys(names, "127.0.0.1"))
    with running_issuer(alg="ES256") as issuer, quiet():
        trusted = OidcIssuer.configured(issuer.url, limits=limits, clock=clock)
        token = UnverifiedToken.parse(issuer.token("ada", "shop", now=NOW))
        port = issuer.url.rpartition(":")[2]
        before = open_files()
        for name in names:
            issuer.answers[DISCOVERY] = issuer.discovery | {"jwks_uri": f"http://{name}:{port}{JWKS}"}
            trusted.verify(token, audience="shop")
            clock.advance(limits.refresh_interval)
            token = UnverifiedToken.parse(issuer.token("ada", "shop", now=int(clock())))
        assert issuer.fetched[JWKS] == len(names)
        eventually(lambda: open_files() - before <= 4, "no more than two connections, both ends of which are here")


def open_files() -> int:
    """Of this process."""
    return len(os.listdir("/dev/fd"))


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is closed only because the collector came by."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
