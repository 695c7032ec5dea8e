"""After a restart, a fork or a pause the registry is asked before old documents decide. A key that was revoked
meanwhile, or a policy that was narrowed, is refused at the first request.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from peerseal import EventVerifier, Identity, TrustLimits, TrustStore, Verifier
from peerseal.asynchronous import AsyncVerifier
from peerseal.errors import CallerNotAllowed, RevokedKey, TrustUnavailable
from peerseal.testing import Answer, Clock, MemoryRegistry
from tests.support.misbehaving import Misbehaving, hangs, misbehaving
from tests.support.patient import PatientRegistry, served
from tests.support.workers import Worker, all_say

QUIET = TrustLimits(poll_interval=3600.0)
"""The thread that follows the changes sleeps through the test."""
CHANGES, KEY_SET = "GET /v1/changes", "GET /v1/services/client/jwks.jwt"
TIMES = pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.thorough)])


@pytest.fixture
def uptime() -> Clock:
    """Seconds since the machine started: a test that moves it on suspends the machine for so long."""
    return Clock(1000.0)


@pytest.fixture
def patient() -> Iterator[PatientRegistry]:
    with PatientRegistry() as registry:
        yield registry


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client")


class Callee:
    """A process that serves ``callee``, and what it makes of the client's requests and events."""

    def __init__(self, trust: TrustStore, registry: MemoryRegistry, client: Identity) -> None:
        self.trust = trust
        self.client = client
        self.verifier = Verifier(trust, audience="callee", allow={"client": {"read"}}, clock=registry.clock)
        self.events = EventVerifier(
            trust,
            audience="jobs.test",
            allow={"client": {"do"}},
            max_age=timedelta(days=1),
            clock=registry.clock,
        )

    def call(self) -> str:
        """A request, verified as a server does it."""
        token = self.client.sign_request("callee", method="GET", target="/")
        return self.verifier.verify(token, method="GET", target="/", scope="read").service

    def call_in_a_loop(self) -> str:
        """The same in an event loop."""

        async def verify() -> str:
            token = self.client.sign_request("callee", method="GET", target="/")
            return (await AsyncVerifier(self.verifier).verify(token, method="GET", target="/", scope="read")).service

        return asyncio.run(verify())

    def event(self) -> str:
        """An event of the client's."""
        about = {"topic": "T", "audience": "jobs.test", "scope": "do", "event_id": "e", "transaction_id": "t"}
        return self.events.verify(b"{}", self.client.sign_event(b"{}", **about), topic="T").publisher

    def settings(self) -> str:
        """The domain's minters."""
        return ",".join(self.trust.settings().minters)


Ask = Callable[[Callee], str]
ASKS = pytest.mark.parametrize("ask", [Callee.call, Callee.call_in_a_loop, Callee.event], ids=lambda ask: ask.__name__)


class Host:
    """One on which the callee is started, with one cache folder."""

    def __init__(self, registry: MemoryRegistry, client: Identity, cache: Path, uptime: Clock) -> None:
        self._registry = registry
        self._client = client
        self._cache = cache
        self._uptime = uptime

    def start(self) -> Callee:
        """A process that knows nothing but what is on disk; what it asks from now on is counted."""
        self._uptime.advance(0.01)
        trust = self._registry.trust_store(limits=QUIET, cache_dir=self._cache, uptime=self._uptime)
        self._registry.calls.clear()
        return Callee(trust, self._registry, self._client)


@pytest.fixture
def host(registry: MemoryRegistry, client: Identity, tmp_path: Path, uptime: Clock) -> Host:
    return Host(registry, client, tmp_path / "cache", uptime)


@pytest.fixture
def knowing(registry: MemoryRegistry, host: Host) -> Callee:
    """A process that knows the client, its own policy and the domain's settings."""
    registry.set_policy("callee", {"client": {"read"}})
    registry.set_domain(minters={"client"})
    callee = host.start()
    assert callee.call() == callee.event() == "client"
    assert callee.settings() == "test.internal/client"
    registry.calls.clear()
    return callee


class TestRestart:
    @TIMES
    def test_a_key_that_was_revoked_while_the_callee_was_stopped_is_refused_at_the_first_request(
        self, registry: MemoryRegistry, tmp_path: Path, clock: Clock, uptime: Clock, times: int
    ) -> None:
        for number in range(times):
            client = registry.identity(f"client-{number}")
            host = Host(registry, client, tmp_path, uptime)
            for process in (host.start(), host.start()):
                trust, kid = process.trust, client.credentials.key_id
                assert trust.key(kid).kid == kid
            registry.revoke(kid)
            with pytest.raises(RevokedKey):
                host.start().trust.key(kid)

    @ASKS
    def test_a_revoked_key_is_refused_right_after_a_restart(
        self, registry: MemoryRegistry, host: Host, knowing: Callee, ask: Ask
    ) -> None:
        registry.revoke(knowing.client.credentials.key_id)
        with pytest.raises(RevokedKey):
            ask(host.start())

    def test_a_policy_that_was_narrowed_is_in_force_right_after_a_restart(
        self, registry: MemoryRegistry, host: Host, knowing: Callee
    ) -> None:
        registry.set_policy("callee", {"somebody-else": {"read"}})
        with pytest.raises(CallerNotAllowed):
            host.start().call()

    def test_settings_of_the_domain_that_were_changed_are_in_force_right_after_a_restart(
        self, registry: MemoryRegistry, host: Host, knowing: Callee
    ) -> None:
        registry.set_domain(minters={"other"})
        assert host.start().settings() == "test.internal/other"

    def test_what_did_not_change_costs_one_question(
        self, registry: MemoryRegistry, host: Host, knowing: Callee
    ) -> None:
        callee = host.start()
        assert callee.call() == callee.event() == "client"
        assert callee.settings() == "test.internal/client"
        assert registry.calls == {CHANGES: 1}

    def test_a_copy_that_is_read_long_after_the_start_is_confirmed_as_well(
        self, registry: MemoryRegistry, host: Host, knowing: Callee
    ) -> None:
        callee = host.start()
        assert callee.settings() == "test.internal/client"
        registry.revoke(knowing.client.credentials.key_id)
        callee.trust.refresh()
        with pytest.raises(RevokedKey):
            callee.call()

    def test_a_signing_key_that_the_root_dropped_meanwhile_signs_nothing(
        self, registry: MemoryRegistry, host: Host, knowing: Callee
    ) -> None:
        registry.roll_signing_key()
        callee = host.start()
        assert callee.call() == "client"
        assert registry.calls[KEY_SET] == 1, "what it signed is fetched again"


@contextmanager
def hanging_registry(
    registry: MemoryRegistry, known: Callee, folder: Path, patience: float
) -> Iterator[tuple[Misbehaving, Callee]]:
    """A server that hangs and has the registry's pin, so that the copies are good, and a callee that asks it alone."""
    limits = TrustLimits(poll_interval=3600.0, patience=patience)
    with misbehaving(hangs) as server:
        trust = TrustStore(
            server.url, pin=registry.pin, limits=limits, clock=registry.clock, cache_dir=folder / "cache"
        )
        yield server, Callee(trust, registry, known.client)
        trust.stop()


class TestTheRegistryIsNotReached:
    """Then the copies decide, within the offline limit."""

    NO_ANSWERS = pytest.mark.parametrize(
        "answer",
        [
            Answer(500, b"no"),
            Answer(503, b""),
            Answer(404, b"not found"),
            Answer(200, b"<html>Log in to this network</html>"),
            Answer(200, b"\xff\xfe"),
            Answer(200, b""),
        ],
        ids=lambda answer: f"{answer.status}-{answer.body!r}",
    )

    @ASKS
    def test_it_is_down(self, registry: MemoryRegistry, host: Host, knowing: Callee, ask: Ask) -> None:
        registry.down = True
        callee = host.start()
        if ask is not Callee.event:  # statements are in no copy, but keys that are known serve for events, too
            assert ask(callee) == "client"
        assert callee.call() == "client"
        assert registry.calls[CHANGES] == 1

    @NO_ANSWERS
    def test_something_else_answers(
        self, registry: MemoryRegistry, host: Host, knowing: Callee, answer: Answer
    ) -> None:
        registry.answers["/v1/changes"] = answer
        assert host.start().call() == "client"

    def test_it_hangs_for_as_long_as_one_request_may_wait(
        self, registry: MemoryRegistry, host: Host, knowing: Callee, tmp_path: Path
    ) -> None:
        with hanging_registry(registry, knowing, tmp_path, patience=0.3) as (server, callee):
            assert callee.call() == "client"
            assert callee.call() == "client"
            assert server.asked == 1, "and the second request did not wait again"

    def test_it_hangs_for_many_threads_at_once(
        self, registry: MemoryRegistry, host: Host, knowing: Callee, tmp_path: Path
    ) -> None:
        with hanging_registry(registry, knowing, tmp_path, patience=1.0) as (server, callee):
            with ThreadPoolExecutor(16) as pool:
                assert set(pool.map(lambda _: callee.call(), range(16))) == {"client"}
            assert server.asked == 1

    def test_after_a_pause(self, registry: MemoryRegistry, knowing: Callee, uptime: Clock) -> None:
        registry.down = True
        uptime.advance(30)
        assert knowing.call() == knowing.event() == "client"
        assert registry.calls[CHANGES] == 1


class TestAnswersThatConfirmNothing:
    def test_one_that_covers_less_than_this_host_has_seen(
        self, registry: MemoryRegistry, host: Host, knowing: Callee
    ) -> None:
        """As a lagging mirror gives it."""
        process = host.start()
        process.call()
        (asked,) = [call.path for call in registry.log if call.path.startswith("/v1/changes")][-1:]
        behind = registry.call("GET", asked)
        registry.revoke(knowing.client.credentials.key_id)
        knowing.trust.refresh()  # another process of the host saw it
        registry.answers["/v1/changes"] = behind
        for path in ("/v1/services/client/jwks.jwt", "/v1/services/callee/policy.jwt"):
            registry.answers[path] = Answer(500, b"")
        with pytest.raises((TrustUnavailable, RevokedKey)):
            host.start().call()

    def test_one_of_a_mirror_that_is_behind(self, patient: PatientRegistry, tmp_path: Path) -> None:
        """It gives what it once got, and the primary, which is asked after it, says the truth."""
        with served(patient) as url, PatientRegistry() as mirror, served(mirror) as behind:
            kid = patient.identity("client", limits=QUIET).credentials.key_id
            first = TrustStore(url, pin=patient.pin, limits=QUIET, cache_dir=tmp_path / "cache")
            assert first.key(kid).kid == kid
            mirror.answers["/v1/changes"] = patient.call("GET", f"/v1/changes?since={len(patient.ledger.entries)}")
            patient.identity("other", limits=QUIET)
            first.refresh()  # this host has seen more than the mirror
            patient.revoke(kid)
            second = TrustStore([behind, url], pin=patient.pin, limits=QUIET, cache_dir=tmp_path / "cache")
            with pytest.raises(RevokedKey):
                second.key(kid)
            assert mirror.calls["GET /v1/changes"] == 1
            for trust in (first, second):
                trust.stop()

    def test_one_that_another_key_signed(self, registry: MemoryRegistry, host: Host, knowing: Callee) -> None:
        with MemoryRegistry(registry.domain, clock=registry.clock) as other:
            forged = other.call("GET", f"/v1/changes?since={len(registry.ledger.entries)}")
        registry.answers["/v1/changes"] = forged
        with pytest.raises(TrustUnavailable):
            host.start().call()

    def test_that_a_service_changed_whose_keys_cannot_be_had(
        self, registry: MemoryRegistry, host: Host, knowing: Callee
    ) -> None:
        registry.revoke(knowing.client.credentials.key_id)
        registry.answers["/v1/services/client/jwks.jwt"] = Answer(500, b"")
        callee = host.start()
        for _ in range(3):
            with pytest.raises(TrustUnavailable):
                callee.call()


class TestSuspended:
    """A machine that sleeps: its clocks stand still, but for the one that counts from its start."""

    @ASKS
    def test_a_key_that_was_revoked_meanwhile_is_refused_at_the_first_request(
        self, registry: MemoryRegistry, knowing: Callee, uptime: Clock, ask: Ask
    ) -> None:
        registry.revoke(knowing.client.credentials.key_id)
        uptime.advance(30)
        with pytest.raises(RevokedKey):
            ask(knowing)

    def test_a_policy_that_was_narrowed_meanwhile_is_in_force_at_the_first_request(
        self, registry: MemoryRegistry, knowing: Callee, uptime: Clock
    ) -> None:
        registry.set_policy("callee", {"client": set()})
        uptime.advance(30)
        with pytest.raises(Exception, match="may not use read"):
            knowing.call()

    def test_settings_that_were_changed_meanwhile_are_in_force_at_the_first_request(
        self, registry: MemoryRegistry, knowing: Callee, uptime: Clock
    ) -> None:
        registry.set_domain(minters={"other"})
        uptime.advance(30)
        assert knowing.settings() == "test.internal/other"

    def test_an_event_of_a_past_key_that_was_revoked_meanwhile_is_refused(
        self, registry: MemoryRegistry, knowing: Callee, clock: Clock, uptime: Clock
    ) -> None:
        """Its key is known by its own statement."""
        headers = knowing.client.sign_event(
            b"{}", topic="T", audience="jobs.test", scope="do", event_id="e", transaction_id="t"
        )
        fresh = Callee(registry.trust_store(limits=QUIET, uptime=uptime), registry, knowing.client)
        assert fresh.events.verify(b"{}", headers, topic="T").publisher == "client"
        registry.revoke(knowing.client.credentials.key_id)
        uptime.advance(30)
        with pytest.raises(RevokedKey):
            fresh.events.verify(b"{}", headers, topic="T")

    def test_what_did_not_change_costs_one_question(
        self, registry: MemoryRegistry, knowing: Callee, uptime: Clock
    ) -> None:
        uptime.advance(30)
        for _ in range(3):
            assert knowing.call() == knowing.event() == "client"
        assert knowing.settings() == "test.internal/client"
        assert registry.calls == {CHANGES: 1}

    def test_a_process_that_is_awake_asks_nothing(self, registry: MemoryRegistry, knowing: Callee) -> None:
        for _ in range(20):
            assert knowing.call() == "client"
        assert registry.calls == {}


# ---- real processes

FAST = TrustLimits(wait=1.0, poll_interval=0.5, look_interval=0.05)


class Farm:
    """Workers of one host, as processes of their own."""

    def __init__(self, registry: PatientRegistry, url: str, cache: Path, opened: ExitStack) -> None:
        self.registry = registry
        self._url = url
        self._cache = cache
        self._opened = opened

    def trust_store(self, limits: TrustLimits = FAST) -> TrustStore:
        """One of this process, which is about to fork."""
        trust = TrustStore(self._url, pin=self.registry.pin, cache_dir=self._cache, limits=limits)
        self._opened.callback(trust.stop)
        return trust

    def spawned(self, limits: TrustLimits = FAST) -> Worker:
        """A worker that shares nothing but the folder."""
        return self._opened.enter_context(Worker.spawned(self._url, self.registry.pin, self._cache, limits))

    def forked(self, trust: TrustStore) -> Worker:
        """A worker that goes on with what this process knows."""
        return self._opened.enter_context(Worker.forked(trust))

    def newcomer(self, number: int) -> str:
        """The kid of a new service."""
        return self.registry.identity(f"client-{number}", limits=QUIET).credentials.key_id


@pytest.fixture
def farm(patient: PatientRegistry, tmp_path: Path) -> Iterator[Farm]:
    with ExitStack() as opened:
        url = opened.enter_context(served(patient))
        yield Farm(patient, url, tmp_path / "cache", opened)


@pytest.mark.usefixtures("quiet_collector")
class TestForks:
    def test_a_child_does_not_go_on_with_what_its_parent_was_told(self, farm: Farm) -> None:
        """The parent follows no changes here, as a server does that forks its workers for ever."""
        trust = farm.trust_store(QUIET)
        kid = farm.newcomer(1)
        assert trust.key(kid).kid == kid
        first = farm.forked(trust)
        assert first.ask("key", kid) == "good"
        farm.registry.revoke(kid)
        assert farm.forked(trust).ask("key", kid) == "revoked_key"

    def test_eight_workers_of_a_host_ask_once(self, farm: Farm) -> None:
        kid = farm.newcomer(1)
        assert farm.trust_store(QUIET).key(kid).kid == kid  # from now on there are copies
        trust = farm.trust_store(QUIET)
        workers = [farm.forked(trust) for _ in range(8)]
        all_say(workers, "leads")  # all of them run
        farm.registry.calls.clear()
        assert all_say(workers, "key", kid) == ["good"] * 8
        assert farm.registry.calls == {CHANGES: 1}

    def test_what_another_process_heard_before_this_one_started_confirms_nothing(self, farm: Farm) -> None:
        kid = farm.newcomer(1)
        trust = farm.trust_store(QUIET)
        first = farm.forked(trust)
        assert first.ask("key", kid) == "good"
        second = farm.forked(trust)
        assert second.ask("key", kid) == "good"  # which wrote down what it was told
        farm.registry.revoke(kid)
        assert farm.forked(trust).ask("key", kid) == "revoked_key"


class TestStoppedProcesses:
    @pytest.mark.parametrize("times", [3, pytest.param(100, marks=pytest.mark.thorough)])
    def test_a_process_that_was_stopped_for_longer_than_a_poll_refuses_what_was_revoked_meanwhile(
        self, farm: Farm, times: int
    ) -> None:
        workers = [farm.spawned(), farm.spawned()]
        for number in range(times):
            kid = farm.newcomer(number)
            assert all_say(workers, "key", kid) == ["good", "good"]
            for worker in workers:
                worker.stop()
            farm.registry.revoke(kid)
            time.sleep(FAST.poll_interval + 0.1)
            for worker in workers:
                worker.tell("key", kid)
                worker.go_on()
            assert [worker.reply() for worker in workers] == ["revoked_key", "revoked_key"], number

    @pytest.mark.thorough
    def test_stopped_for_30_seconds(self, farm: Farm) -> None:
        """Longer than the registry keeps a question, so that the connection is dead as well."""
        workers = [farm.spawned(TrustLimits()), farm.spawned(TrustLimits())]
        kids = [farm.newcomer(number) for number in range(10)]
        for kid in kids:
            assert all_say(workers, "key", kid) == ["good", "good"]
        for worker in workers:
            worker.stop()
        for kid in kids[:-1]:
            farm.registry.revoke(kid)
        time.sleep(30)
        for worker in workers:
            worker.go_on()
        for kid in kids[:-1]:
            assert all_say(workers, "key", kid) == ["revoked_key", "revoked_key"]
        assert all_say(workers, "key", kids[-1]) == ["good", "good"]

    @pytest.mark.parametrize("times", [3, pytest.param(100, marks=pytest.mark.thorough)])
    def test_a_process_that_starts_after_a_revocation_refuses_the_first_token(self, farm: Farm, times: int) -> None:
        for number in range(times):
            kid = farm.newcomer(number)
            with farm.spawned() as worker:
                assert worker.ask("key", kid) == "good"
            farm.registry.revoke(kid)
            with farm.spawned() as worker:
                assert worker.ask("key", kid) == "revoked_key", number
