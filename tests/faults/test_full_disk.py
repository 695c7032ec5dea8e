"""A full disk under copies, checkpoint and replay guard: real processes that the kernel lets write nothing more."""

import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peerseal import Identity, TrustLimits, Verifier
from peerseal.errors import PeersealError
from peerseal.testing import Clock, MemoryRegistry
from tests.peerseal.served import Child

pytestmark = pytest.mark.usefixtures("quiet_collector")

LIMITS = TrustLimits(poll_interval=3600.0)


@contextmanager
def full_disk() -> Iterator[None]:
    """No byte can be written to any file of this process, as on a disk that is full; files can be made and removed."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client", limits=LIMITS)


@pytest.fixture
def callee(registry: MemoryRegistry, client: Identity, tmp_path: Path) -> Identity:
    """It was started while there was room, and has verified no caller yet."""
    return registry.identity("callee", limits=LIMITS, key_dir=tmp_path / "keys", cache_dir=tmp_path / "cache")


def test_keys_are_verified_without_copies_and_a_checkpoint_and_each_trouble_is_said_once(
    registry: MemoryRegistry,
    client: Identity,
    callee: Identity,
    clock: Clock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    verifier = Verifier(callee.trust, audience="callee", allow={"client": ()}, clock=clock)

    def job() -> tuple[int, int]:
        with full_disk():
            for _ in range(5):
                assert accepts(verifier, client)
                registry.set_policy("another-service", {})
                clock.advance(LIMITS.refresh_interval)
                callee.trust.refresh()
        return caplog.text.count("no copies of documents can be kept"), caplog.text.count("would forget the ledger")

    assert Child(job).result() == (1, 1)
    assert [file for file in (tmp_path / "cache").rglob("*") if file.name.startswith((".new-", ".ledger-"))] == []


def test_a_guard_that_cannot_write_lets_nobody_in_and_uses_up_no_token(
    client: Identity, callee: Identity, clock: Clock
) -> None:
    verifier = Verifier(
        callee.trust, audience="callee", allow={"client": ()}, replay=callee.replay_guard(), clock=clock
    )

    def job() -> list[str]:
        assert accepts(verifier, client)
        tokens = [client.sign_request("callee", method="GET", target="/") for _ in range(20)]
        with full_disk():
            outcomes = [outcome(verifier, token) for token in tokens]
        assert set(outcomes) == {"trust_unavailable"}
        outcomes = [outcome(verifier, token) for token in tokens]
        assert set(outcomes) == {"accepted"}
        return [outcome(verifier, token) for token in tokens]

    assert set(Child(job).result()) == {"replayed"}


def test_a_guard_whose_file_cannot_even_be_made_lets_nobody_in(
    client: Identity, callee: Identity, clock: Clock
) -> None:
    verifier = Verifier(
        callee.trust, audience="callee", allow={"client": ()}, replay=callee.replay_guard(), clock=clock
    )

    def job() -> list[str]:
        token = client.sign_request("callee", method="GET", target="/")
        with full_disk():
            first = outcome(verifier, token)
        return [first, outcome(verifier, token), outcome(verifier, token)]

    assert Child(job).result() == ["trust_unavailable", "accepted", "replayed"]


def accepts(verifier: Verifier, client: Identity) -> bool:
    return outcome(verifier, client.sign_request("callee", method="GET", target="/")) == "accepted"


def outcome(verifier: Verifier, token: str) -> str:
    try:
        verifier.verify(token, method="GET", target="/")
    except PeersealError as error:
        return error.code
    return "accepted"


def test_when_there_is_room_again_copies_are_kept_again(
    registry: MemoryRegistry, client: Identity, callee: Identity, clock: Clock, tmp_path: Path
) -> None:
    verifier = Verifier(callee.trust, audience="callee", allow={"client": ()}, clock=clock)

    def job() -> None:
        with full_disk():
            assert accepts(verifier, client)
        clock.advance(LIMITS.refresh_interval)
        callee.trust.refresh()

    Child(job).result()
    assert list((tmp_path / "cache").glob("documents-*/keys-client.jwt"))


def test_a_copy_from_before_a_revocation_does_not_stay_where_no_newer_one_can_be_written(
    registry: MemoryRegistry, client: Identity, callee: Identity, clock: Clock, tmp_path: Path
) -> None:
    verifier = Verifier(callee.trust, audience="callee", allow={"client": ()}, clock=clock)

    def job() -> str:
        assert accepts(verifier, client)
        token = client.sign_request("callee", method="GET", target="/")
        registry.revoke(client.credentials.key_id)
        with full_disk():
            callee.trust.refresh()
            assert outcome(verifier, token) == "revoked_key"
        registry.down = True
        restarted = registry.trust_store(limits=LIMITS, cache_dir=tmp_path / "cache")
        return outcome(Verifier(restarted, audience="callee", allow={"client": ()}, clock=clock), token)

    assert Child(job).result() == "trust_unavailable"


def test_a_folder_that_was_removed_is_made_again(
    registry: MemoryRegistry, client: Identity, callee: Identity, clock: Clock, tmp_path: Path
) -> None:
    verifier = Verifier(callee.trust, audience="callee", allow={"client": ()}, clock=clock)
    assert accepts(verifier, client)
    shutil.rmtree(tmp_path / "cache")
    registry.revoke(client.credentials.key_id)
    callee.trust.refresh()
    assert list((tmp_path / "cache").glob("documents-*/keys-client.jwt"))
