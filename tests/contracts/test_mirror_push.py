"""A mirror that serves tells its peers of changes as soon as the registry tells the mirror."""

import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from peerseal import TrustLimits, TrustStore
from peerseal.audit.mirror_metrics import MirrorMetrics
from peerseal.audit.public_mirror import PublicMirror
from peerseal.audit.serving import served
from peerseal.audit.waiting_peers import WaitingPeers
from peerseal.errors import FetchError, PeersealError
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.key_set import KeySetDocument
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, service_id
from peerseal.transport.fetch import Answer, Fetcher, HttpFetcher, Offer
from tests.registry.driver import DOMAIN, Driver
from tests.registry.in_process import InProcess
from tests.support.keys import key
from tests.support.revoked import is_revoked
from tests.support.waiting import until

PATIENT = TrustLimits(refresh_interval=24 * 3600.0)
"""A peer that asks again only when it is told of a change, or after 15 s."""


@pytest.fixture
def registry(sqlite_url: str, tmp_path: Path) -> Iterator[Driver]:
    """A registry whose clock runs, as waits do."""
    driver = Driver(sqlite_url, tmp_path / "home")
    yield driver
    driver.close()


@pytest.fixture
def billing(registry: Driver) -> KeyPair:
    return registry.joined(key(), "billing")


class Waiting(InProcess):
    """A registry that lets its callers wait. ``down`` makes each call fail, ``lacks_key_sets`` those for key sets.
    ``waits`` has for how long each question was to be held."""

    down = lacks_key_sets = False

    def __init__(self, registry: Driver) -> None:
        super().__init__(registry)
        self.asked = Counter[str]()
        self.waits = list[int]()
        self._client = registry.app.test_client()
        self._waiting = registry.registry.changes.waiting

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        self.asked[path.partition("?")[0]] += 1
        if self.down or (self.lacks_key_sets and "jwks.jwt" in path):
            raise FetchError("down")
        if "wait=" not in path:
            return super().call(method, path, body=body, headers=headers)
        self.waits.append(int(path.rpartition("=")[2]))
        answer = self._client.get(path, environ_overrides={"wsgi.multithread": True})
        return Answer(answer.status_code, answer.data, {name.lower(): value for name, value in answer.headers.items()})

    def hang_up(self) -> None:
        """As a registry that ends: it answers the calls that wait, and lets no more wait."""
        self._waiting.end()


class Counting(HttpFetcher):
    """A peer's way to a mirror, which counts what it asks for."""

    def __init__(self, url: str) -> None:
        super().__init__([url])
        self.asked = Counter[str]()

    def offers(self, path: str, *, headers: Mapping[str, str] | None = None, wait: float = 0.0) -> Iterator[Offer]:
        self.asked[path.partition("?")[0]] += 1
        return super().offers(path, headers=headers, wait=wait)


class Site:
    """A mirror that serves, and keeps up in a thread of its own, as `peerseal mirror --serve` does."""

    def __init__(
        self, source: Fetcher, pin: str, folder: Path, peers: WaitingPeers, port: int, interval: float = 0.1
    ) -> None:
        self.source, self.pin, self.folder, self.peers, self.interval = source, pin, folder, peers, interval
        self.url = f"http://127.0.0.1:{port}"
        self.mirror = PublicMirror(folder, source, pin)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_up)

    def _keep_up(self) -> None:
        while not self._ended.is_set():
            try:
                self.mirror.update()
                assert self.mirror.newest is not None
                self.peers.tell(self.mirror.newest)
            except PeersealError:
                pass  # the command says so, and goes on
            self.mirror.wait(self.interval, self._ended)

    @contextmanager
    def running(self) -> Iterator["Site"]:
        self._thread.start()
        try:
            until(lambda: self.mirror.newest is not None, what="the first update")
            yield self
        finally:
            self._ended.set()
            self.source.hang_up()
            self._thread.join()

    @property
    def seq(self) -> int:
        assert self.mirror.newest is not None
        return self.mirror.newest.changes.seq

    def store(self, fetcher: Fetcher | None = None) -> TrustStore:
        """A peer that knows the mirror alone."""
        return TrustStore(self.url, pin=self.pin, limits=PATIENT, fetcher=fetcher)

    def asks(self, since: int, wait: int = 20) -> socket.socket:
        """A connection on which a peer asks what changed."""
        connection = socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), timeout=20)
        connection.sendall(f"GET /v1/changes?since={since}&wait={wait} HTTP/1.1\r\nHost: m\r\n\r\n".encode())
        return connection


Start = Callable[..., Site]


@pytest.fixture
def start(registry: Driver, tmp_path: Path) -> Iterator[Start]:
    """Starts mirrors of a source, each with a folder of its own."""
    with ExitStack() as stack:
        count = iter(range(10))

        def start(source: Fetcher, *, most: int = 1000, interval: float = 0.1) -> Site:
            folder = tmp_path / f"mirror-{next(count)}"
            peers = stack.enter_context(WaitingPeers(most))
            port = stack.enter_context(served(folder, "127.0.0.1:0", peers))
            assert port is not None
            return stack.enter_context(Site(source, registry.pin, folder, peers, port, interval).running())

        yield start


@pytest.fixture
def source(registry: Driver, billing: KeyPair) -> Waiting:
    return Waiting(registry)


@pytest.fixture
def site(start: Start, source: Waiting) -> Site:
    return start(source)


def kid_of(pair: KeyPair, service: str = "billing") -> str:
    return make_kid(service_id(DOMAIN, service), pair.public.thumbprint)


def answer_on(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of the answer, after which the mirror closes the connection."""
    received = b""
    while part := connection.recv(65536):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def watching(site: Site, trust: TrustStore, kid: str) -> None:
    """Has the peer know the key, and wait for changes at the mirror."""
    assert trust.key(kid).kid == kid
    until(lambda: len(site.peers) > 0, what="the peer's question")


def test_a_peer_of_the_mirror_alone_refuses_a_revoked_key_without_polling(
    registry: Driver, site: Site, source: Waiting, billing: KeyPair
) -> None:
    fetcher = Counting(site.url)
    trust = site.store(fetcher)
    watching(site, trust, kid_of(billing))
    before = source.asked["/v1/changes"], fetcher.asked["/v1/changes"], fetcher.asked["/v1/changes/recent.jwt"]
    registry.operator_ends(billing, "billing")
    until(lambda: is_revoked(trust, kid_of(billing)), what="the refusal")
    after = source.asked["/v1/changes"], fetcher.asked["/v1/changes"], fetcher.asked["/v1/changes/recent.jwt"]
    of_mirror, of_peer, recent = (each - one for each, one in zip(after, before, strict=True))
    assert (of_mirror <= 5, of_peer <= 3, recent) == (True, True, 0)  # also where all of it takes 20 s
    trust.stop()


def test_the_interval_delays_nothing_while_the_registry_holds_questions(
    registry: Driver, start: Start, source: Waiting, billing: KeyPair
) -> None:
    site, other = start(source, interval=3600.0), registry.joined(key(), "billing")
    trust = site.store()
    until(lambda: site.seq == registry.changes(0).seq, what="the update")
    for pair in (billing, other):
        watching(site, trust, kid_of(pair))
        registry.operator_ends(pair, "billing")
        until(lambda pair=pair: is_revoked(trust, kid_of(pair)), what="the refusal")  # type: ignore[misc]
    recent = site.folder / "v1/changes/recent.jwt"
    until(lambda: registry.read(Changes, recent.read_text()).seq == site.seq, what="the recent changes")
    trust.stop()


def test_a_new_key_is_in_the_mirror_before_its_peers_are_told_of_it(
    registry: Driver, site: Site, billing: KeyPair
) -> None:
    added, token = key(), registry.join_token("billing")
    since = registry.changes(0).seq
    until(lambda: site.seq == since, what="the entry of the token")
    with site.asks(since) as connection:
        until(lambda: len(site.peers) == 1, what="the question")
        registry.join(added, "billing", token)
        status, body = answer_on(connection)
        assert status == 200
        told = registry.read(Changes, body.decode())
        assert (told.since, told.services) == (since, (service_id(DOMAIN, "billing"),))
        file = site.folder / "v1/services/billing/jwks.jwt"
        keys = registry.read(KeySetDocument, file.read_text()).keys
        assert kid_of(added) in {listed.kid for listed in keys}


def test_a_document_that_cannot_be_had_is_fetched_again_every_second(
    registry: Driver, start: Start, source: Waiting, billing: KeyPair
) -> None:
    site = start(source, interval=3600.0)
    source.lacks_key_sets = True
    added = registry.joined(key(), "billing")
    until(lambda: source.waits[-4:] == [1] * 4, what="short waits")
    source.lacks_key_sets = False
    trust = site.store()
    file = site.folder / "v1/services/billing/jwks.jwt"
    until(lambda: kid_of(added) in {listed.kid for listed in registry.read(KeySetDocument, file.read_text()).keys})
    assert trust.key(kid_of(added)).kid == kid_of(added)
    trust.stop()


def test_a_peer_that_is_further_back_is_sent_to_the_recent_changes(registry: Driver, site: Site) -> None:
    with site.asks(site.seq - 1) as late_peer:
        assert answer_on(late_peer) == (404, b"")
    recent = registry.read(Changes, requests.get(f"{site.url}/v1/changes/recent.jwt", timeout=20).text)
    assert recent.seq == site.seq


def test_a_peer_that_knows_more_than_the_mirror_waits_until_the_mirror_does(registry: Driver, site: Site) -> None:
    ahead = site.seq + 4
    with site.asks(ahead) as connection:
        until(lambda: len(site.peers) == 1, what="the question")
        for _ in range(3):
            registry.joined(key(), "billing")
        assert answer_on(connection)[0] in (200, 404)
    assert site.seq > ahead


def test_a_malformed_question_is_refused(site: Site) -> None:
    for query in ("since=x", "since=1&wait=-1", "since=1&wait=1e3", "since=²"):
        assert requests.get(f"{site.url}/v1/changes?{query}", timeout=20).status_code == 400, query


def test_500_questions_wait_at_one_mirror_and_are_all_answered(registry: Driver, site: Site, billing: KeyPair) -> None:
    threads = threading.active_count()
    with ExitStack() as opened:
        connections = [opened.enter_context(site.asks(site.seq)) for _ in range(500)]
        until(lambda: len(site.peers) == 500, what="500 questions")
        until(lambda: threading.active_count() <= threads + 1, what="the end of their threads")
        registry.operator_ends(billing, "billing")
        answers = {answer_on(connection) for connection in connections}
    ((status, body),) = answers
    assert status == 200
    assert registry.read(Changes, body.decode()).revoked == (kid_of(billing),)


def test_a_peer_that_leaves_frees_its_place_and_one_too_many_is_answered_at_once(
    start: Start, source: Waiting, caplog: pytest.LogCaptureFixture
) -> None:
    site = start(source, most=1)
    with site.asks(site.seq) as first:
        until(lambda: len(site.peers) == 1, what="the first question")
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so that its end is a reset
        with site.asks(site.seq) as second:
            assert answer_on(second)[0] in (200, 404)
    until(lambda: len(site.peers) == 0, what="the end of the first question")
    with site.asks(site.seq):
        until(lambda: len(site.peers) == 1, what="another question")
    assert caplog.text == ""


def test_while_the_registry_is_down_peers_wait_on_and_believe_what_they_know(
    registry: Driver, site: Site, source: Waiting, billing: KeyPair, caplog: pytest.LogCaptureFixture
) -> None:
    trust = site.store()
    watching(site, trust, kid_of(billing))
    source.down = True
    source.hang_up()
    asked = source.asked.total()
    until(lambda: source.asked.total() > asked + 5, what="attempts of the mirror")
    assert len(site.peers) == 1
    assert trust.key(kid_of(billing)).kid == kid_of(billing)
    assert "cannot follow" not in caplog.text
    trust.stop()


def test_the_end_of_the_mirror_answers_all_questions(registry: Driver, source: Waiting, tmp_path: Path) -> None:
    with ExitStack() as opened:
        with WaitingPeers() as peers, served(tmp_path / "mirror", "127.0.0.1:0", peers) as port:
            site = Site(source, registry.pin, tmp_path / "mirror", peers, port or 0)
            with site.running():
                connections = [opened.enter_context(site.asks(site.seq)) for _ in range(10)]
                until(lambda: len(peers) == 10, what="the questions")
        assert {answer_on(connection)[0] for connection in connections} <= {200, 404}
    assert len(peers) == 0


def test_a_mirror_of_a_mirror_tells_its_peers_too(registry: Driver, site: Site, start: Start, billing: KeyPair) -> None:
    second = start(HttpFetcher([site.url]))
    trust = second.store()
    watching(second, trust, kid_of(billing))
    registry.operator_ends(billing, "billing")
    until(lambda: is_revoked(trust, kid_of(billing)), what="the refusal")
    trust.stop()


def test_a_mirror_of_plain_files_is_polled(registry: Driver, start: Start, billing: KeyPair, tmp_path: Path) -> None:
    files = PublicMirror(tmp_path / "files", InProcess(registry), registry.pin)
    files.update()
    with served(tmp_path / "files", "127.0.0.1:0") as port:
        site = start(HttpFetcher([f"http://127.0.0.1:{port}"]))
        trust = site.store()
        watching(site, trust, kid_of(billing))
        registry.operator_ends(billing, "billing")

        def told() -> bool:
            files.update()
            return is_revoked(trust, kid_of(billing))

        until(told, what="the refusal", every=0.2)
        trust.stop()


def test_the_metrics_count_the_questions_that_wait(site: Site, tmp_path: Path) -> None:
    file = site.folder / "metrics"
    with site.asks(site.seq):
        until(lambda: len(site.peers) == 1, what="the question")
        MirrorMetrics(file, site.peers).failed()
    answer = requests.get(f"{site.url}/metrics", timeout=20)
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4"
    assert "\npeerseal_mirror_waiting_calls 1\n" in answer.text
    assert "\npeerseal_mirror_waiting_calls_limit 1000\n" in answer.text
