"""Each peer at the wire: silent connections, odd requests, a next service that is away, and wrong usage."""

import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType

import pytest

import peerseal
from tests.languages.conftest import LANGUAGES, Peer, environment_of, send, settings_of, started
from tests.support.processes import LOOPBACK, Server, free_port
from tests.support.stack import Stack

pytestmark = [pytest.mark.languages, pytest.mark.e2e, pytest.mark.slow]

TARGET = "/greetings/ada"
SILENT = 300
"""Connections: more than a peer has threads."""


def token_for(
    service: Server,
    caller: peerseal.Identity,
    target: str = TARGET,
    body: bytes = b"",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> str:
    return caller.sign_request(service.name, method="POST", target=target, body=body, headers=headers)


def connected(service: Server, sent: bytes) -> socket.socket:
    """A connection on which that much of a request is sent."""
    port = int(service.url.rpartition(":")[2])
    connection = socket.create_connection((LOOPBACK, port), timeout=60)
    connection.sendall(sent)
    return connection


def until_closed(connection: socket.socket) -> bytes:
    """What comes until the service closes the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /greetings/ada HTTP/1.1\r\nHost: a",
        b"POST /greetings/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
    ],
    ids=["nothing", "half a head", "no body"],
)
def test_a_peer_answers_while_many_clients_are_silent(service: Server, caller: peerseal.Identity, sent: bytes) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(service, sent)) for _ in range(SILENT)]
        assert send(service.url + TARGET, token_for(service, caller), b"", {})[0] == 200
        if sent:
            until_closed(silent[-1])  # within the timeout of a minute


@pytest.mark.parametrize("headers", [{"x-name": "Zoë ÿ"}, {"host": ""}, {"transfer-encoding": "chunked"}])
def test_a_peer_knows_each_header_that_a_token_binds(
    service: Server, caller: peerseal.Identity, headers: dict[str, str]
) -> None:
    chunked = "transfer-encoding" in headers
    sent = headers if "x-name" in headers else {}
    bound = headers | ({"host": service.url.partition("//")[2]} if "host" in headers else {})
    token = token_for(service, caller, body=b"ada", headers=bound)
    assert send(service.url + TARGET, token, iter([b"ada"]) if chunked else b"ada", sent)[0] == 200
    other = token_for(service, caller, body=b"ada", headers=bound | {next(iter(bound)): "other"})
    assert send(service.url + TARGET, other, b"ada", sent) == (401, "wrong_binding")


def test_a_peer_refuses_a_body_that_cannot_be_read(peer: Peer, service: Server, caller: peerseal.Identity) -> None:
    head = f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token_for(service, caller)}\r\n"
    with connected(
        service, f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\nada\r\n".encode()
    ) as connection:
        answer = until_closed(connection)
    assert answer.split()[1] == b"400"
    assert peer.language == "node" or b"content_unreadable" in answer  # Node.js answers before the peer reads


def test_a_peer_refuses_a_body_that_is_too_large(service: Server, caller: peerseal.Identity) -> None:
    body = bytes((1 << 20) + 60_000)
    assert send(service.url + TARGET, token_for(service, caller, body=body), body, {}) == (413, "content_too_large")


def test_a_peer_takes_characters_that_no_uri_has(peer: Peer, service: Server, caller: peerseal.Identity) -> None:
    target = '/greetings/a|"[]{}^<>`\\b?c=|'
    head = f"POST {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token_for(service, caller, target)}\r\n"
    with connected(service, f"{head}Connection: close\r\n\r\n".encode()) as connection:
        status = until_closed(connection).split()[1]
    assert status == (b"400" if peer.language == "java" else b"200")  # the JDK's server reads the target as a URI


def test_a_peer_says_that_the_next_service_is_away(peer: Peer, domain: Stack, caller: peerseal.Identity) -> None:
    name = f"before-{peer.language}"
    away = f"http://{LOOPBACK}:{free_port()}/a"
    service = started(peer, domain, name, settings_of(domain, name, "host"), "resource-service", away)
    assert send(service.url + TARGET, token_for(service, caller), b"", {}) == (502, "next_unavailable")


def wrong_usages(peer: Peer) -> Iterator[list[str]]:
    """Command lines; each is run without settings."""
    wrong = ["", "other", "constructor", "serve", "serve 1 b", "call a GET", "sign"]
    unset = ["serve 8081", "call a GET http://b/", "rotate"]
    for arguments in wrong + unset:
        yield peer.command(*arguments.split())
    yield LANGUAGES[peer.language].vectors(peer.folder)


def test_a_peer_says_how_it_is_used(peer: Peer) -> None:
    for command in wrong_usages(peer):
        ended = subprocess.run(command, env=environment_of({}), capture_output=True, encoding="utf-8", timeout=60)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "usage: " in ended.stderr
        assert len(ended.stderr.splitlines()) <= 4, ended.stderr


def test_a_peer_that_cannot_start_says_why_in_a_line(peer: Peer, tmp_path: Path) -> None:
    settings = {
        "PEERSEAL_SERVICE": "a",
        "PEERSEAL_REGISTRY_URL": f"http://{LOOPBACK}:{free_port()}",
        "PEERSEAL_KEY_DIR": str(tmp_path),
    }
    for right in ({"PEERSEAL_JOIN_TOKEN": "psj1.a"}, {"PEERSEAL_REGISTRY_PIN": "A" * 43}):
        command = peer.command("serve", "8081")
        ended = subprocess.run(
            command, env=environment_of({**settings, **right}), capture_output=True, encoding="utf-8", timeout=60
        )
        assert (ended.returncode, ended.stdout) == (1, "")
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
