"""A node has its checkpoints cosigned by witnesses over HTTP: honest ones, slow ones, and ones that lie."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.audit.witness import Witness
from peerseal.audit.witness_server import witnessing
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import ledger_public_key, verify_checkpoint
from peerseal.protocol.ledger.cosignature import LOG_KEY, WITNESS_KEY, Note, NoteKey, cosign, cosigners
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.protocol.tokens.claims import LATEST_TIME
from registry.services.setup.ceremony import Ceremony, signed, written
from registry.services.witnesses.cosigning import AGAIN_AFTER, LONGEST_REST, MOST_OFF
from registry.services.witnesses.state import QuorumState
from registry.witness_addresses import WitnessAddress
from tests.registry.driver import DOMAIN, Clock, Driver
from tests.support.foreign_log import ForeignLog
from tests.support.waiting import until

COSIGNED = "/ledger/checkpoint.cosigned"
Answer = tuple[int, bytes]


class Witnesses:
    """Witnesses of one registry, each over HTTP, as many as a test asks for."""

    def __init__(self, registry: Driver, folder: Path, running: ExitStack) -> None:
        self.registry = registry
        self._folder = folder
        self._running = running
        self.bodies: list[bytes] = []

    def honest(self, name: str) -> WitnessAddress:
        """One as ``peerseal witness`` runs it."""
        witness = Witness(self._folder / name, name, [self.log_key()])
        address = f"127.0.0.1:{self._running.enter_context(witnessing(witness, '127.0.0.1:0'))}"
        return WitnessAddress(witness.key, f"http://{address}")

    def log_key(self) -> NoteKey:
        jwk = self.registry.registry.authority.in_force().keys.ledger_key
        return NoteKey.of(DOMAIN, LOG_KEY, ledger_public_key(jwk))

    def down(self, name: str) -> WitnessAddress:
        """One at whose address nothing listens."""
        return WitnessAddress(key_of(name), "http://127.0.0.1:1")

    def odd(self, name: str, answer: Callable[[bytes], Answer]) -> WitnessAddress:
        """One that answers as the test says."""
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                bodies.append(body)
                status, content = answer(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self._running.callback(server.server_close)
        self._running.callback(server.shutdown)
        return WitnessAddress(key_of(name), f"http://127.0.0.1:{server.server_port}")

    def node(self, *witnesses: WitnessAddress) -> Driver:
        """The registry's node with these witnesses, whose thread is stopped at the end."""
        node = self.registry.node(witnesses=witnesses)
        self._running.callback(node.close)
        self._running.callback(node.registry.cosigning.stop)
        return node


def signer_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32))


def key_of(name: str) -> NoteKey:
    return NoteKey.of(name, WITNESS_KEY, signer_of(name).public_key())


def note_in(body: bytes) -> Note:
    return Note.parse(body.decode().partition("\n\n")[2])


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Driver]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    driver = Driver(f"sqlite:///{home / 'registry.sqlite3'}", home)
    yield driver
    driver.close()


@pytest.fixture
def witnesses(registry: Driver, tmp_path: Path) -> Iterator[Witnesses]:
    with ExitStack() as running:
        yield Witnesses(registry, tmp_path, running)


def served(node: Driver) -> Note | None:
    response = node.client.get(COSIGNED)
    return Note.parse(response.text) if response.status_code == 200 else None


def cosigned_by(node: Driver, *witnesses: WitnessAddress) -> bool:
    """Whether the node serves its newest checkpoint, cosigned by these and no others."""
    found = served(node)
    if found is None or found.claimed.size != Note.parse(node.client.get("/ledger/checkpoint").text).claimed.size:
        return False
    return len(found.signatures) == 1 + len(cosigners(found, [one.key for one in witnesses])) == 1 + len(witnesses)


def test_the_newest_checkpoint_is_served_with_the_cosignatures(witnesses: Witnesses) -> None:
    two = witnesses.honest("a"), witnesses.honest("b")
    node = witnesses.node(*two)
    node.registry.cosigning.start()
    until(lambda: cosigned_by(node, *two), what="both cosign")
    node.joined(KeyPair.generate("ES256"), "billing")
    until(lambda: cosigned_by(node, *two), what="both cosign the grown ledger")
    response = node.client.get(COSIGNED)
    assert response.headers["Cache-Control"] == "public, max-age=1, no-transform"
    assert response.content_type == "text/plain; charset=utf-8"
    keys = node.registry.authority.in_force().keys
    assert verify_checkpoint(response.text, DOMAIN, keys.ledger_keys).size == node.changes(0).seq
    assert {name: (state.size, state.failures) for name, state in node.registry.cosigning.states().items()} == {
        "a": (node.changes(0).seq, 0),
        "b": (node.changes(0).seq, 0),
    }


def test_without_witnesses_there_is_none_and_no_thread(registry: Driver) -> None:
    before = threading.active_count()
    registry.registry.cosigning.start()
    assert threading.active_count() == before
    response = registry.client.get(COSIGNED)
    assert (response.status_code, response.get_json()["code"]) == (404, "not_cosigned")
    assert "registry_witness" not in registry.client.get("/metrics").text


def test_a_worker_serves_what_another_one_has_had_cosigned(witnesses: Witnesses) -> None:
    one = witnesses.honest("a")
    leader, other = witnesses.node(one), witnesses.node(one)
    leader.registry.cosigning.start()
    until(lambda: cosigned_by(leader, one), what="it is cosigned")
    other.registry.cosigning.start()
    assert cosigned_by(other, one)
    assert 'registry_witness_entries{witness="a"} ' in other.client.get("/metrics").text


def test_a_restarted_node_goes_on_from_the_size_that_the_witness_tells(witnesses: Witnesses) -> None:
    one = witnesses.honest("a")
    first = witnesses.node(one)
    first.registry.cosigning.start()
    until(lambda: cosigned_by(first, one), what="it is cosigned")
    first.registry.cosigning.stop()
    second = witnesses.node(one)
    second.joined(KeyPair.generate("ES256"), "billing")
    second.registry.cosigning.start()
    until(lambda: cosigned_by(second, one), what="the grown ledger is cosigned")


def test_a_witness_that_is_down_delays_nothing(witnesses: Witnesses) -> None:
    up, down = witnesses.honest("a"), witnesses.down("b")
    node = witnesses.node(up, down)
    node.registry.cosigning.start()
    until(lambda: cosigned_by(node, up), what="the other one cosigns")
    node.joined(KeyPair.generate("ES256"), "billing")
    until(lambda: cosigned_by(node, up), what="the other one cosigns the grown ledger")
    state = node.registry.cosigning.states()["b"]
    assert state.size == 0
    assert state.failures > 0
    assert "it gave no answer" in state.trouble


def forged(body: bytes) -> Answer:
    return 200, f"{cosign(note_in(body).text, 'liar', signer_of('another'), 1)}\n".encode()


def of_another_tree(body: bytes) -> Answer:
    text = Note.parse(ForeignLog(DOMAIN).note(note_in(body).claimed.size)).text
    return 200, f"{cosign(text, 'liar', signer_of('liar'), 1)}\n".encode()


def under_another_name(body: bytes) -> Answer:
    return 200, f"{cosign(note_in(body).text, 'honest', signer_of('liar'), 1)}\n".encode()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (forged, "no line of its answer is its cosignature"),
        (of_another_tree, "no line of its answer is its cosignature"),
        (under_another_name, "no line of its answer is its cosignature"),
        (lambda _: (200, b""), "no signature lines"),
        (lambda _: (200, b"\xff\x00" * 1000), "no signature lines"),
        (lambda _: (200, b"a" * 100_000), "larger than 16384 bytes"),
        (lambda _: (301, b""), "status 301"),
        (lambda _: (400, b""), "submission prefix"),
        (lambda _: (403, b""), "accept the ledger's present key"),
        (lambda _: (404, b""), "accept this ledger"),
        (lambda _: (409, b"many"), "409 without the size"),
        (lambda _: (409, b"9" * 18), "it has cosigned 999999999999999999 entries, and this ledger has"),
        (lambda _: (409, b"1\n"), "another tree of this size"),
        (lambda _: (422, b""), "does not continue"),
        (lambda _: (503, b""), "status 503"),
    ],
)
def test_what_no_witness_cosigned_is_not_served(
    witnesses: Witnesses, answer: Callable[[bytes], Answer], said: str
) -> None:
    node = witnesses.node(witnesses.odd("liar", answer))
    cosigning = node.registry.cosigning
    cosigning.start()
    until(lambda: cosigning.states()["liar"].failures > 0, what="it was asked")
    assert said in cosigning.states()["liar"].trouble
    assert served(node) is None


def test_a_submission_has_the_old_size_the_proof_and_the_ledgers_signature_alone(witnesses: Witnesses) -> None:
    node = witnesses.node(witnesses.odd("w", cosigning_by("w", time)))
    node.registry.cosigning.start()
    until(lambda: served(node) is not None, what="it is cosigned")
    first = served(node)
    assert first is not None
    node.joined(KeyPair.generate("ES256"), "billing")
    until(lambda: served(node) not in (first, None), what="the grown ledger is cosigned")
    head, _, _ = witnesses.bodies[-1].decode().partition("\n\n")
    assert head.split("\n")[0] == f"old {first.claimed.size}"
    assert len(head.split("\n")) > 1, "a proof"
    assert all(len(note_in(body).signatures) == 1 for body in witnesses.bodies)
    assert max(map(len, witnesses.bodies)) < 10 * 1024, "what litewitness reads"


def test_a_hanging_witness_delays_no_other_and_no_request(witnesses: Witnesses) -> None:
    hanging = threading.Event()

    def hang(_: bytes) -> Answer:
        hanging.wait(60)
        return 503, b""

    up = witnesses.honest("a")
    slow = witnesses.odd("slow", hang)
    name_quorum(witnesses.registry, up, slow, needed=1)
    node = witnesses.node(up, slow)
    node.registry.cosigning.start()
    try:
        for service in ("billing", "shop", "stock"):
            node.joined(KeyPair.generate("ES256"), service)
            until(lambda: cosigned_by(node, up), what="the other one cosigns")
        assert len(witnesses.bodies) == 1, "a witness has one submission at a time"
    finally:
        hanging.set()


def name_quorum(registry: Driver, *witnesses: WitnessAddress, needed: int) -> None:
    """Have the root name these witnesses."""
    ceremony = Ceremony(registry.settings, registry.store, registry.clock)
    quorum = Quorum.of([str(one.key) for one in witnesses], needed)
    document = replace(ceremony.requested([], drop_past=False), witnesses=quorum)
    ceremony.publish(signed(written(document), registry.settings.root_key_file))


def test_a_checkpoint_without_the_roots_quorum_does_not_replace_one_that_has_it(
    witnesses: Witnesses, tmp_path: Path
) -> None:
    answering = True

    def fickle(body: bytes) -> Answer:
        return (
            (200, f"{cosign(note_in(body).text, 'b', signer_of('b'), int(time()))}\n".encode())
            if answering
            else (503, b"")
        )

    two = witnesses.honest("a"), witnesses.odd("b", fickle)
    name_quorum(witnesses.registry, *two, needed=2)
    node = witnesses.node(*two)
    node.registry.cosigning.start()
    until(lambda: cosigned_by(node, *two), what="both cosign")
    before, answering = served(node), False
    node.joined(KeyPair.generate("ES256"), "billing")
    until(lambda: node.registry.cosigning.states()["b"].failures > 1, what="one of them fails")
    assert served(node) == before
    answering = True
    until(lambda: cosigned_by(node, *two), what="both cosign again")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dated(clock: Clock, tmp_path: Path) -> Iterator[Witnesses]:
    """The witnesses of a registry whose clock stands until the test moves it."""
    home = tmp_path / "dated"
    home.mkdir(mode=0o700)
    registry = Driver(f"sqlite:///{home / 'registry.sqlite3'}", home, clock)
    with ExitStack() as running:
        running.callback(registry.close)
        yield Witnesses(registry, tmp_path, running)


def cosigning_by(name: str, clock: Callable[[], float]) -> Callable[[bytes], Answer]:
    """The answers of a witness with that clock, which compares nothing."""
    return lambda body: (200, f"{cosign(note_in(body).text, name, signer_of(name), int(clock()))}\n".encode())


def has_cosigned_head(node: Driver, name: str) -> bool:
    size = Note.parse(node.client.get("/ledger/checkpoint").text).claimed.size
    return node.registry.cosigning.states()[name].size == size


def test_the_same_checkpoint_is_cosigned_again_at_a_later_time(dated: Witnesses, clock: Clock) -> None:
    one = dated.odd("w", cosigning_by("w", clock))
    node = dated.node(one)
    node.registry.cosigning.start()
    until(lambda: cosigned_by(node, one), what="it is cosigned")
    began = int(clock())
    clock.forward(AGAIN_AFTER + 1)
    until(lambda: cosigners(served(node), [one.key]) == {"w": began + 61}, what="it is cosigned again")  # type: ignore[arg-type]


def test_a_node_with_other_witnesses_keeps_the_quorum_until_the_root_names_them(dated: Witnesses, clock: Clock) -> None:
    old = [dated.odd(name, cosigning_by(name, clock)) for name in ("a", "b")]
    new = [dated.odd(name, cosigning_by(name, clock)) for name in ("c", "d")]
    name_quorum(dated.registry, *old, needed=2)
    first = dated.node(*old)
    first.registry.cosigning.start()
    until(lambda: cosigned_by(first, *old), what="the old ones cosign")
    first.registry.cosigning.stop()
    assert cosigned_by(dated.node(), *old), "also where a node asks no witness at all"
    second = dated.node(*new)
    second.registry.cosigning.start()
    until(lambda: cosigned_by(second, *old, *new), what="their cosignatures of the same checkpoint are kept")
    second.joined(KeyPair.generate("ES256"), "billing")
    until(lambda: all(has_cosigned_head(second, name) for name in "cd"), what="the new ones cosign more")
    found = served(second)
    assert found is not None
    assert len(cosigners(found, [one.key for one in old])) == 2, "what the root asks for"
    name_quorum(dated.registry, *new, needed=2)
    until(lambda: all(has_cosigned_head(second, name) for name in "cd"), what="the new ones cosign the root's document")
    clock.forward(second.registry.settings.limits.registry_keys_cached + 1)
    until(lambda: cosigned_by(second, *new), what="served although no witness answers again")


@pytest.mark.parametrize("told", [b"9" * 18, b"7"])
def test_a_size_that_is_too_large_silences_no_witness(dated: Witnesses, clock: Clock, told: bytes) -> None:
    honest, lies = cosigning_by("w", clock), [False]
    one = dated.odd("w", lambda body: (409, told) if lies[0] else honest(body))
    node = dated.node(one)
    node.registry.cosigning.start()
    until(lambda: cosigned_by(node, one), what="it cosigns")
    lies[0] = True
    node.joined(KeyPair.generate("ES256"), "billing")
    until(lambda: node.registry.cosigning.states()["w"].failures > 0, what="it fails")
    lies[0] = False
    clock.forward(LONGEST_REST)
    until(lambda: cosigned_by(node, one), what="it cosigns again")


@pytest.mark.parametrize("at", [1, 1_000_000_000, 2**63 - 1])
def test_a_witness_whose_clock_is_wrong_is_named(dated: Witnesses, clock: Clock, at: int) -> None:
    one = dated.odd("w", cosigning_by("w", lambda: at))
    name_quorum(dated.registry, one, needed=1)
    node = dated.node(one)
    cosigning = node.registry.cosigning
    cosigning.start()
    until(lambda: cosigned_by(node, one), what="what it cosigned counts all the same")
    state, quorum = cosigning.states()["w"], cosigning.quorum()
    assert state.failures > 0
    assert state.trouble.startswith(
        f"its clock is more than 60 s {'ahead of' if at > clock() else 'behind'} this node's"
    )
    assert state.at == min(at, LATEST_TIME)
    assert quorum is not None
    assert "cosigned" in str(quorum), "also a time that no calendar has"
    assert f"cosigned {state.size} entries, at" in str(state)


def test_a_clock_that_differs_a_little_is_none(dated: Witnesses, clock: Clock) -> None:
    one = dated.odd("w", cosigning_by("w", lambda: clock() - MOST_OFF))
    node = dated.node(one)
    node.registry.cosigning.start()
    until(lambda: cosigned_by(node, one), what="it cosigns")
    state = node.registry.cosigning.states()["w"]
    assert (state.failures, state.at) == (0, int(clock()) - MOST_OFF)


def test_what_cannot_be_read_of_the_file_counts_as_none(witnesses: Witnesses) -> None:
    one = witnesses.honest("a")
    node = witnesses.node(one)
    for content in (b"", b"{}", b"\xff", b'{"note": "x", "witnesses": {}}', b'{"note": null, "witnesses": {"a": 1}}'):
        (witnesses.registry.home / "cosigned-checkpoint").write_bytes(content)
        assert served(node) is None
    node.registry.cosigning.start()
    until(lambda: cosigned_by(node, one), what="it is cosigned")


def test_a_home_that_takes_no_files_has_every_worker_submit(witnesses: Witnesses) -> None:
    home = witnesses.registry.home
    (home / "cosigned-checkpoint").mkdir()  # a user other than root would see it of a read-only home
    (home / "locks").mkdir()
    one = witnesses.honest("a")
    first, second = witnesses.node(one), witnesses.node(one)
    for node in (first, second):
        node.registry.cosigning.start()
    until(lambda: cosigned_by(first, one) and cosigned_by(second, one), what="both workers have it cosigned")


def test_the_quorum_of_the_root_is_told_with_what_it_has_cosigned(witnesses: Witnesses, registry: Driver) -> None:
    one, two = witnesses.honest("a"), witnesses.down("b")
    node = witnesses.node(one, two)
    assert node.registry.cosigning.quorum() is None
    assert "registry_quorum" not in node.client.get("/metrics").text
    name_quorum(registry, one, witnesses.down("elsewhere"), needed=1)
    node.registry.authority.newest()
    assert node.registry.cosigning.quorum() == QuorumState(1, 2, 0, 0, ("elsewhere",))
    before = int(node.clock())
    node.registry.cosigning.start()
    until(lambda: cosigned_by(node, one), what="one cosigns")
    found = node.registry.cosigning.quorum()
    assert found is not None
    assert (found.needed, found.named, found.size) == (1, 2, node.changes(0).seq)
    assert found.at >= before
    told = node.client.get("/metrics").text
    assert "registry_quorum_needed 1.0" in told
    assert f"registry_quorum_entries {float(found.size)}" in told
