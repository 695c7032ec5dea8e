"""An hour without the registry, on a clock that is set: known callers go on until their documents expire. A restart
changes nothing, and when the registry is back it gets no rush of calls.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import pytest

from peerseal import Identity, TrustLimits, TrustStore, Verifier
from peerseal.errors import CallerNotAllowed, RevokedKey, TrustUnavailable
from peerseal.testing import Clock, MemoryRegistry

LIMITS = TrustLimits(poll_interval=3600.0)
"""The background thread sleeps through the test, which calls ``refresh`` itself."""
MINUTE = 60
HOUR = LIMITS.offline_limit
CALLERS = ("caller-1", "caller-2", "caller-3")
ROOT, CHANGES = "GET /.well-known/peerseal-registry", "GET /v1/changes"
PROOF = "GET /ledger/proof"
POLICY = "GET /v1/services/callee/policy.jwt"
KEY_SETS = [f"GET /v1/services/{caller}/jwks.jwt" for caller in CALLERS]
THREADS = 24


@pytest.fixture
def callers(registry: MemoryRegistry) -> list[Identity]:
    callers = [registry.identity(name) for name in CALLERS]
    registry.calls.clear()
    return callers


Start = Callable[[], "Callee"]


class Callee:
    """A process that serves ``callee``: its trust store, and what it makes of calls."""

    def __init__(self, trust: TrustStore, clock: Clock) -> None:
        self.trust = trust
        self._verifier = Verifier(trust, audience="callee", allow=dict.fromkeys(CALLERS, ()), clock=clock)

    def verify(self, caller: Identity) -> str:
        """The caller's name, or an error."""
        token = caller.sign_request("callee", method="GET", target="/")
        return self._verifier.verify(token, method="GET", target="/").service

    def knows(self, callers: list[Identity]) -> bool:
        """Whether it accepts a call of each of them."""
        return [self.verify(caller) for caller in callers] == [caller.service for caller in callers]


@pytest.fixture
def start(registry: MemoryRegistry, clock: Clock, tmp_path: Path) -> Start:
    """Starts a process of the callee; all have one cache folder."""
    return lambda: Callee(registry.trust_store(limits=LIMITS, cache_dir=tmp_path / "cache"), clock)


def minutes(clock: Clock, callee: Callee, seconds: float) -> Iterator[None]:
    """Let the time pass, minute by minute, each with the looks of the background thread at the registry."""
    end = clock.now + seconds
    while clock.now + MINUTE <= end:
        clock.advance(MINUTE)
        callee.trust.refresh()
        yield
    clock.now = end


class TestAnHour:
    def test_no_known_caller_is_refused_within_it_and_all_are_with_503_after_it(
        self, registry: MemoryRegistry, start: Start, clock: Clock, callers: list[Identity]
    ) -> None:
        callee = start()
        assert callee.knows(callers)
        registry.down = True
        for _ in minutes(clock, callee, HOUR - 1):
            assert callee.knows(callers)
        assert callee.knows(callers)
        clock.advance(1)
        for caller in callers:
            with pytest.raises(TrustUnavailable) as caught:
                callee.verify(caller)
            assert (caught.value.status, caught.value.code) == (503, "trust_unavailable")
            assert caught.value.retry_after > 0

    def test_it_begins_with_the_last_signed_word_and_not_with_the_last_question(
        self, registry: MemoryRegistry, start: Start, clock: Clock, callers: list[Identity]
    ) -> None:
        callee = start()
        assert callee.knows(callers)
        clock.advance(HOUR / 2)
        callee.trust.refresh()  # a list of changes, signed now: nothing changed
        registry.down = True
        clock.advance(HOUR - 1)
        callee.trust.refresh()
        assert callee.knows(callers)
        clock.advance(1)
        with pytest.raises(TrustUnavailable):
            callee.verify(callers[0])

    def test_a_restart_in_the_middle_goes_on_from_the_disk_and_wins_no_time(
        self, registry: MemoryRegistry, start: Start, clock: Clock, callers: list[Identity]
    ) -> None:
        assert start().knows(callers)
        registry.down = True
        for _ in range(6):
            clock.advance(HOUR // 6 - 1)
            assert start().knows(callers)
        clock.advance(6)
        for caller in callers:
            with pytest.raises(TrustUnavailable):
                start().verify(caller)

    def test_while_it_lasts_the_registry_is_asked_no_more_than_when_it_answers(
        self, registry: MemoryRegistry, start: Start, clock: Clock, callers: list[Identity]
    ) -> None:
        callee = start()
        assert callee.knows(callers)

        def asked() -> int:
            registry.calls.clear()
            for _ in minutes(clock, callee, HOUR - MINUTE):
                assert callee.knows(callers)
            return registry.calls.total()

        with_answers = asked()
        registry.down = True
        assert asked() <= 2 * with_answers


class TestRecovery:
    @pytest.fixture
    def callee(self, registry: MemoryRegistry, start: Start, clock: Clock, callers: list[Identity]) -> Callee:
        """One that believes no caller any more, whose registry has just come back."""
        callee = start()
        assert callee.knows(callers)
        registry.down = True
        clock.advance(HOUR)
        callee.trust.refresh()
        for caller in callers:
            with pytest.raises(TrustUnavailable):
                callee.verify(caller)
        registry.down = False
        registry.calls.clear()
        return callee

    def test_one_refresh_restores_belief_in_everybody(
        self, registry: MemoryRegistry, callee: Callee, callers: list[Identity]
    ) -> None:
        callee.trust.refresh()
        asked = registry.calls.copy()
        assert callee.knows(callers)
        assert registry.calls == asked, "and no call had to ask"
        assert asked == Counter({CHANGES: 1}), "one signed word that nothing changed confirms all of it"

    def test_with_a_revocation_meanwhile_it_also_fetches_what_changed_once(
        self, registry: MemoryRegistry, callee: Callee, callers: list[Identity]
    ) -> None:
        registry.revoke(callers[0].credentials.key_id)
        callee.trust.refresh()
        assert registry.calls == Counter({CHANGES: 1, KEY_SETS[0]: 1})
        assert callee.knows(callers[1:])

    def test_of_many_threads_that_ask_at_once_one_fetches_each_document(
        self, registry: MemoryRegistry, callee: Callee, clock: Clock, callers: list[Identity]
    ) -> None:
        clock.advance(LIMITS.cooldown)
        together = Barrier(THREADS)

        def call(number: int) -> str:
            together.wait()
            return callee.verify(callers[number % len(callers)])

        with ThreadPoolExecutor(THREADS) as pool:
            verified = Counter(pool.map(call, range(THREADS)))
        assert verified == {caller: THREADS // len(CALLERS) for caller in CALLERS}
        assert registry.calls == Counter({POLICY: 1, **dict.fromkeys(KEY_SETS, 1)})

    def test_processes_started_anew_find_all_that_was_fetched_before(
        self, registry: MemoryRegistry, callee: Callee, start: Start, clock: Clock, callers: list[Identity]
    ) -> None:
        for _ in range(8):
            assert start().knows(callers)
        found = registry.calls - Counter({ROOT: registry.calls[ROOT]})
        assert found == Counter({CHANGES: 8}), "and each asks once whether something changed since"


@contextmanager
def long_outage(registry: MemoryRegistry, clock: Clock, callee: Callee) -> Iterator[None]:
    """The block runs at the end of twenty minutes without the registry, and then the callee asks it."""
    registry.down = True
    for _ in minutes(clock, callee, 20 * MINUTE):
        pass
    yield
    registry.down = False
    clock.advance(1)
    callee.trust.refresh()


class TestNewsOfTheOutage:
    def test_a_revocation_in_a_long_outage_is_in_force_after_the_first_refresh(
        self, registry: MemoryRegistry, start: Start, clock: Clock, callers: list[Identity]
    ) -> None:
        """Renewals that failed meanwhile do not put it off."""
        callee = start()
        assert callee.knows(callers)
        with long_outage(registry, clock, callee):
            registry.revoke(callers[0].credentials.key_id)
        with pytest.raises(RevokedKey):
            callee.verify(callers[0])

    def test_a_policy_that_was_narrowed_in_a_long_outage_is_in_force_after_the_first_refresh(
        self, registry: MemoryRegistry, start: Start, clock: Clock, callers: list[Identity]
    ) -> None:
        callee = start()
        assert callee.knows(callers)
        with long_outage(registry, clock, callee):
            registry.set_policy("callee", {"caller-2": ()})
        with pytest.raises(CallerNotAllowed):
            callee.verify(callers[0])
