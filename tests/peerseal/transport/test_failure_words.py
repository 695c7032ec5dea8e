"""A call that fails says why, in words that a person can look for."""

import socket
from collections.abc import Callable
from pathlib import Path

import certifi
import pytest
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, ReadTimeoutError

from demo.processes import free_port
from peerseal.errors import FetchError
from peerseal.testing import MemoryRegistry
from peerseal.transport.failure_words import failure_in_words, unusable_authorities
from peerseal.transport.fetch import HttpFetcher
from tests.peerseal.served import served


@pytest.fixture
def failure() -> Callable[[str], str]:
    """The message of a call to that URL."""

    def failure(url: str) -> str:
        with pytest.raises(FetchError) as failed:
            HttpFetcher([url]).call("GET", "/a")
        return str(failed.value)

    return failure


def test_a_port_at_which_nothing_listens(failure: Callable[[str], str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert failure(url) == f"GET {url}/a: NewConnectionError, connection refused"


def test_a_server_that_speaks_no_tls(failure: Callable[[str], str]) -> None:
    with MemoryRegistry() as registry, served(registry) as url:
        assert failure(url.replace("http:", "https:")).endswith(
            "/a: SSLError, TLS failed; does the server speak https at this port?"
        )


def test_a_proxy_that_does_not_answer(failure: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert failure("http://registry.test").endswith(
        "/a: ProxyError, the HTTP proxy does not connect (connection refused): see HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            NameResolutionError("registry", HTTPConnection("registry"), socket.gaierror()),
            "NameResolutionError, the host's name is not known",
        ),
        (ConnectTimeoutError("slow"), "ConnectTimeoutError, no connection in time"),
        (ReadTimeoutError(HTTPConnectionPool("registry"), "/", "slow"), "ReadTimeoutError, no answer in time"),
        (ValueError("secret"), "ValueError"),
    ],
)
def test_other_failures(error: Exception, words: str) -> None:
    assert failure_in_words(error) == words


class TestAuthorities:
    @pytest.fixture(params=["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
    def variable(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        return str(request.param)

    @pytest.mark.parametrize(
        ("name", "words"),
        [("absent.pem", "no such file or directory"), ("text.pem", "holds no certificate: expected PEM")],
    )
    def test_a_variable_that_names_none_is_named(
        self,
        failure: Callable[[str], str],
        variable: str,
        name: str,
        words: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "text.pem").write_text("no certificate")
        monkeypatch.setenv(variable, str(tmp_path / name))
        with MemoryRegistry() as registry, served(registry) as url:
            said = failure(url.replace("http:", "https:"))
        assert said.endswith(f", {variable}={tmp_path / name}: {words}")

    def test_without_a_variable_nothing_is_wrong_with_it(self, variable: str) -> None:
        assert unusable_authorities({}) is None
        assert unusable_authorities({variable: certifi.where()}) is None
