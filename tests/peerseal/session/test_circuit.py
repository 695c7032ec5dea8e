"""When calls to an origin are made, refused, and how many at once: on a clock that only the tests move."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from peerseal.errors import CircuitOpen, ConfigurationError, TooManyCalls
from peerseal.runtime.limits import CallLimits
from peerseal.session.circuit import MAX_ORIGINS, Circuit, Circuits, CircuitState, CircuitStatus
from peerseal.testing import Clock
from peerseal.transport.deadline import no_longer_than
from tests.peerseal.served import Child
from tests.support.waiting import until

ORIGIN = "http://callee"
LIMITS = CallLimits(failures=3, window=10.0, open_time=2.0, jitter=0.5, longest_open=20.0, slow=1.0)
CLOSED, OPEN, HALF_OPEN = CircuitState


class Time(Clock):
    """Seconds that pass when a test says so, and the luck of the jitter."""

    luck = 0.0


@pytest.fixture
def time() -> Time:
    return Time(1000.0)


@pytest.fixture
def circuits(time: Time) -> Circuits:
    return Circuits(clock=time, chance=lambda: time.luck)


@pytest.fixture
def circuit(circuits: Circuits) -> Circuit:
    return circuits.of(ORIGIN)


def fails(circuit: Circuit, times: int = 1, *, retry_after: float = 0.0, limits: CallLimits = LIMITS) -> None:
    for _ in range(times):
        with circuit.attempt(limits) as attempt:
            circuit.failed(attempt, "ReadTimeout", retry_after)


def succeeds(circuit: Circuit, limits: CallLimits = LIMITS) -> None:
    with circuit.attempt(limits) as attempt:
        circuit.succeeded(attempt)


def refused(circuit: Circuit, limits: CallLimits = LIMITS) -> CircuitOpen:
    with pytest.raises(CircuitOpen) as raised, circuit.attempt(limits):
        pytest.fail("an attempt was made")
    return raised.value


class TestTheBreaker:
    def test_opens_after_so_many_failures_one_after_another(self, circuit: Circuit) -> None:
        fails(circuit, 2)
        assert circuit.status().state is CLOSED
        fails(circuit)
        assert circuit.status().state is OPEN
        assert circuit.status().opened == 1

    def test_a_success_between_them_starts_the_count_again(self, circuit: Circuit) -> None:
        for _ in range(5):
            fails(circuit, 2)
            succeeds(circuit)
        assert circuit.status().opened == circuit.status().failures == 0

    def test_failures_outside_the_window_are_forgotten(self, circuit: Circuit, time: Time) -> None:
        for _ in range(6):
            fails(circuit)
            time.advance(5.1)
        assert circuit.status().state is CLOSED
        assert circuit.status().failures == 2

    def test_an_answer_that_takes_too_long_is_a_failure(self, circuit: Circuit, time: Time) -> None:
        for _ in range(3):
            with circuit.attempt(LIMITS) as attempt:
                time.advance(1.0)
                circuit.succeeded(attempt)
        assert circuit.status().state is OPEN
        assert "1.0 s" in str(refused(circuit))

    def test_an_attempt_of_which_nothing_is_said_changes_nothing(self, circuit: Circuit) -> None:
        fails(circuit, 2)
        for _ in range(3):
            with pytest.raises(KeyError), circuit.attempt(LIMITS):
                raise KeyError
        assert circuit.status().failures == 2

    def test_the_first_thing_said_of_an_attempt_counts(self, circuit: Circuit) -> None:
        for _ in range(3):
            with circuit.attempt(LIMITS) as attempt:
                circuit.failed(attempt, "HTTP 503")
                circuit.succeeded(attempt)
                circuit.failed(attempt, "HTTP 503")
        assert circuit.status().failures == 3

    def test_says_for_how_long_it_refuses_and_why(self, circuit: Circuit, time: Time) -> None:
        fails(circuit, 3)
        time.advance(0.5)
        error = refused(circuit)
        assert (error.code, error.status, error.retry_after) == ("circuit_open", 503, 2)
        assert str(error) == "http://callee is not called for 1.5 s: ReadTimeout"

    @pytest.mark.parametrize(("luck", "seconds"), [(0.0, 2.0), (0.5, 2.5), (1.0, 3.0)])
    def test_its_open_time_varies_by_the_jitter(
        self, circuit: Circuit, time: Time, luck: float, seconds: float
    ) -> None:
        time.luck = luck
        fails(circuit, 3)
        time.advance(seconds - 0.01)
        refused(circuit)
        time.advance(0.01)
        succeeds(circuit)

    @pytest.mark.parametrize(("asked", "seconds"), [(5.0, 5.0), (0.1, 2.0), (21.0, 20.0), (float("inf"), 20.0)])
    def test_an_origin_that_asks_for_a_pause_has_it_at_once_within_bounds(
        self, circuit: Circuit, time: Time, asked: float, seconds: float
    ) -> None:
        fails(circuit, retry_after=asked)
        time.advance(seconds - 0.01)
        refused(circuit)
        time.advance(0.01)
        succeeds(circuit)

    def test_lets_one_probe_through_at_a_time(self, circuit: Circuit, time: Time) -> None:
        fails(circuit, 3)
        time.advance(2.0)
        assert circuit.status().state is HALF_OPEN
        with circuit.attempt(LIMITS):
            assert circuit.status().state is HALF_OPEN
            assert not circuit.lets_through(LIMITS)
            refused(circuit)
            with pytest.raises(CircuitOpen), circuit.place(LIMITS):
                pytest.fail("a call was let in")

    def test_of_many_threads_one_becomes_the_probe(self, circuit: Circuit, time: Time) -> None:
        fails(circuit, 3)
        time.advance(2.0)
        together = threading.Barrier(16)

        def call() -> bool:
            together.wait()
            try:
                with circuit.attempt(LIMITS):
                    together.wait()
                    return True
            except CircuitOpen:
                together.wait()
                return False

        with ThreadPoolExecutor(16) as pool:
            calls = [pool.submit(call) for _ in range(16)]
        assert [call.result() for call in calls].count(True) == 1

    def test_a_probe_that_succeeds_closes_it(self, circuit: Circuit, time: Time) -> None:
        fails(circuit, 3)
        time.advance(2.0)
        succeeds(circuit)
        assert (circuit.status().state, circuit.status().failures) == (CLOSED, 0)
        fails(circuit, 2)
        assert circuit.status().state is CLOSED

    def test_a_probe_that_fails_opens_it_again_at_once(self, circuit: Circuit, time: Time) -> None:
        fails(circuit, 3)
        time.advance(60.0)
        fails(circuit)
        assert (circuit.status().state, circuit.status().opened) == (OPEN, 2)
        refused(circuit)

    def test_a_probe_of_which_nothing_is_said_makes_room_for_the_next(self, circuit: Circuit, time: Time) -> None:
        fails(circuit, 3)
        time.advance(2.0)
        with circuit.attempt(LIMITS):
            pass
        assert circuit.status().state is HALF_OPEN
        succeeds(circuit)
        assert circuit.status().state is CLOSED

    def test_a_probe_that_is_interrupted_while_it_begins_makes_room_for_the_next(
        self, circuit: Circuit, time: Time
    ) -> None:
        """As by a signal's handler, or by a filter of the log that fails."""

        def interrupt(record: logging.LogRecord) -> bool:
            raise KeyboardInterrupt

        fails(circuit, 3)
        time.advance(2.0)
        logger = logging.getLogger("peerseal.circuit")
        level = logger.level
        logger.setLevel(logging.INFO)
        logger.addFilter(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt), circuit.attempt(LIMITS):
                pytest.fail("it went on")
        finally:
            logger.removeFilter(interrupt)
            logger.setLevel(level)
        time.advance(60.0)
        succeeds(circuit)
        assert circuit.status().state is CLOSED

    @pytest.mark.parametrize("end", ["succeeded", "failed"])
    def test_what_began_before_it_opened_says_nothing_about_now(self, circuit: Circuit, time: Time, end: str) -> None:
        with circuit.attempt(LIMITS) as early:
            fails(circuit, 3)
            time.advance(0.5)
            if end == "succeeded":
                circuit.succeeded(early)
            else:
                circuit.failed(early, "ReadTimeout")
        assert (circuit.status().state, circuit.status().opened) == (OPEN, 1)

    def test_limits_without_failures_neither_open_nor_heed_it(self, circuit: Circuit) -> None:
        careless = CallLimits(failures=0)
        fails(circuit, 20, retry_after=5.0, limits=careless)
        assert circuit.status().state is CLOSED
        fails(circuit, 3)
        refused(circuit)
        with circuit.place(careless), circuit.attempt(careless):
            pass

    def test_an_open_circuit_ends_neither_the_wait_nor_the_attempts_of_calls_that_do_not_heed_it(
        self, circuit: Circuit
    ) -> None:
        careless = CallLimits(failures=0, max_running=1)
        with circuit.place(careless):
            waits = circuit.ask(careless)
            fails(circuit, 3)
            assert circuit.lets_through(careless)
            assert circuit.status().waiting == 1
        assert waits.result(0) is None
        circuit.leave(waits)
        assert (circuit.status().waiting, circuit.status().running) == (0, 0)

    def test_each_change_is_one_line_in_the_log(
        self, circuit: Circuit, time: Time, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "peerseal.circuit")
        fails(circuit, 3)
        for _ in range(10):
            refused(circuit)
        time.advance(2.0)
        fails(circuit)
        time.advance(2.0)
        succeeds(circuit)
        succeeds(circuit)
        assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
            ("WARNING", "circuit to http://callee is open for 2.0 s: ReadTimeout"),
            ("INFO", "circuit to http://callee is half open: one call tries it"),
            ("INFO", "circuit to http://callee is open for 2.0 s: ReadTimeout"),
            ("INFO", "circuit to http://callee is half open: one call tries it"),
            ("WARNING", "circuit to http://callee is closed: it answers"),
        ]


FEW = CallLimits(failures=3, max_running=2, max_waiting=1, longest_wait=10.0)


@pytest.fixture
def full(circuit: Circuit) -> Iterator[ExitStack]:
    """Two calls run, all that may. Closing it ends them."""
    with ExitStack() as running:
        running.enter_context(circuit.place(FEW))
        running.enter_context(circuit.place(FEW))
        yield running


class TestTheBulkhead:
    def test_a_call_gets_the_place_of_one_that_ends(self, circuit: Circuit, full: ExitStack) -> None:
        def call() -> int:
            with circuit.place(FEW):
                return circuit.status().running

        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(call)
            until(lambda: circuit.status().waiting == 1)
            full.close()
            assert waits.result(10) == 1
        assert (circuit.status().waiting, circuit.status().running) == (0, 0)

    def test_calls_get_places_in_the_order_in_which_they_came(self, circuit: Circuit) -> None:
        limits = CallLimits(max_running=1, max_waiting=3)
        first = circuit.ask(limits)
        others = [circuit.ask(limits) for _ in range(3)]
        for before, after in zip([first, *others], [*others, None], strict=True):
            assert before.done()
            assert after is None or not after.done()
            circuit.leave(before)

    def test_one_more_than_may_wait_is_refused_at_once(self, circuit: Circuit, full: ExitStack) -> None:
        waits = circuit.ask(FEW)
        with pytest.raises(TooManyCalls) as raised, circuit.place(FEW):
            pytest.fail("a place too many")
        circuit.leave(waits)
        assert (raised.value.code, raised.value.status, raised.value.retry_after) == ("too_many_calls", 503, 1)
        assert "2 run, 1 wait" in str(raised.value)
        assert circuit.status().refused == 1

    def test_a_call_that_waited_in_vain_leaves_nothing(self, circuit: Circuit, full: ExitStack) -> None:
        with pytest.raises(TooManyCalls), circuit.place(CallLimits(max_running=2, longest_wait=0.01)):
            pytest.fail("a place too many")
        assert (circuit.status().waiting, circuit.status().running) == (0, 2)

    def test_no_call_waits_for_longer_than_its_deadline(self, circuit: Circuit, full: ExitStack) -> None:
        with no_longer_than(0.01), pytest.raises(TooManyCalls), circuit.place(FEW):
            pytest.fail("a place too many")

    def test_a_circuit_that_opens_refuses_those_that_wait(self, circuit: Circuit, full: ExitStack) -> None:
        waits = circuit.ask(FEW)
        fails(circuit, 3)
        assert isinstance(waits.exception(0), CircuitOpen)
        assert circuit.status().waiting == 0
        full.close()
        assert circuit.status().running == 0

    def test_one_that_no_longer_waits_takes_no_place(self, circuit: Circuit) -> None:
        """As when an event loop gives up on the future."""
        limits = CallLimits(max_running=1, max_waiting=2)
        runs, gone, waits = (circuit.ask(limits) for _ in range(3))
        gone.cancel()
        circuit.leave(runs)
        assert waits.done()
        assert circuit.status().running == 1

    def test_each_session_has_the_limits_of_its_own_over_the_same_places(
        self, circuit: Circuit, full: ExitStack
    ) -> None:
        waits = circuit.ask(FEW)
        with circuit.place(CallLimits(max_running=3)):
            assert circuit.status().running == 3
        assert not waits.done()
        full.close()
        assert waits.done()

    def test_a_place_is_free_again_whatever_happened_to_the_call(self, circuit: Circuit) -> None:
        with pytest.raises(KeyboardInterrupt), circuit.place(FEW):
            raise KeyboardInterrupt
        assert circuit.status().running == 0

    def test_never_more_calls_run_than_may(self, circuit: Circuit) -> None:
        limits, most, together = CallLimits(max_running=3, max_waiting=100, longest_wait=20.0), [], threading.Lock()

        def call(_: int) -> None:
            with circuit.place(limits), together:
                most.append(circuit.status().running)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(call, range(400)))
        assert len(most) == 400
        assert max(most) <= 3
        assert (circuit.status().waiting, circuit.status().running) == (0, 0)


class TestTheCircuitsOfAnIdentity:
    def test_are_one_for_each_origin(self, circuits: Circuits) -> None:
        fails(circuits.of("http://a"), 3)
        succeeds(circuits.of("http://b"))
        assert circuits.status() == (
            CircuitStatus("http://a", OPEN, failures=3, opened=1, refused=0, waiting=0, running=0),
            CircuitStatus("http://b", CLOSED, failures=0, opened=0, refused=0, waiting=0, running=0),
        )

    def test_are_so_many_at_most_and_those_called_last_stay(self, circuits: Circuits) -> None:
        fails(circuits.of(ORIGIN), 3)
        for number in range(MAX_ORIGINS + 5):
            circuits.of(f"http://{number}")
            circuits.of(ORIGIN)
        assert len(circuits.status()) == MAX_ORIGINS
        refused(circuits.of(ORIGIN))

    @pytest.mark.usefixtures("quiet_collector")
    def test_are_closed_and_empty_in_a_forked_child_even_if_a_thread_was_within(self, time: Time) -> None:
        within, over = threading.Event(), threading.Event()

        def clock() -> float:  # asked within the lock
            if threading.current_thread() is not threading.main_thread():
                within.set()
                over.wait(20)
            return time()

        circuits = Circuits(clock=clock)
        circuit = circuits.of(ORIGIN)
        circuit.ask(LIMITS)
        fails(circuit, 3)

        def child() -> Any:
            before = circuits.status()[0]
            succeeds(circuits.of(ORIGIN))
            return before.state, before.running

        with ThreadPoolExecutor(1) as pool:
            asks = pool.submit(circuit.status)
            assert within.wait(20)
            inherited = Child(child)
            over.set()
            assert inherited.result() == (CLOSED, 0)
            assert (asks.result().state, asks.result().running) == (OPEN, 1)


class TestLimits:
    @pytest.mark.parametrize(
        "change",
        [
            {"failures": -1},
            {"failures": 2.5},
            {"max_running": 0},
            {"max_running": True},
            {"max_waiting": "many"},
            {"deadline": -1.0},
            {"slow": None},
            {"jitter": float("nan")},
        ],
    )
    def test_that_mean_nothing_are_refused_by_name(self, change: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match=f"CallLimits.{next(iter(change))}="):
            CallLimits(**change)

    def test_suit_an_edge(self) -> None:
        limits = CallLimits()
        assert limits.connect_timeout + limits.read_timeout <= limits.deadline < 10
        assert limits.open_time * (1 + limits.jitter) < 2
