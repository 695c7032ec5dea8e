"""Which certificates a registry's https is checked with: those of its own organisation, and of no other."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from peerseal.errors import FetchError
from peerseal.testing import Answer
from peerseal.transport.fetch import HttpFetcher
from tests.support.answering import answering
from tests.support.certificates import Authority


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@contextmanager
def served_by(authority: Authority) -> Iterator[str]:
    """The URL of a server with a certificate of that authority."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.issue("server", server=True))
    server = ThreadingHTTPServer(("127.0.0.1", 0), answering(lambda *_: Answer(200, authority.name.encode())))
    server.daemon_threads = True
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def authority(folder: Path, name: str) -> Authority:
    (folder / name).mkdir()
    return Authority.make(folder / name, name)


def test_a_foreign_registry_is_not_checked_with_the_authority_of_the_own_one(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    acme, partner = (authority(tmp_path, name) for name in ("acme", "partner"))
    with served_by(acme) as own, served_by(partner) as foreign:
        for given in ({"ca_file": acme.file}, {"ca": acme.file.read_text()}):
            fetcher = HttpFetcher([own], **given)
            assert fetcher.call("GET", "/").body == b"acme"
            with pytest.raises(FetchError, match="certificate"):
                fetcher.for_registry([own]).call("GET", "/")
            environment.setenv("REQUESTS_CA_BUNDLE", str(partner.file))
            assert fetcher.for_registry([foreign]).call("GET", "/").body == b"partner"
            assert fetcher.call("GET", "/").body == b"acme", "the own one does not look at the environment"
            environment.delenv("REQUESTS_CA_BUNDLE")
