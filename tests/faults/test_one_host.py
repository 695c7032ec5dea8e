"""Eight workers of one host, as real processes: one of them fetches each document, one asks what changed, and whatever
befalls it, a revocation reaches all of them.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from peerseal import TrustLimits, TrustStore
from tests.support.patient import PatientRegistry, served
from tests.support.waiting import until
from tests.support.workers import Worker, all_say

pytestmark = pytest.mark.usefixtures("quiet_collector")

WORKERS = 8
LIMITS = TrustLimits(wait=1.0, poll_interval=0.1, longest_poll_pause=0.5, look_interval=0.02, patience=20.0)
"""The registry keeps a question for one second, so that a host notices within some seconds that its asker is gone."""
SILENCE = 2 * LIMITS.wait + LIMITS.longest_poll_pause
"""Seconds after which the others of a host go on without an asker that hangs."""
SOON = 5.0
"""Seconds in which a revocation reaches all where nothing is wrong, on a busy machine too."""
ROOT, CHANGES = "GET /.well-known/peerseal-registry", "GET /v1/changes"
KEY_SET, POLICY = "GET /v1/services/client/jwks.jwt", "GET /v1/services/callee/policy.jwt"
CALLEE = "test.internal/callee"


@pytest.fixture
def registry() -> Iterator[PatientRegistry]:
    with PatientRegistry() as registry:
        yield registry


@pytest.fixture
def url(registry: PatientRegistry) -> Iterator[str]:
    with served(registry) as url:
        yield url


@pytest.fixture
def kid(registry: PatientRegistry) -> str:
    """The client's key; nothing that it cost is counted."""
    kid = registry.identity("client", limits=TrustLimits(poll_interval=3600.0)).credentials.key_id
    registry.calls.clear()
    return kid


class Host:
    """A host whose workers share a cache folder."""

    def __init__(self, url: str, pin: str, cache: Path, opened: ExitStack) -> None:
        self._cache = cache
        self._url = url
        self._pin = pin
        self._opened = opened

    def trust_store(self, limits: TrustLimits = LIMITS) -> TrustStore:
        """One of this process, which is about to fork."""
        trust = TrustStore(self._url, pin=self._pin, cache_dir=self._cache, limits=limits)
        self._opened.callback(trust.stop)
        return trust

    def forked(self, trust: TrustStore, count: int = WORKERS) -> list[Worker]:
        """Workers forked from this process."""
        return [self._opened.enter_context(Worker.forked(trust)) for _ in range(count)]

    def spawned(self, count: int = WORKERS, limits: TrustLimits = LIMITS) -> list[Worker]:
        """Workers that share nothing but the folder."""
        made = [Worker.spawned(self._url, self._pin, self._cache, limits) for _ in range(count)]
        return [self._opened.enter_context(worker) for worker in made]

    def workers(self, how: str, limits: TrustLimits = LIMITS) -> list[Worker]:
        """Of one sort or the other."""
        return self.forked(self.trust_store(limits)) if how == "forked" else self.spawned(limits=limits)


@pytest.fixture
def host(registry: PatientRegistry, url: str, tmp_path: Path) -> Iterator[Host]:
    with ExitStack() as opened:
        yield Host(url, registry.pin, tmp_path / "cache", opened)


def know(workers: list[Worker], kid: str) -> None:
    """All of them verified the client before, and one of them asks what changed."""
    assert all_say(workers, "key", kid) == ["good"] * len(workers)
    until(lambda: sum(all_say(workers, "leads")) == 1)


def reaches_all(workers: list[Worker], kid: str, within: float) -> float:
    """How long it takes until all of them refuse the key as revoked."""
    return until(lambda: set(all_say(workers, "key", kid)) == {"revoked_key"}, within)


@pytest.mark.parametrize("how", ["forked", pytest.param("spawned", marks=pytest.mark.thorough)])
class TestWhatIsAsked:
    def test_at_a_cold_start_one_fetches_each_document_for_all(
        self, registry: PatientRegistry, host: Host, kid: str, how: str
    ) -> None:
        slow = replace(LIMITS, poll_interval=20.0)  # a copy that is older than a poll is asked about first
        workers = host.workers(how, slow)
        assert all_say(workers, "key", kid) == ["good"] * WORKERS
        asked = registry.calls.copy()
        assert (asked[ROOT], asked[KEY_SET]) == (1, 1)
        counts = [Counter(fetches) for fetches in all_say(workers, "fetches")]
        assert sum(count["key_set"] for count in counts) == 1

    def test_one_question_is_kept_for_all_and_a_change_is_fetched_once(
        self, registry: PatientRegistry, host: Host, kid: str, how: str
    ) -> None:
        workers = host.workers(how)
        know(workers, kid)
        until(lambda: registry.asking == 1)
        registry.calls.clear()
        registry.most = 0
        began = time.monotonic()
        registry.revoke(kid)
        reaches_all(workers, kid, within=SOON)
        until(lambda: registry.calls[KEY_SET] == 1)  # at some time within `SPREAD` seconds
        time.sleep(LIMITS.wait)
        seconds = time.monotonic() - began
        assert registry.calls[KEY_SET] == 1
        assert registry.most <= 1, "never two questions at once"
        assert registry.calls[CHANGES] <= 2 + seconds / LIMITS.wait + 1


class TestRefresh:
    @pytest.mark.thorough
    def test_each_document_is_fetched_again_once_for_all(self, registry: PatientRegistry, host: Host, kid: str) -> None:
        limits = replace(LIMITS, refresh_interval=1.0)
        workers = host.forked(host.trust_store(limits))
        know(workers, kid)
        registry.calls.clear()
        seconds = until(lambda: min(registry.calls[KEY_SET], registry.calls[ROOT]) >= 2)
        refreshes = seconds / (limits.refresh_interval * (1 - limits.jitter))
        assert max(registry.calls[KEY_SET], registry.calls[ROOT]) <= refreshes + 1


class TestTheAskerGoes:
    @pytest.fixture
    def workers(self, host: Host, kid: str) -> list[Worker]:
        workers = host.forked(host.trust_store())
        know(workers, kid)
        return workers

    def asker(self, workers: list[Worker]) -> Worker:
        (asker,) = [worker for worker in workers if worker.ask("leads")]
        workers.remove(asker)
        return asker

    def test_killed_another_takes_over_and_a_revocation_reaches_all(
        self, registry: PatientRegistry, kid: str, workers: list[Worker]
    ) -> None:
        self.asker(workers).kill()
        registry.revoke(kid)
        reaches_all(workers, kid, within=2 * LIMITS.wait + SOON)
        until(lambda: sum(all_say(workers, "leads")) == 1)

    @pytest.mark.thorough
    def test_killed_one_after_the_other(self, registry: PatientRegistry, kid: str, workers: list[Worker]) -> None:
        while len(workers) > 2:
            self.asker(workers).kill()
            until(lambda: sum(all_say(workers, "leads")) == 1, 2 * LIMITS.wait + SOON)
        registry.revoke(kid)
        reaches_all(workers, kid, within=2 * LIMITS.wait + SOON)

    @pytest.mark.slow
    def test_stopped_the_others_go_on_by_themselves_after_a_bounded_time(
        self, registry: PatientRegistry, kid: str, workers: list[Worker]
    ) -> None:
        asker = self.asker(workers)
        asker.stop()
        registry.revoke(kid)
        reaches_all(workers, kid, within=SILENCE + 2 * LIMITS.wait + SOON)
        assert sum(all_say(workers, "leads")) == 0
        asker.go_on()
        until(lambda: asker.ask("key", kid) == "revoked_key")


class TestForks:
    def test_a_fork_of_the_asker_does_not_ask_and_both_see_a_revocation(
        self, registry: PatientRegistry, host: Host, kid: str
    ) -> None:
        trust = host.trust_store()
        assert trust.key(kid).kid == kid
        until(lambda: trust.status().leads and registry.asking == 1)
        workers = host.forked(trust, 2)
        assert all_say(workers, "key", kid) == ["good"] * 2
        registry.revoke(kid)
        reaches_all(workers, kid, within=SOON)
        until(lambda: trust.status(start=False).services[kid.rpartition("/")[0]].keys == 0, SOON)
        assert all_say(workers, "leads") == [False, False]
        assert trust.status().leads

    def test_the_last_of_its_family_asks_when_the_others_have_ended(
        self, registry: PatientRegistry, host: Host, kid: str
    ) -> None:
        trust = host.trust_store()
        assert trust.key(kid).kid == kid
        until(lambda: trust.status().leads)
        first, second = host.forked(trust, 2)
        assert all_say([first, second], "key", kid) == ["good"] * 2
        trust.stop()
        until(lambda: sum(all_say([first, second], "leads")) == 1, 2 * LIMITS.wait + SOON)
        (first if first.ask("leads") else second).kill()
        other = second if not first.alive else first
        until(lambda: bool(other.ask("leads")), 2 * LIMITS.wait + SOON)
        registry.revoke(kid)
        reaches_all([other], kid, within=SOON)

    def test_forked_before_the_first_question_they_find_one_asker_among_them(
        self, registry: PatientRegistry, host: Host, kid: str
    ) -> None:
        workers = host.forked(host.trust_store(), 3)
        know(workers, kid)
        registry.revoke(kid)
        reaches_all(workers, kid, within=SOON)
        until(lambda: registry.calls[KEY_SET] == 2)  # at some time within `SPREAD` seconds
        time.sleep(LIMITS.wait)
        assert registry.calls[KEY_SET] == 2


class TestStoppedWhileItFetches:
    @pytest.mark.parametrize("document", [ROOT, KEY_SET])
    def test_a_process_that_is_stopped_with_a_documents_lock_holds_up_nobody_for_long(
        self, registry: PatientRegistry, host: Host, kid: str, document: str
    ) -> None:
        limits = replace(LIMITS, patience=1.0)
        stopped, other = host.spawned(2, limits)
        if document != ROOT:
            assert stopped.ask("policy", CALLEE) == "good"  # it knows the registry's keys
        registry.holds = True
        stopped.tell("key", kid)
        until(lambda: registry.calls[document] == 1)
        stopped.stop()
        registry.holds = False
        began = time.monotonic()
        assert other.ask("key", kid) == "good"
        assert time.monotonic() - began < 3 * limits.patience


class TestPolicies:
    @pytest.mark.parametrize("how", ["forked", "spawned"])
    def test_at_a_cold_start_one_fetches_the_policy_for_all(
        self, registry: PatientRegistry, host: Host, kid: str, how: str
    ) -> None:
        workers = host.workers(how)
        assert all_say(workers, "policy", CALLEE) == ["good"] * WORKERS
        assert registry.calls[POLICY] == 1

    def test_it_is_fetched_again_once_for_all(self, registry: PatientRegistry, host: Host, kid: str) -> None:
        limits = replace(LIMITS, refresh_interval=1.0)
        workers = host.forked(host.trust_store(limits))
        know(workers, kid)
        assert all_say(workers, "policy", CALLEE) == ["good"] * WORKERS
        registry.calls.clear()
        seconds = until(lambda: registry.calls[POLICY] >= 2)
        assert registry.calls[POLICY] <= seconds / (limits.refresh_interval * (1 - limits.jitter)) + 1

    def test_a_change_is_fetched_once_for_all(self, registry: PatientRegistry, host: Host, kid: str) -> None:
        workers = host.forked(host.trust_store())
        know(workers, kid)
        assert all_say(workers, "policy", CALLEE) == ["good"] * WORKERS
        registry.calls.clear()
        registry.set_policy("callee", {"client": ()})
        until(lambda: registry.calls[POLICY] == 1)
        time.sleep(1)
        assert registry.calls[POLICY] == 1


LONG = replace(LIMITS, wait=600.0)
"""A question that is not ended waits longer than the test."""


@pytest.mark.parametrize("how", ["forked", pytest.param("spawned", marks=pytest.mark.thorough)])
class TestWorkersThatKnowDifferentServices:
    """One worker asks for all, and its question names the services of all."""

    @pytest.fixture
    def kids(self, registry: PatientRegistry) -> dict[str, str]:
        quiet = TrustLimits(poll_interval=3600.0)
        names = ("one", "two", "three")
        return {name: registry.identity(name, limits=quiet).credentials.key_id for name in names}

    @pytest.fixture
    def pair(self, registry: PatientRegistry, host: Host, kids: dict[str, str], how: str) -> list[Worker]:
        workers = host.workers(how, LONG)[:2]
        for worker, name in zip(workers, ("one", "two"), strict=True):
            assert worker.ask("key", kids[name]) == "good"
        asks_about(registry, "one", "two")
        return workers

    @pytest.mark.parametrize("place", [0, 1])
    def test_a_revocation_reaches_the_one_that_knows_the_service(
        self, registry: PatientRegistry, kids: dict[str, str], pair: list[Worker], place: int
    ) -> None:
        kid = kids[("one", "two")[place]]
        registry.revoke(kid)
        until(lambda: pair[place].ask("key", kid) == "revoked_key")

    @pytest.mark.parametrize("place", [0, 1])
    def test_a_service_that_one_begins_to_know_is_named_from_then_on(
        self, registry: PatientRegistry, kids: dict[str, str], pair: list[Worker], place: int
    ) -> None:
        assert pair[place].ask("key", kids["three"]) == "good"
        asks_about(registry, "one", "two", "three")
        registry.revoke(kids["three"])
        until(lambda: pair[place].ask("key", kids["three"]) == "revoked_key")

    def test_when_the_asker_is_killed_the_other_asks_about_what_it_knows(
        self, registry: PatientRegistry, kids: dict[str, str], pair: list[Worker]
    ) -> None:
        [asker] = [worker for worker in pair if worker.ask("leads")]
        [other] = [worker for worker in pair if worker is not asker]
        asked = len(registry.watched)
        asker.kill()
        name = "one" if other is pair[0] else "two"
        until(lambda: len(registry.watched) > asked)
        assert name in registry.watched[-1]
        kid = kids[name]
        registry.revoke(kid)
        until(lambda: other.ask("key", kid) == "revoked_key")


def asks_about(registry: PatientRegistry, *services: str) -> None:
    """Returns once the last question names these services."""
    until(lambda: registry.watched[-1:] == [frozenset(services)], what=f"a question about {services}")
