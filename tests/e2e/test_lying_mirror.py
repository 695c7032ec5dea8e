"""A real nginx as the mirror of a real registry, asked first: each false document is refused with its own error, and
the store goes on to the registry itself."""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import peerseal
from peerseal import TrustLimits, TrustStore
from peerseal.errors import DocumentRefused, FetchError, TrustUnavailable
from peerseal.protocol.documents.key_set import KeySetDocument
from peerseal.protocol.join import JoinToken
from peerseal.runtime.limits import FetchLimits
from peerseal.testing import MemoryRegistry
from peerseal.transport.fetch import HttpFetcher
from tests.support.load import get
from tests.support.nginx import nginx_command
from tests.support.processes import LOOPBACK, Process, free_port
from tests.support.stack import CLIENT, DOMAIN, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.nginx, pytest.mark.slow]

SET = f"/v1/services/{CLIENT}/jwks.jwt"
OWNER = f"{DOMAIN}/{CLIENT}"
OTHER = "second-service"
QUIET = TrustLimits(poll_interval=3600.0, cooldown=0.0)
SHORT = FetchLimits(read_timeout=1.0, total_timeout=2.0, shortest_rest=0.0)

HTTP = """
    default_type application/jwt;
    server {{
        listen {listen};
        root {folder}/lies;
        if (-f {folder}/slow) {{ set $limit_rate 20; }}
        location / {{ try_files $uri @registry; }}
        location @registry {{ proxy_pass {registry}; }}
    }}
"""


@dataclass
class Mirror:
    """An nginx that answers with what lies in its folder, and asks the registry for all else."""

    stack: Stack
    folder: Path
    url: str
    kid: str

    def store(self, *urls: str) -> TrustStore:
        """A trust store that has seen nothing yet. It asks these URLs in turn: the mirror, and then the registry."""
        asked = urls or (self.url, self.stack.registry_url)
        pin = JoinToken.parse(self.stack.join_token(CLIENT)).pin
        return TrustStore(asked, pin=pin, limits=QUIET, fetcher=HttpFetcher(asked, SHORT))

    def honest(self, path: str = SET) -> bytes:
        """What the registry itself says now."""
        status, body = get(self.stack.registry_url + path)
        assert status == 200, body
        return body

    def serves(self, body: bytes, path: str = SET) -> None:
        """Give this in the place of the registry's answer."""
        self._file(path).write_bytes(body)

    def serves_without_end(self, path: str = SET) -> None:
        """A gigabyte, none of which takes room on the disk."""
        with self._file(path).open("wb") as file:
            file.truncate(1 << 30)

    def slows_down(self) -> None:
        """Some bytes a second."""
        (self.folder / "slow").touch()

    def is_honest_again(self) -> None:
        shutil.rmtree(self.folder / "lies", ignore_errors=True)
        (self.folder / "slow").unlink(missing_ok=True)

    def _file(self, path: str) -> Path:
        file = self.folder / "lies" / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        stack.start_registry()
        services = [peerseal.Identity.from_env(stack.service_settings(name)).start() for name in (CLIENT, OTHER)]
        listen = f"{LOOPBACK}:{port}"
        command = nginx_command(folder, HTTP.format(folder=folder, listen=listen, registry=stack.registry_url))
        nginx = Process("nginx", command, log=folder / "log")
        stack.keep(nginx).wait_until_answers(f"http://{listen}/readyz")
        yield Mirror(stack, folder, f"http://{listen}", services[0].credentials.key_id)
        for service in services:
            service.stop()


@pytest.fixture
def mirror(running: Mirror) -> Iterator[Mirror]:
    yield running
    running.is_honest_again()


# ---- documents with which the store never saw anything yet


def altered(mirror: Mirror) -> None:
    head, payload, signature = mirror.honest().split(b".")
    at = len(payload) // 2
    other = b"A" if payload[at : at + 1] != b"A" else b"B"
    mirror.serves(b".".join((head, payload[:at] + other + payload[at + 1 :], signature)))


def truncated(mirror: Mirror) -> None:
    mirror.serves(mirror.honest()[:-200])


def empty(mirror: Mirror) -> None:
    mirror.serves(b"")


def of_another_service(mirror: Mirror) -> None:
    mirror.serves(mirror.honest(f"/v1/services/{OTHER}/jwks.jwt"))


def of_another_registry(mirror: Mirror) -> None:
    with MemoryRegistry(DOMAIN) as impostor:
        impostor.identity(CLIENT)
        mirror.serves(impostor.call("GET", SET).body)


def of_another_kind(mirror: Mirror) -> None:
    mirror.serves(mirror.honest("/v1/changes?since=0"))


def endless(mirror: Mirror) -> None:
    mirror.serves_without_end()


def slow(mirror: Mirror) -> None:
    mirror.serves(mirror.honest())
    mirror.slows_down()


LIES: list[tuple[Callable[[Mirror], None], str]] = [
    (altered, "document_bad_signature"),
    (truncated, "document_malformed"),
    (empty, "document_malformed"),
    (of_another_service, "document_wrong_subject"),
    (of_another_registry, "document_unknown_signer"),
    (of_another_kind, "document_wrong_type"),
    (endless, "answer_too_large"),
    (slow, "answer_too_slow"),
]


def passed_over(mirror: Mirror, caplog: pytest.LogCaptureFixture, path: str = SET) -> set[str]:
    """The codes for which the mirror's answers at that path were, and none of the registry's own."""
    messages = [record.getMessage() for record in caplog.records if record.name == "peerseal.fetch"]
    assert all(message.startswith(mirror.url) for message in messages), messages
    return {message.partition("(")[2].partition(")")[0] for message in messages if path in message}


@pytest.mark.parametrize(("lie", "code"), LIES, ids=[lie.__name__ for lie, _ in LIES])
def test_a_false_document_is_refused_by_its_code_and_the_next_mirror_has_the_true_one(
    mirror: Mirror, caplog: pytest.LogCaptureFixture, lie: Callable[[Mirror], None], code: str
) -> None:
    trust = mirror.store()
    assert trust.domain == DOMAIN
    lie(mirror)
    assert trust.key(mirror.kid).kid == mirror.kid
    assert passed_over(mirror, caplog) == {code}
    trust.stop()


@pytest.mark.parametrize(("lie", "code"), LIES, ids=[lie.__name__ for lie, _ in LIES])
def test_with_no_other_mirror_it_is_refused_by_its_code(
    mirror: Mirror, lie: Callable[[Mirror], None], code: str
) -> None:
    trust = mirror.store(mirror.url)
    assert trust.domain == DOMAIN
    lie(mirror)
    with pytest.raises((DocumentRefused, FetchError)) as caught:
        trust.document(KeySetDocument, SET, OWNER)
    assert caught.value.code == code
    with pytest.raises(TrustUnavailable):
        trust.key(mirror.kid)
    mirror.is_honest_again()
    assert trust.key(mirror.kid).kid == mirror.kid
    trust.stop()


def test_an_old_document_is_refused_and_the_next_mirror_has_the_new_one(
    mirror: Mirror, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trust, alone = mirror.store(), mirror.store(mirror.url)
    for store in (trust, alone):
        assert store.key(mirror.kid).kid == mirror.kid
    mirror.serves(mirror.honest())
    newcomer = peerseal.Identity.from_env(mirror.stack.service_settings(CLIENT, host="another")).start()
    kid = newcomer.credentials.key_id
    trust.refresh()
    assert trust.key(kid).kid == kid
    assert passed_over(mirror, caplog) == {"document_rolled_back"}
    alone.refresh()
    assert "document_rolled_back" in caplog.text
    with pytest.raises(TrustUnavailable):
        alone.key(kid)
    newcomer.stop()
    for store in (trust, alone):
        store.stop()


def test_old_changes_are_refused_and_the_next_mirror_has_the_new_ones(
    mirror: Mirror, caplog: pytest.LogCaptureFixture
) -> None:
    trust = mirror.store()
    trust.key(mirror.kid)
    since = trust.document(KeySetDocument, SET, OWNER).seq
    mirror.serves(mirror.honest(f"/v1/changes?since={since}"), "/v1/changes")
    newcomer = peerseal.Identity.from_env(mirror.stack.service_settings(CLIENT, host="yet-another")).start()
    trust.document(KeySetDocument, f"/v1/services/{OTHER}/jwks.jwt", f"{DOMAIN}/{OTHER}")  # shows the ledger's size
    trust.refresh()
    assert trust.key(newcomer.credentials.key_id)
    assert "document_rolled_back" in passed_over(mirror, caplog, "/v1/changes")
    newcomer.stop()
    trust.stop()


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/.well-known/peerseal-registry", b"a.b.c", "document_malformed"),
        ("/ledger/proof", b"<html>", "document_malformed"),
        ("/ledger/proof", b'{"from":1,"to":2,"proof":[]}', "document_malformed"),
    ],
)
def test_neither_the_roots_document_nor_a_proof_is_believed_for_where_it_comes_from(
    mirror: Mirror, caplog: pytest.LogCaptureFixture, path: str, body: bytes, code: str
) -> None:
    mirror.serves(body, path)
    trust = mirror.store()
    trust.key(mirror.kid)
    newcomer = peerseal.Identity.from_env(mirror.stack.service_settings(OTHER, host="a-third")).start()
    trust.document(KeySetDocument, f"/v1/services/{OTHER}/jwks.jwt", f"{DOMAIN}/{OTHER}")
    assert passed_over(mirror, caplog, path) == {code}
    newcomer.stop()
    trust.stop()
