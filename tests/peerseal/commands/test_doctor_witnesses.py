"""``peerseal doctor`` says which witnesses have cosigned the ledger, and which lag."""

from collections.abc import Iterator, Mapping

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.commands.checks.finding import ERROR, OK, WARNING, Finding
from peerseal.commands.checks.host import Host
from peerseal.commands.checks.witnesses import check_witnesses
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, Note, NoteKey, cosign
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.testing import Answer, Clock, MemoryRegistry

PATH = "/ledger/checkpoint.cosigned"
SIGNERS = {name: Ed25519PrivateKey.generate() for name in ("a.example", "b.example", "own.example")}
VKEYS = {name: str(NoteKey.of(name, WITNESS_KEY, signer.public_key())) for name, signer in SIGNERS.items()}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Iterator[MemoryRegistry]:
    with MemoryRegistry(clock=clock) as registry:
        yield registry


def found(registry: MemoryRegistry, changes: Mapping[str, str] | None = None) -> list[Finding]:
    environ = {"PEERSEAL_SERVICE": "billing", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1", **(changes or {})}
    return list(check_witnesses(Host(environ, None, registry.clock, lambda _: registry)))


def cosigned(registry: MemoryRegistry, *names: str) -> None:
    note = registry.ledger.checkpoint()
    text, now = Note.parse(note).text, int(registry.clock())
    lines = "".join(f"{cosign(text, name, SIGNERS[name], now)}\n" for name in names)
    registry.answers[PATH] = Answer(200, (note + lines).encode())


@pytest.fixture
def two(registry: MemoryRegistry) -> None:
    """The root asks for one of two."""
    registry.name_witnesses(Quorum.of([VKEYS["a.example"], VKEYS["b.example"]], 1))


def test_nothing_is_said_where_nothing_asks_for_witnesses(registry: MemoryRegistry) -> None:
    assert found(registry) == []
    assert not registry.calls[f"GET {PATH}"]


@pytest.mark.usefixtures("two")
def test_all_have_cosigned(registry: MemoryRegistry) -> None:
    cosigned(registry, "a.example", "b.example")
    findings = found(registry)
    assert [finding.level for finding in findings] == [OK, OK, OK]
    assert findings[0].found == "a.example cosigned 2 entries, 0 s ago"
    assert findings[-1].found == "the root asks for 1 of 2, 2 cosigned"


@pytest.mark.usefixtures("two")
def test_one_lags(registry: MemoryRegistry) -> None:
    cosigned(registry, "b.example")
    findings = found(registry)
    assert [finding.level for finding in findings] == [WARNING, OK, OK]
    assert findings[0].found == "a.example lags: it has not cosigned 2 entries"
    assert "registry_witness_failures" in findings[0].remedy


@pytest.mark.usefixtures("two")
def test_all_lag(registry: MemoryRegistry, clock: Clock) -> None:
    cosigned(registry, "a.example", "b.example")
    registry.name_witnesses(Quorum.of([VKEYS["a.example"], VKEYS["b.example"]], 2))
    clock.advance(400)
    findings = found(registry)
    assert [finding.level for finding in findings] == [WARNING, WARNING, WARNING]
    assert findings[0].found == "a.example cosigned 2 entries, 400 s ago"
    assert findings[-1].found == "the root asks for 2 of 2, 2 cosigned; newer entries: 1"


@pytest.mark.usefixtures("two")
def test_a_clock_is_ahead(registry: MemoryRegistry, clock: Clock) -> None:
    cosigned(registry, "a.example", "b.example")
    clock.advance(-59)
    assert [finding.level for finding in found(registry)] == [OK, OK, OK]
    clock.advance(-2)
    findings = found(registry)
    assert [finding.level for finding in findings] == [WARNING, WARNING, OK]
    assert findings[0].found == "a.example cosigned 2 entries, 61 s in the future"
    assert "set its clock" in findings[0].remedy


@pytest.mark.usefixtures("two")
def test_the_quorum_of_this_host_is_not_reached(registry: MemoryRegistry) -> None:
    cosigned(registry, "a.example", "b.example")
    own = {"PEERSEAL_WITNESSES": VKEYS["own.example"], "PEERSEAL_WITNESS_QUORUM": "1"}
    findings = found(registry, own)
    assert findings[-1].level == ERROR
    assert findings[-1].found == "PEERSEAL_WITNESSES asks for 1 of 1, 0 cosigned"


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("answer", [Answer(404, b""), Answer(200, b"\xff"), Answer(200, b"")])
def test_there_is_no_cosigned_checkpoint(registry: MemoryRegistry, answer: Answer) -> None:
    registry.answers[PATH] = answer
    [finding] = found(registry)
    assert finding.level == ERROR
    assert finding.found.startswith("no cosigned checkpoint can be had: ")
