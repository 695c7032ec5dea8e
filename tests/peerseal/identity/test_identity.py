"""A service's own keys over their life: made, registered, shared, rotated, retired."""

import base64
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peerseal import Identity, RotationSchedule, TrustLimits, Verifier
from peerseal.errors import (
    ConfigurationError,
    DocumentRefused,
    EnrolmentRefused,
    FetchError,
    KeyRefused,
    PeersealError,
    TrustUnavailable,
    UnsignableRequest,
)
from peerseal.identity import rotation as keeper
from peerseal.identity.enrolment import Enrolment
from peerseal.identity.environment import options_in
from peerseal.identity.key_folder import KeyFolder, StoredKeys
from peerseal.identity.signing_keys import SigningKeys
from peerseal.protocol.documents.key_set import ACTIVE, RETIRED
from peerseal.protocol.encoding import digest_header
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from peerseal.testing import Answer, Clock, MemoryRegistry
from tests.peerseal.served import Child, in_children, served

REGISTRATION = "POST /v1/services/client/keys"
SCHEDULE = RotationSchedule(every=1000.0, lead=10.0, overlap=20.0)


@pytest.fixture
def live() -> Iterator[MemoryRegistry]:
    """A registry that goes by the time of day, for tests of several processes."""
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the keys of the service ``client`` lie when ``key_dir`` is ``tmp_path / "keys"``."""
    return tmp_path / "keys" / "client"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which folders for keys without ``key_dir`` are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def key_dir(folder: Path) -> dict[str, Path]:
    return {"key_dir": folder.parent}


def private_keys(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.pem")}


def states(registry: MemoryRegistry, service: str = "client") -> dict[str, str]:
    """The state of every key that the registry lists for the service, by kid."""
    document = registry.jwk_set(service)
    return {key.kid: key.state for key in document.keys} | {key.kid: "revoked" for key in document.revoked}


def look_after(identity: Identity) -> None:
    """What the background thread does when its time has come."""
    identity.look_after_keys()


def sign(identity: Identity) -> str:
    return identity.sign_request("callee", method="GET", target="/")


def verifier(registry: MemoryRegistry, **limits: float) -> Verifier:
    trust = registry.trust_store(limits=TrustLimits(**limits))
    return Verifier(trust, audience="callee", allow={"client": ()}, clock=registry.clock)


def dies_before(step: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process gets no further than to that call; with `SigningKeys.save`, to the first save of a registered key."""
    save = SigningKeys.save

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def save_candidates(keys: SigningKeys, stored: StoredKeys) -> None:
        if stored.keys[-1].registered_at is not None:
            die()
        save(keys, stored)

    if step is save:
        monkeypatch.setattr(SigningKeys, "save", save_candidates)
    else:
        monkeypatch.setattr(Enrolment, step.__name__, die)


class TestStart:
    def test_nothing_is_read_made_or_asked_before(self, registry: MemoryRegistry, folder: Path) -> None:
        identity = Identity(
            "client",
            registry="http://registry.test",
            join_token=registry.join_token("client"),
            key_dir=folder.parent,
            fetcher=registry,
        )
        assert not folder.parent.exists()
        assert not registry.log
        with pytest.raises(TrustUnavailable):
            sign(identity)

    def test_a_key_is_registered_and_signs_at_once(self, registry: MemoryRegistry) -> None:
        client = registry.identity("client")
        assert client.id == "test.internal/client"
        assert states(registry) == {client.credentials.key_id: ACTIVE}
        peer = verifier(registry).verify(sign(client), method="GET", target="/")
        assert (peer.id, peer.kid) == (client.id, client.credentials.key_id)

    def test_an_rsa_key_is_the_default(self, registry: MemoryRegistry) -> None:
        client = registry.identity("client", alg="RS256")
        (key,) = registry.jwk_set("client").keys
        assert (key.public.alg, key.public.crypto.key_size) == ("RS256", 2048)
        verifier(registry).verify(sign(client), method="GET", target="/")

    def test_starting_twice_is_starting_once(self, registry: MemoryRegistry) -> None:
        client = registry.identity("client")
        assert client.start() is client
        assert registry.calls[REGISTRATION] == 1

    @pytest.mark.usefixtures("quiet_collector")
    def test_eight_processes_that_share_a_folder_register_one_key(self, live: MemoryRegistry, folder: Path) -> None:
        token = live.join_token("client", uses=1)
        with served(live) as url:

            def start(_: int) -> str:
                identity = Identity("client", registry=url, join_token=token, alg="ES256", **key_dir(folder))
                return identity.start().credentials.key_id

            kids = in_children(8, start)
        assert states(live) == {kids[0]: ACTIVE}
        assert set(kids) == {kids[0]}
        assert live.calls[REGISTRATION] == 1

    def test_private_keys_can_be_read_by_their_owner_only(self, registry: MemoryRegistry, folder: Path) -> None:
        before = os.umask(0)
        try:
            registry.identity("client", **key_dir(folder)).rotate()
        finally:
            os.umask(before)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(inner.stat().st_mode) for inner in folder.iterdir() if inner.is_dir()} == {0o700}
        files = [file for file in folder.iterdir() if file.is_file()]
        assert {file.suffix for file in files} == {"", ".json", ".pem", ".checkpoint", ".lock"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    def test_a_restart_needs_neither_join_token_nor_registry(self, registry: MemoryRegistry, folder: Path) -> None:
        callee = verifier(registry)
        first = registry.identity("client", retire_at_exit=False, **key_dir(folder))
        callee.verify(sign(first), method="GET", target="/")
        first.stop()
        registry.down = True
        again = registry.identity("client", join_token=None, **key_dir(folder))
        assert again.credentials == first.credentials
        callee.verify(sign(again), method="GET", target="/")

    @pytest.mark.parametrize("status", [200, 403, 404, 500])
    def test_an_answer_of_another_server_than_the_registry_is_ignored(
        self, registry: MemoryRegistry, folder: Path, status: int
    ) -> None:
        """A captive portal, a proxy whose upstream is gone: what they say is unsigned, and destroys no key."""
        first = registry.identity("client", retire_at_exit=False, **key_dir(folder))
        kid = first.credentials.key_id
        first.stop()
        path = f"/v1/services/client/keys/{kid.rpartition('/')[2]}.jwt"
        registry.answers[path] = Answer(status, b"<html>")
        try:
            registry.identity("client", join_token=None, **key_dir(folder))
        except ConfigurationError:
            assert status == 404
        registry.answers.clear()
        assert registry.identity("client", join_token=None, **key_dir(folder)).credentials.key_id == kid

    def test_without_key_or_join_token_there_is_no_start(self, registry: MemoryRegistry) -> None:
        with pytest.raises(ConfigurationError, match="no join token"):
            registry.identity("client", join_token=None)

    def test_a_registry_that_does_not_know_the_key_any_more_gets_it_again(
        self, registry: MemoryRegistry, folder: Path
    ) -> None:
        first = registry.identity("client", retire_at_exit=False, **key_dir(folder))
        first.stop()
        registry.keys.clear()  # restored from a backup that is too old
        again = registry.identity("client", **key_dir(folder))
        assert again.credentials == first.credentials
        assert states(registry) == {first.credentials.key_id: ACTIVE}

    def test_a_key_that_was_revoked_meanwhile_is_replaced_with_a_join_token_only(
        self, registry: MemoryRegistry, folder: Path
    ) -> None:
        first = registry.identity("client", retire_at_exit=False, **key_dir(folder))
        revoked = first.credentials.key_id
        first.stop()
        registry.revoke(revoked)
        with pytest.raises(ConfigurationError, match="no join token"):
            registry.identity("client", join_token=None, **key_dir(folder))
        again = registry.identity("client", **key_dir(folder))
        assert states(registry) == {revoked: "revoked", again.credentials.key_id: ACTIVE}
        assert private_keys(folder) == {again.credentials.key_id.rpartition("/")[2]}


class TestRegistryNotThereYet:
    @pytest.fixture
    def pauses(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Pauses that were made, in a time of their own."""
        made: list[float] = []
        monkeypatch.setattr(
            keeper, "time", SimpleNamespace(sleep=made.append, monotonic=lambda: sum(made), time=time.time)
        )
        return made

    def test_it_is_tried_again_with_growing_pauses(
        self, registry: MemoryRegistry, clock: Clock, pauses: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def pause(seconds: float) -> None:
            pauses.append(seconds)
            clock.advance(seconds)
            registry.down = len(pauses) < 8

        monkeypatch.setattr(keeper.time, "sleep", pause)
        registry.down = True
        client = registry.identity("client")
        assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
        assert states(registry) == {client.credentials.key_id: ACTIVE}

    def test_it_is_given_up_in_time(self, registry: MemoryRegistry, pauses: list[float]) -> None:
        registry.down = True
        client = Identity(
            "client", registry="http://registry.test", join_token=registry.join_token("client"), fetcher=registry
        )
        with pytest.raises((FetchError, TrustUnavailable)):
            client.start(timeout=20)
        assert 10 < sum(pauses) <= 20

    def test_a_refusal_is_final(self, registry: MemoryRegistry, pauses: list[float]) -> None:
        with pytest.raises(EnrolmentRefused) as caught:
            registry.identity("client", join_token=registry.join_token("somebody-else"))
        assert caught.value.code == "join_refused"
        assert (pauses, registry.calls[REGISTRATION]) == ([], 1)

    def test_a_registry_that_is_overloaded_is_not_one_that_refuses(
        self, registry: MemoryRegistry, pauses: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        statuses = iter((429, 503, 500))

        def pause(_: float) -> None:
            registry.answers.clear()
            if (status := next(statuses, None)) is not None:
                registry.answers["/v1/services/client/keys"] = Answer(status, b"{}")

        monkeypatch.setattr(keeper.time, "sleep", pause)
        registry.answers["/v1/services/client/keys"] = Answer(503, b"")
        registry.identity("client")
        assert registry.calls[REGISTRATION] == 5


class TestJoining:
    def test_the_secret_never_crosses_the_wire(self, registry: MemoryRegistry) -> None:
        text = registry.join_token("client")
        token = JoinToken.parse(text)
        client = registry.identity("client", join_token=text)
        client.rotate()
        client.stop()
        wire = b"\n".join(
            b" ".join((call.method.encode(), call.path.encode(), call.body, repr(dict(call.headers)).encode()))
            for call in registry.log
        )
        assert token.id.encode() in wire
        secret = base64.urlsafe_b64decode(token.secret + "=")
        for hidden in (secret, token.mac_key):
            for spelling in (hidden, hidden.hex().encode(), base64.b64encode(hidden), base64.urlsafe_b64encode(hidden)):
                assert spelling.rstrip(b"=") not in wire

    def test_a_registry_with_another_root_is_told_nothing(self, registry: MemoryRegistry) -> None:
        foreign = JoinToken.generate(KeyPair.generate("ES256").public.thumbprint).encode()
        with pytest.raises(DocumentRefused, match="document_wrong_root"):
            Identity("client", registry="http://r.test", join_token=foreign, fetcher=registry).start()
        assert set(registry.calls) == {"GET /.well-known/peerseal-registry"}

    def test_two_pins_that_differ_are_refused(self, registry: MemoryRegistry) -> None:
        with pytest.raises(ConfigurationError, match="another root key"):
            registry.identity("client", pin=KeyPair.generate("ES256").public.thumbprint)

    def test_an_answer_that_another_registry_signed_is_no_registration(self, registry: MemoryRegistry) -> None:
        with MemoryRegistry(clock=registry.clock) as other:
            other.identity("client")
            (kid,) = states(other)
            registry.answers["/v1/services/client/keys"] = Answer(201, other.sign(other.statement(kid)).encode())
        with pytest.raises(DocumentRefused):
            registry.identity("client")

    def test_an_answer_about_another_key_is_no_registration(self, registry: MemoryRegistry) -> None:
        registry.identity("client")
        (kid,) = states(registry)
        registry.answers["/v1/services/client/keys"] = Answer(201, registry.sign(registry.statement(kid)).encode())
        with pytest.raises(DocumentRefused, match="another key"):
            registry.identity("client")

    def test_a_folder_of_another_trust_domain_is_refused_and_left_as_it_is(
        self, registry: MemoryRegistry, folder: Path
    ) -> None:
        with MemoryRegistry("staging.internal", clock=registry.clock) as staging:
            staging.identity("client", retire_at_exit=False, **key_dir(folder)).stop()
        kept = private_keys(folder)
        with pytest.raises(ConfigurationError, match=r"staging\.internal"):
            registry.identity("client", **key_dir(folder))
        assert private_keys(folder) == kept


class TestDeathInBetween:
    """Each with ``kill -9`` in mind; the lock and the share of a dead process are the kernel's to drop."""

    @pytest.mark.parametrize("step", [Enrolment.join, SigningKeys.save])
    def test_a_first_registration_is_taken_up_again(
        self, registry: MemoryRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch, step: Callable[..., object]
    ) -> None:
        token = registry.join_token("client", uses=1)
        with monkeypatch.context() as patched:
            dies_before(step, patched)
            with pytest.raises(KeyboardInterrupt):
                registry.identity("client", join_token=token, **key_dir(folder))
        client = registry.identity("client", join_token=token, **key_dir(folder))
        assert states(registry) == {client.credentials.key_id: ACTIVE}
        assert private_keys(folder) == {client.credentials.key_id.rpartition("/")[2]}

    def test_even_without_the_join_token_once_the_registry_has_the_key(
        self, registry: MemoryRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            dies_before(SigningKeys.save, patched)
            with pytest.raises(KeyboardInterrupt):
                registry.identity("client", **key_dir(folder))
        client = registry.identity("client", join_token=None, **key_dir(folder))
        assert states(registry) == {client.credentials.key_id: ACTIVE}

    @pytest.mark.parametrize("step", [Enrolment.rotate, SigningKeys.save])
    def test_a_rotation_is_taken_up_again(
        self,
        registry: MemoryRegistry,
        clock: Clock,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        step: Callable[..., object],
    ) -> None:
        client = registry.identity("client", rotation=SCHEDULE, **key_dir(folder))
        first = client.credentials.key_id
        with monkeypatch.context() as patched:
            dies_before(step, patched)
            with pytest.raises(KeyboardInterrupt):
                client.rotate()
        look_after(client)
        clock.advance(SCHEDULE.lead)
        second = client.credentials.key_id
        assert first != second
        assert states(registry) == {first: ACTIVE, second: ACTIVE}
        assert private_keys(folder) == {kid.rpartition("/")[2] for kid in (first, second)}

    def test_a_killed_process_leaves_no_lock(self, live: MemoryRegistry, folder: Path) -> None:
        live.identity("client", **key_dir(folder))
        reader, writer = os.pipe()

        def hold_the_lock() -> None:
            with KeyFolder(folder).locked():
                os.write(writer, b".")
                time.sleep(60)

        child = Child(hold_the_lock)
        os.read(reader, 1)
        assert not _can_lock(folder)
        child.kill()
        assert _can_lock(folder)

    def test_what_a_killed_process_left_half_written_goes_with_the_next_save(
        self, registry: MemoryRegistry, folder: Path
    ) -> None:
        client = registry.identity("client", **key_dir(folder))
        (folder / ".new-abc").write_bytes(KeyPair.generate("ES256").to_pem())
        client.rotate()
        assert not (folder / ".new-abc").exists()


def _can_lock(folder: Path) -> bool:
    with KeyFolder(folder).locked(wait=False) as ours:
        return ours


class TestRotation:
    def test_the_new_key_is_published_first_signs_after_its_lead_and_the_old_one_goes_after_the_overlap(
        self, registry: MemoryRegistry, clock: Clock, folder: Path
    ) -> None:
        client = registry.identity("client", rotation=SCHEDULE, **key_dir(folder))
        first = client.credentials.key_id
        second = client.rotate().key_id
        assert states(registry) == {first: ACTIVE, second: ACTIVE}
        clock.advance(SCHEDULE.lead - 1)
        assert client.credentials.key_id == first
        clock.advance(1)
        assert client.credentials.key_id == second
        clock.advance(SCHEDULE.overlap - 1)
        look_after(client)
        assert states(registry) == {first: ACTIVE, second: ACTIVE}
        clock.advance(1)
        look_after(client)
        assert states(registry) == {first: RETIRED, second: ACTIVE}
        assert private_keys(folder) == {second.rpartition("/")[2]}

    def test_a_token_of_the_old_key_is_good_to_the_end_of_its_life(
        self, registry: MemoryRegistry, clock: Clock
    ) -> None:
        callee, client = verifier(registry), registry.identity("client", rotation=SCHEDULE)
        client.rotate()
        clock.advance(SCHEDULE.lead - 1)
        token = sign(client)
        clock.advance(SCHEDULE.overlap + 1)
        look_after(client)
        callee.verify(token, method="GET", target="/")

    def test_the_old_key_vouches_for_the_new_one_and_no_join_token_is_needed(self, registry: MemoryRegistry) -> None:
        client = registry.identity("client")
        registry.joining.clear()
        first, second = client.credentials.key_id, client.rotate().key_id
        assert registry.found(second).admission.by == {"kid": first}

    def test_asking_again_within_the_lead_gives_the_same_key(self, registry: MemoryRegistry) -> None:
        client = registry.identity("client")
        assert client.rotate() == client.rotate()
        assert len(states(registry)) == 2

    def test_keys_are_replaced_when_they_are_due(self, registry: MemoryRegistry, clock: Clock) -> None:
        client = registry.identity("client", rotation=SCHEDULE)
        clock.advance(SCHEDULE.every - 1)
        look_after(client)
        assert len(states(registry)) == 1
        clock.advance(1)
        look_after(client)
        assert len(states(registry)) == 2

    def test_a_key_is_replaced_at_half_its_life_at_the_latest(self, clock: Clock) -> None:
        with MemoryRegistry(clock=clock, key_lifetime=100) as registry:
            client = registry.identity("client", rotation=SCHEDULE)
            for _ in range(20):
                clock.advance(10)
                look_after(client)
                sign(client)
            assert registry.calls[REGISTRATION] == 4 + 1

    def test_one_worker_rotates_and_the_others_follow(
        self, registry: MemoryRegistry, clock: Clock, folder: Path
    ) -> None:
        shared = {"rotation": SCHEDULE, **key_dir(folder)}
        workers = [registry.identity("client", **shared) for _ in range(3)]
        clock.advance(SCHEDULE.every)
        for worker in workers:
            look_after(worker)
        assert registry.calls[REGISTRATION] == 2
        clock.advance(SCHEDULE.lead)
        assert len({worker.credentials.key_id for worker in workers}) == 1
        assert workers[0].credentials.key_id in states(registry)

    def test_a_service_that_slept_past_the_end_of_its_key_joins_again(
        self, registry: MemoryRegistry, clock: Clock
    ) -> None:
        client = registry.identity("client", join_token=registry.join_token("client", uses=2, ttl=1e9))
        clock.advance(8 * 24 * 3600)
        with pytest.raises(TrustUnavailable):
            sign(client)
        look_after(client)
        verifier(registry).verify(sign(client), method="GET", target="/")

    def test_a_worker_leaves_the_work_to_the_one_that_is_at_it(
        self, registry: MemoryRegistry, clock: Clock, folder: Path
    ) -> None:
        idle = registry.identity("client", rotation=SCHEDULE, **key_dir(folder))
        clock.advance(SCHEDULE.every)
        with KeyFolder(folder).locked():
            look_after(idle)
        assert registry.calls[REGISTRATION] == 1

    def test_a_rotation_that_fails_leaves_the_old_key_at_work(self, registry: MemoryRegistry, folder: Path) -> None:
        client = registry.identity("client", **key_dir(folder))
        before = client.credentials
        registry.down = True
        with pytest.raises(FetchError):
            client.rotate()
        assert client.credentials == before
        registry.down = False
        client.rotate()
        assert len(states(registry)) == 2

    def test_a_key_that_was_revoked_is_replaced_at_once_by_join_token(
        self, registry: MemoryRegistry, folder: Path
    ) -> None:
        client = registry.identity("client", join_token=registry.join_token("client", uses=2), **key_dir(folder))
        revoked = client.credentials.key_id
        registry.revoke(revoked)
        new = client.rotate().key_id
        assert client.credentials.key_id == new  # without a lead: there is nothing else to sign with
        assert states(registry) == {revoked: "revoked", new: ACTIVE}
        assert revoked.rpartition("/")[2] not in private_keys(folder)

    def test_and_without_a_join_token_nothing_more_is_signed(self, registry: MemoryRegistry, folder: Path) -> None:
        registry.identity("client", retire_at_exit=False, **key_dir(folder)).stop()
        client = registry.identity("client", join_token=None, **key_dir(folder))
        registry.revoke(client.credentials.key_id)
        with pytest.raises(EnrolmentRefused) as caught:
            client.rotate()
        assert caught.value.code == "revoked_key"
        with pytest.raises(TrustUnavailable):
            sign(client)

    def test_calls_go_on_while_keys_rotate_in_the_background(self, live: MemoryRegistry) -> None:
        schedule = RotationSchedule(every=0.3, lead=0.1, overlap=0.1)
        callee = verifier(live, poll_interval=0.02)
        client = live.identity("client", rotation=schedule)
        callers = set()
        deadline = time.monotonic() + 10
        while len(callers) < 4 and time.monotonic() < deadline:
            callers.add(callee.verify(sign(client), method="GET", target="/").kid)
        assert len(callers) == 4


class TestLeaving:
    def test_the_last_to_leave_retires_the_key(self, registry: MemoryRegistry, folder: Path) -> None:
        workers = [registry.identity("client", retire_at_exit=True, **key_dir(folder)) for _ in range(3)]
        kid = workers[0].credentials.key_id
        for worker in workers[:-1]:
            worker.stop()
            assert states(registry) == {kid: ACTIVE}
        workers[-1].stop()
        assert states(registry) == {kid: RETIRED}
        assert private_keys(folder) == set()

    def test_every_key_is_retired_also_one_that_has_not_signed_yet(self, registry: MemoryRegistry) -> None:
        client = registry.identity("client")
        client.rotate()
        client.stop()
        assert list(states(registry).values()) == [RETIRED, RETIRED]

    def test_a_worker_that_was_killed_holds_nothing(self, live: MemoryRegistry, folder: Path) -> None:
        token = live.join_token("client")
        with served(live) as url:
            ready, go = os.pipe()

            def work() -> None:
                Identity("client", registry=url, join_token=token, alg="ES256", **key_dir(folder)).start()
                os.write(go, b".")
                time.sleep(60)

            child = Child(work)
            os.read(ready, 1)
            client = Identity("client", registry=url, retire_at_exit=True, **key_dir(folder)).start()
            kid = client.credentials.key_id
            child.kill()
            assert states(live) == {kid: ACTIVE}
            client.stop()
            assert states(live) == {kid: RETIRED}

    def test_the_key_can_be_left_for_the_next_start(self, registry: MemoryRegistry, folder: Path) -> None:
        client = registry.identity("client", **key_dir(folder))
        client.stop()
        assert states(registry) == {client.credentials.key_id: ACTIVE}
        assert len(private_keys(folder)) == 1

    def test_without_a_key_folder_the_log_says_what_the_next_start_needs(
        self, registry: MemoryRegistry, caplog: pytest.LogCaptureFixture
    ) -> None:
        registry.identity("client").stop()
        assert "the next start needs a new join token" in caplog.text
        assert "PEERSEAL_KEY_DIR" in caplog.text

    def test_a_registry_that_is_down_at_the_end_costs_nothing(
        self, registry: MemoryRegistry, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = registry.identity("client", retire_at_exit=True, **key_dir(folder))
        kid = client.credentials.key_id
        registry.down = True
        client.stop()
        assert "stays registered until its end" in caplog.text
        registry.down = False
        assert registry.identity("client", join_token=None, **key_dir(folder)).credentials.key_id == kid

    def test_stopping_twice_is_stopping_once(self, registry: MemoryRegistry) -> None:
        client = registry.identity("client")
        client.stop()
        calls = registry.calls.total()
        client.stop()
        assert registry.calls.total() == calls

    def test_a_stopped_identity_can_start_again(self, registry: MemoryRegistry, folder: Path) -> None:
        client = registry.identity("client", join_token=registry.join_token("client", uses=2), **key_dir(folder))
        first = client.credentials.key_id
        client.stop()
        second = client.start().credentials.key_id
        assert states(registry) == {first: RETIRED, second: ACTIVE}

    def test_a_program_that_ends_cleanly_retires_its_key(self, live: MemoryRegistry, tmp_path: Path) -> None:
        program = "import peerseal; print(peerseal.Identity.from_env().start().credentials.key_id)"
        with served(live) as url:
            environment = {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(sys.path),
                "TMPDIR": str(tmp_path),
                "PEERSEAL_SERVICE": "client",
                "PEERSEAL_REGISTRY_URL": url,
                "PEERSEAL_JOIN_TOKEN": live.join_token("client"),
            }
            command = [sys.executable, "-c", program]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        assert states(live) == {ended.stdout.strip(): RETIRED}
        assert list(tmp_path.iterdir()) == []


class TestWithoutAKeyFolder:
    def test_private_keys_on_disk_are_encrypted(self, registry: MemoryRegistry, temporary: Path) -> None:
        registry.identity("client")
        pems = [file.read_bytes() for file in temporary.glob("*/*.pem")]
        assert len(pems) == 1
        assert pems[0].startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")

    def test_the_folder_goes_with_the_last_to_leave(self, registry: MemoryRegistry, temporary: Path) -> None:
        client = registry.identity("client")
        (path,) = temporary.iterdir()
        client.stop()
        assert not path.exists()

    @pytest.mark.usefixtures("quiet_collector")
    def test_forked_children_share_the_key_and_its_successor(self, registry: MemoryRegistry, clock: Clock) -> None:
        client = registry.identity("client", rotation=SCHEDULE)
        told, tell = os.pipe()

        def follow() -> tuple[str, str]:
            before = client.credentials.key_id
            os.read(told, 1)
            clock.advance(SCHEDULE.lead)
            return before, client.credentials.key_id

        child = Child(follow)
        first, second = client.credentials.key_id, client.rotate().key_id
        os.write(tell, b".")
        assert child.result() == (first, second)

    @pytest.mark.usefixtures("quiet_collector")
    def test_two_processes_that_were_not_forked_have_a_key_each(self, registry: MemoryRegistry) -> None:
        one, other = registry.identity("client"), registry.identity("client")
        assert one.credentials != other.credentials
        assert set(states(registry).values()) == {ACTIVE}


class TestSigning:
    def test_each_attempt_has_a_token_of_its_own(self, registry: MemoryRegistry) -> None:
        client = registry.identity("client")
        assert sign(client) != sign(client)

    @pytest.mark.parametrize("target", ["", "orders", "http://callee/orders", "*", "/caf\u00e9"])
    def test_a_target_that_is_not_in_origin_form_is_not_signed(self, registry: MemoryRegistry, target: str) -> None:
        with pytest.raises(UnsignableRequest):
            registry.identity("client").sign_request("callee", method="GET", target=target)

    @pytest.mark.parametrize(
        "ctx", [{"x": "y" * 1024}, {"x": float("nan")}, {"x": object()}], ids=["long", "not a number", "no JSON"]
    )
    def test_a_context_that_cannot_travel_is_not_signed(self, registry: MemoryRegistry, ctx: dict[str, object]) -> None:
        with pytest.raises(UnsignableRequest):
            registry.identity("client").sign_request("callee", method="GET", target="/", ctx=ctx)

    def test_headers_too_long_for_a_token_are_not_signed(self, registry: MemoryRegistry) -> None:
        client = registry.identity("client")
        with pytest.raises(UnsignableRequest, match="longer"):
            client.sign_request("callee", method="GET", target="/", headers={"content-type": "x" * 5000})

    def test_a_digest_stands_for_the_body(self, registry: MemoryRegistry) -> None:
        client = registry.identity("client")
        request: Any = {"method": "PUT", "target": "/"}
        token = client.sign_request("callee", content_digest=digest_header(b"body"), **request)
        verifier = Verifier(registry.trust_store(), audience="callee", allow={"client": ()}, clock=registry.clock)
        assert verifier.verify(token, body=b"body", **request).service == "client"

    @pytest.mark.parametrize(
        "digest", ["", "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=:", "sha-512=:YQ==:", 7]
    )
    def test_what_is_no_digest_is_not_signed(self, registry: MemoryRegistry, digest: Any) -> None:
        with pytest.raises(UnsignableRequest, match="content_digest"):
            registry.identity("client").sign_request("callee", method="GET", target="/", content_digest=digest)

    def test_a_body_and_a_digest_are_not_signed_together(self, registry: MemoryRegistry) -> None:
        given: Any = {"body": b"body", "content_digest": digest_header(b"body")}
        with pytest.raises(UnsignableRequest, match="expected one of them"):
            registry.identity("client").sign_request("callee", method="GET", target="/", **given)

    def test_every_error_is_one_of_peerseals(self, registry: MemoryRegistry) -> None:
        client = registry.identity("client")
        with pytest.raises(PeersealError):
            client.sign_request("not a name", method="GET", target="/")


FromEnv = Callable[..., Identity]


class TestFromEnvironment:
    @pytest.fixture
    def registry(self, live: MemoryRegistry) -> MemoryRegistry:
        return live

    @pytest.fixture
    def from_env(self, registry: MemoryRegistry) -> FromEnv:
        def build(**more: str) -> Identity:
            env = {"PEERSEAL_SERVICE": "client", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:9"}
            identity = Identity.from_env(env | {f"PEERSEAL_{name.upper()}": value for name, value in more.items()})
            identity.trust.fetcher = registry
            return identity

        return build

    @pytest.mark.parametrize("name", ["PEERSEAL_SERVICE", "PEERSEAL_REGISTRY_URL"])
    def test_service_and_registry_must_be_given(self, name: str) -> None:
        env = {"PEERSEAL_SERVICE": "client", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:9"}
        with pytest.raises(ConfigurationError, match=name):
            Identity.from_env(env | {name: ""})

    def test_it_is_read_from_the_process_unless_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PEERSEAL_SERVICE", "client")
        monkeypatch.setenv("PEERSEAL_REGISTRY_URL", "http://127.0.0.1:9")
        assert Identity.from_env().service == "client"

    def test_registry_url_names_the_primary_and_its_mirrors(self, from_env: FromEnv) -> None:
        identity = Identity.from_env(
            {"PEERSEAL_SERVICE": "client", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:9/a, http://localhost:8/b"}
        )
        assert identity.trust.fetcher.target("/v1") == "/a/v1"

    def test_registry_pin_is_needed_off_loopback(self) -> None:
        env = {"PEERSEAL_SERVICE": "client", "PEERSEAL_REGISTRY_URL": "https://registry.example.com"}
        with pytest.raises(ConfigurationError, match="pin"):
            Identity.from_env(env)
        Identity.from_env(env | {"PEERSEAL_REGISTRY_PIN": KeyPair.generate("ES256").public.thumbprint})

    def test_the_join_token_may_carry_it(self, registry: MemoryRegistry) -> None:
        env = {"PEERSEAL_SERVICE": "client", "PEERSEAL_REGISTRY_URL": "https://registry.example.com"}
        Identity.from_env(env | {"PEERSEAL_JOIN_TOKEN": registry.join_token("client")})

    def test_and_so_may_the_key_folder(self, registry: MemoryRegistry, folder: Path) -> None:
        registry.identity("client", retire_at_exit=False, **key_dir(folder)).stop()
        env = {"PEERSEAL_SERVICE": "client", "PEERSEAL_REGISTRY_URL": "https://registry.example.com"}
        Identity.from_env(env | {"PEERSEAL_KEY_DIR": str(folder.parent)})

    def test_join_token(self, registry: MemoryRegistry, from_env: FromEnv) -> None:
        identity = from_env(join_token=registry.join_token("client")).start()
        assert states(registry) == {identity.credentials.key_id: ACTIVE}
        identity.stop()

    def test_join_token_file(self, registry: MemoryRegistry, from_env: FromEnv, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text(f"{registry.join_token('client')}\n")
        identity = from_env(join_token_file=str(file)).start()
        assert states(registry) == {identity.credentials.key_id: ACTIVE}
        identity.stop()

    def test_a_join_token_file_that_is_gone_is_no_mistake(self, from_env: FromEnv, tmp_path: Path) -> None:
        from_env(join_token_file=str(tmp_path / "gone"))

    def test_a_join_token_file_that_cannot_be_read_is_one(self, from_env: FromEnv, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="JOIN_TOKEN_FILE"):
            from_env(join_token_file=str(tmp_path))

    def test_a_join_token_that_is_none_is_not_quoted(self, from_env: FromEnv) -> None:
        with pytest.raises(ConfigurationError) as caught:
            from_env(join_token="psj1.secret.secret.secret")
        assert "secret" not in str(caught.value)

    def test_cache_dir_makes_the_replay_guard_one_of_the_host(self, from_env: FromEnv, tmp_path: Path) -> None:
        one, other = (from_env(cache_dir=str(tmp_path / "cache")).replay_guard() for _ in range(2))
        assert one.claim("issuer", "jti", time.time() + 60)
        assert not other.claim("issuer", "jti", time.time() + 60)
        one, other = (from_env().replay_guard() for _ in range(2))
        assert one.claim("issuer", "jti", time.time() + 60)
        assert other.claim("issuer", "jti", time.time() + 60)

    def test_all_verifiers_of_an_identity_without_a_folder_share_one_guard(self, from_env: FromEnv) -> None:
        identity = from_env()
        one, other = identity.replay_guard(), identity.replay_guard()
        assert one.claim("issuer", "jti", time.time() + 60)
        assert not other.claim("issuer", "jti", time.time() + 60)

    def test_replay_dir_is_the_folder_of_the_replay_guard_alone(self, from_env: FromEnv, tmp_path: Path) -> None:
        folders = {name: str(tmp_path / name) for name in ("cache_dir", "replay_dir")}
        assert from_env(**folders).replay_guard().claim("issuer", "jti", time.time() + 60)
        assert not list((tmp_path / "cache_dir").glob("replay-*"))
        assert not from_env(replay_dir=folders["replay_dir"]).replay_guard().claim("issuer", "jti", time.time() + 60)
        assert from_env(cache_dir=folders["cache_dir"]).replay_guard().claim("issuer", "jti", time.time() + 60)

    def test_external_prefix(self, from_env: FromEnv) -> None:
        assert from_env(external_prefix="/api").external_prefix == "/api"

    def test_rotation_schedule_in_seconds(self) -> None:
        env = {"PEERSEAL_SERVICE": "client", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:9"}
        schedule = {"PEERSEAL_ROTATE_EVERY": "9", "PEERSEAL_ROTATE_LEAD": "0.5", "PEERSEAL_ROTATE_OVERLAP": "2"}
        assert options_in(env | schedule)["rotation"] == RotationSchedule(9.0, 0.5, 2.0)
        assert options_in(env)["rotation"] == RotationSchedule()

    def test_a_schedule_that_is_no_number_is_refused(self, from_env: FromEnv) -> None:
        with pytest.raises(ConfigurationError, match="ROTATE_LEAD"):
            from_env(rotate_lead="soon")

    def test_retire_at_exit(self, from_env: FromEnv) -> None:
        assert from_env().retire_at_exit
        assert not from_env(retire_at_exit="0").retire_at_exit

    def test_with_a_key_folder_nothing_is_retired_unless_it_is_asked_for(
        self, from_env: FromEnv, tmp_path: Path
    ) -> None:
        assert not from_env(key_dir=str(tmp_path)).retire_at_exit
        assert from_env(key_dir=str(tmp_path), retire_at_exit="1").retire_at_exit


def test_a_stolen_folder_alone_is_worth_nothing_where_the_key_is_ephemeral(
    registry: MemoryRegistry, temporary: Path
) -> None:
    registry.identity("client")
    (pem,) = (file.read_bytes() for file in temporary.glob("*/*.pem"))
    with pytest.raises(KeyRefused):
        KeyPair.from_pem(pem)
