"""The transactional outbox on SQLite and PostgreSQL: an event goes out if its transaction was committed, at least once,
in the order of its key, by one relay at a time."""

import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, func, select, text

from demo.processes import Process
from peerseal.errors import ConfigurationError
from peerseal.messaging import Outlet
from peerseal.outbox import Outbox, OutboxLimits, create_tables, outbox_table
from peerseal.testing import Clock
from tests.peerseal.served import Child
from tests.support.brokers import BuiltInBroker, Ends, eventually
from tests.support.letterbox import Letter, Letterbox
from tests.support.postgres import Postgres

metadata = MetaData()
OUTBOX = outbox_table(metadata)
ORDERS = Table("orders", metadata, Column("number", Integer, primary_key=True))

QUICK = OutboxLimits(poll=0.01, confirm_within=5.0, attempts=3, pauses=(0.01,))
TOPIC = "OrderCreated"


@pytest.fixture
def engine(registry_database: str) -> Iterator[Engine]:
    engine = create_engine(registry_database)
    create_tables(engine, metadata)
    yield engine
    engine.dispose()


@pytest.fixture
def box(tmp_path: Path) -> Letterbox:
    return Letterbox(tmp_path / "letters")


@contextmanager
def relayed(engine: Engine, box: Letterbox, **options: Any) -> Iterator[Outbox]:
    """An outbox with a relay, for a while."""
    outbox = Outbox(engine, OUTBOX, **{"limits": QUICK, **options})
    outbox.start(box.connect)
    try:
        yield outbox
    finally:
        assert outbox.stop()


def add(engine: Engine, *payloads: str, key: bytes | None = None, topic: str = TOPIC) -> list[int]:
    """Events that no relay is told of; → their numbers."""
    outbox = Outbox(engine, OUTBOX)
    with engine.begin() as connection:
        return [outbox.add(connection, topic, one.encode(), {"authorization": "Bearer x"}, key=key) for one in payloads]


def failures_in(engine: Engine) -> int:
    """How often events that wait were refused."""
    with engine.connect() as connection:
        return int(connection.scalar(select(func.sum(OUTBOX.c.failures))) or 0)


def is_empty(engine: Engine) -> bool:
    """Whether nothing is left in the table."""
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(OUTBOX)) == 0


# ---- with the application's transaction


def test_an_event_goes_out_as_it_was_added_once_its_transaction_is_committed(engine: Engine, box: Letterbox) -> None:
    with relayed(engine, box) as outbox:
        with engine.begin() as connection:
            connection.execute(ORDERS.insert().values(number=1))
            outbox.add(connection, TOPIC, b"\x00\xff", {"authorization": "Bearer x", "b": "2"}, key=b"\x00key")
        outbox.wake()
        eventually(lambda: is_empty(engine), "it is sent and forgotten")
    (letter,) = box.letters()
    assert (letter.topic, letter.key, letter.payload) == (TOPIC, b"\x00key", b"\x00\xff")
    assert letter.headers == (("authorization", b"Bearer x"), ("b", b"2"))


def test_an_event_whose_transaction_was_rolled_back_never_goes_out(engine: Engine, box: Letterbox) -> None:
    with relayed(engine, box) as outbox:
        with engine.connect() as connection:
            connection.execute(ORDERS.insert().values(number=1))
            outbox.add(connection, TOPIC, b"never", {})
            connection.rollback()
        add(engine, "behind it")
        eventually(lambda: box.payloads() != [], "what came later is sent")
    assert box.payloads() == [b"behind it"]


@pytest.mark.parametrize(
    "wrong",
    [{"topic": ""}, {"topic": "t" * 250}, {"payload": "text"}, {"headers": {"a": "ü"}}, {"headers": {"a": b"x"}}],
)
def test_what_no_broker_takes_is_an_error_at_once(engine: Engine, wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {"topic": TOPIC, "payload": b"", "headers": {}}
    with engine.begin() as connection, pytest.raises(ConfigurationError):
        Outbox(engine, OUTBOX).add(connection, **{**good, **wrong})


# ---- order, and the relay's life


def test_events_of_one_key_keep_their_order(engine: Engine, box: Letterbox) -> None:
    for number in range(40):
        add(engine, f"{number}", key=b"%d" % (number % 3))
    with relayed(engine, box, limits=OutboxLimits(batch=7, poll=0.01)):
        eventually(lambda: is_empty(engine), "all are sent")
    for key in range(3):
        assert [int(one.payload) for one in box.letters() if one.key == b"%d" % key] == list(range(key, 40, 3))


def test_a_relay_that_is_told_looks_at_once(engine: Engine, box: Letterbox) -> None:
    with relayed(engine, box, limits=OutboxLimits(poll=3600)) as outbox:
        for number in range(3):
            add(engine, f"{number}")
            outbox.wake()
            eventually(lambda: len(box.letters()) == number + 1, "it is sent long before the next look")  # noqa: B023


def test_a_relay_finds_what_another_process_added(engine: Engine, box: Letterbox) -> None:
    with relayed(engine, box):
        add(engine, "from elsewhere")
        eventually(lambda: box.payloads() == [b"from elsewhere"], "nobody woke it")


def test_what_waited_before_the_start_goes_out(engine: Engine, box: Letterbox) -> None:
    add(engine, "1", "2")
    with relayed(engine, box):
        eventually(lambda: box.payloads() == [b"1", b"2"], "both are sent")


def test_a_stop_is_over_in_time_while_the_broker_hangs(engine: Engine, box: Letterbox) -> None:
    hanging, on = threading.Event(), threading.Event()
    box.before_confirming = lambda: (hanging.set(), on.wait(30))
    outbox = Outbox(engine, OUTBOX, limits=QUICK)
    outbox.start(box.connect)
    add(engine, "1")
    assert hanging.wait(30)
    assert outbox.stop(timeout=0.05) is False
    on.set()
    assert outbox.stop(timeout=30) is True
    add(engine, "2")
    assert box.payloads() == [b"1"]


@pytest.mark.usefixtures("quiet_collector")
def test_a_forked_worker_has_a_relay_of_its_own(engine: Engine, box: Letterbox) -> None:
    add(engine, "1")
    with relayed(engine, box):
        eventually(lambda: is_empty(engine), "the parent's relay works")

        def work() -> int:
            eventually(lambda: b"2" in box.payloads(), "the child's relay works")
            return next(one.pid for one in box.letters() if one.payload == b"2")

        child = Child(work)
    add(engine, "2")  # the parent's relay has ended
    assert child.result() == child.pid


def test_a_relay_outlives_its_connections(postgres: Postgres, postgres_url: str, box: Letterbox) -> None:
    engine = create_engine(postgres_url)
    create_tables(engine, metadata)
    with relayed(engine, box):
        for number in range(3):
            postgres.cut_connections(postgres_url)
            engine.dispose()
            add(engine, f"{number}")
            eventually(lambda: len(box.letters()) > number, "it is sent over a new connection")  # noqa: B023
    engine.dispose()


# ---- the broker is away


def test_events_wait_for_a_broker_that_is_away_and_go_out_in_order(engine: Engine, box: Letterbox) -> None:
    clock = Clock(1000.0)
    box.away = lambda _: True
    with relayed(engine, box, clock=clock) as outbox:
        with engine.begin() as connection:
            for number in range(5):
                outbox.add(connection, TOPIC, b"%d" % number, {}, key=b"one")
        eventually(lambda: box.attempts >= 12, "it is tried again and again")
        clock.advance(60)
        status = outbox.status()
        assert (status.waiting, status.oldest_age, status.put_aside) == (5, 60.0, 0)
        assert status.failure == "broker_unavailable"
        box.away = lambda _: False
        eventually(lambda: is_empty(engine), "all are sent")
        eventually(lambda: outbox.status().failure is None, "the failure is over")
        assert outbox.status().oldest_age == 0.0
    assert box.payloads() == [b"%d" % number for number in range(5)]


def test_pauses_grow_while_the_broker_is_away(engine: Engine, box: Letterbox) -> None:
    box.away = lambda _: True
    add(engine, "1")
    with relayed(engine, box, limits=OutboxLimits(poll=0.01, pauses=(0.01, 0.01, 3600))) as outbox:
        eventually(lambda: box.attempts == 3, "after the third attempt comes the longest pause")
        box.away = lambda _: False
        outbox.wake()
        add(engine, "on another topic", topic="Other")
        eventually(lambda: box.payloads() == [b"on another topic"], "other topics go on")
    assert box.attempts == 4


def test_a_topic_that_is_away_holds_up_no_other(engine: Engine, box: Letterbox) -> None:
    box.away = lambda letter: letter.topic == "Away"
    with relayed(engine, box, limits=OutboxLimits(batch=2, poll=0.01, pauses=(0.01,))):
        add(engine, *"12345", topic="Away", key=b"one")
        add(engine, *"abc", key=b"one")
        eventually(lambda: box.payloads() == [b"a", b"b", b"c"], "the other topic's are sent")
        box.away = lambda _: False
        eventually(lambda: is_empty(engine), "all are sent")
    assert box.payloads("Away") == [b"1", b"2", b"3", b"4", b"5"]


# ---- events that the broker refuses


def test_a_refused_event_is_put_aside_and_later_ones_go_on(engine: Engine, box: Letterbox) -> None:
    box.refuses = lambda letter: letter.payload == b"poison"
    clock = Clock(1000.0)
    (number,) = add(engine, "poison", key=b"one")
    add(engine, "same key", key=b"one")
    add(engine, "another key", key=b"two")
    add(engine, "no key")
    with relayed(engine, box, limits=OutboxLimits(poll=0.01, attempts=2, pauses=(30.0,)), clock=clock) as outbox:
        eventually(lambda: outbox.status().waiting == 2, "others are sent meanwhile")
        assert set(box.payloads()) == {b"another key", b"no key"}
        assert b"same key" not in box.payloads()
        clock.advance(31)
        eventually(lambda: outbox.status().put_aside == 1, "it is put aside after the second attempt")
        eventually(lambda: outbox.status().waiting == 0, "those behind it are sent")
        (aside,) = outbox.put_aside()
    assert (aside.number, aside.topic, aside.key, aside.size) == (number, TOPIC, b"one", len("poison"))
    assert (aside.failures, aside.code, aside.put_aside_at) == (2, "message_not_taken", 1031.0)
    assert Counter(box.payloads())[b"same key"] == 1


def test_an_event_that_was_put_aside_goes_out_when_an_operator_says_so(engine: Engine, box: Letterbox) -> None:
    box.refuses = lambda letter: letter.payload == b"large"
    numbers = add(engine, "large")
    with relayed(engine, box) as outbox:
        eventually(lambda: outbox.status().put_aside == 1, "it is put aside")
        box.refuses = lambda _: False
        assert outbox.retry([*numbers, 10**6]) == 1
        eventually(lambda: is_empty(engine), "it is sent")
        assert outbox.put_aside() == []


def test_an_event_at_which_the_broker_fails_is_found_among_those_that_pass(engine: Engine, box: Letterbox) -> None:
    box.away = lambda letter: letter.payload == b"poison"
    add(engine, "1", "2", key=b"a")
    add(engine, "poison", "behind it", key=b"b")
    add(engine, "3", key=b"c")
    with relayed(engine, box) as outbox:
        for number in range(400):  # traffic goes on: that others pass is what tells a poison from an outage
            add(engine, f"later {number}")
            if outbox.status().put_aside:
                break
        eventually(lambda: outbox.status().put_aside == 1, "it is put aside")
        eventually(lambda: outbox.status().waiting == 0, "all others are sent")
        assert [one.code for one in outbox.put_aside()] == ["broker_unavailable"]
    assert {b"1", b"2", b"3", b"behind it"} <= set(box.payloads())


def test_in_an_outage_no_event_is_to_blame(engine: Engine, box: Letterbox) -> None:
    add(engine, *"123")
    box.away = lambda _: True
    with relayed(engine, box) as outbox:
        eventually(lambda: box.attempts >= 60, "it lasts for many times the attempts that an event has")
        assert outbox.status().put_aside == 0
        box.away = lambda _: False
        eventually(lambda: is_empty(engine), "all are sent")


def test_where_the_way_to_the_broker_cannot_be_opened_no_event_is_to_blame(engine: Engine, box: Letterbox) -> None:
    """By the application's own function, whatever that raises: a file of certificates that is missing for a while."""
    opened = 0

    def connect() -> Outlet:
        nonlocal opened
        opened += 1
        if opened <= 60:
            raise FileNotFoundError("ca.pem")
        return box.connect()

    add(engine, *"123")
    outbox = Outbox(engine, OUTBOX, limits=QUICK)
    outbox.start(connect)
    try:
        eventually(lambda: opened >= 50 or outbox.status().put_aside > 0, "it is tried again and again")
        assert outbox.status().put_aside == 0
        eventually(lambda: is_empty(engine), "all are sent once it can")
    finally:
        outbox.stop()
    assert sorted(set(box.payloads())) == [b"1", b"2", b"3"]


def test_an_event_that_was_refused_while_the_clock_was_ahead_waits_no_longer_than_a_pause(
    engine: Engine, box: Letterbox
) -> None:
    box.refuses = lambda letter: letter.payload == b"refused once" and box.attempts == 1
    clock = Clock(1000.0 + 365 * 24 * 3600)
    add(engine, "refused once", "behind it", key=b"one")
    limits = OutboxLimits(poll=0.01, pauses=(30.0,))
    with relayed(engine, box, limits=limits, clock=clock):
        eventually(lambda: failures_in(engine) == 1, "it is refused")
    clock.advance(-365 * 24 * 3600)
    with relayed(engine, box, limits=limits, clock=clock):
        eventually(lambda: is_empty(engine), "both are sent")
    assert box.payloads() == [b"refused once", b"behind it"]


def test_an_event_that_the_library_cannot_send_blocks_nothing(engine: Engine, box: Letterbox) -> None:
    def refuses(letter: Letter) -> bool:
        if letter.payload == b"odd":
            raise TypeError("an odd message")
        return False

    box.refuses = refuses
    add(engine, "odd", "good")
    with relayed(engine, box) as outbox:
        eventually(lambda: outbox.status().put_aside == 1, "it is put aside")
        assert [one.code for one in outbox.put_aside()] == ["TypeError"]
    assert set(box.payloads()) == {b"good"}


def test_what_is_too_large_for_kafka_is_put_aside(engine: Engine) -> None:
    with BuiltInBroker() as broker, Ends(broker) as ends:
        topic = broker.new_topic()
        add(engine, "before", "x" * 2_000_000, "after", topic=topic)
        outbox = Outbox(engine, OUTBOX, limits=QUICK)
        outbox.start(ends.outlet)
        try:
            eventually(lambda: outbox.status().put_aside == 1, "it is put aside")
            eventually(lambda: outbox.status().waiting == 0, "the others are sent")
            assert [(one.code, one.size) for one in outbox.put_aside()] == [("message_too_large", 2_000_000)]
        finally:
            outbox.stop()
        assert {message.payload for message in ends.read(topic, 2)} == {b"before", b"after"}


# ---- one at a time, and at least once


def test_of_two_relays_one_works_at_a_time(engine: Engine, box: Letterbox, tmp_path: Path) -> None:
    idle, hanging, on = Letterbox(tmp_path / "idle"), threading.Event(), threading.Event()
    box.before_confirming = lambda: (hanging.set(), on.wait(30))
    with relayed(engine, box):
        add(engine, "1")
        assert hanging.wait(30)
        with relayed(engine, idle) as other:
            add(engine, "2")
            other.wake()
            assert other.status().waiting == 2
        assert idle.attempts == 0
        on.set()
        eventually(lambda: box.payloads() == [b"1", b"2"], "the first one sends both")


def test_writers_go_on_while_the_broker_hangs(engine: Engine, box: Letterbox) -> None:
    hanging, on = threading.Event(), threading.Event()
    box.before_confirming = lambda: (hanging.set(), on.wait(30))
    with relayed(engine, box):
        add(engine, "1")
        assert hanging.wait(30)
        for number in range(10):
            add(engine, f"{number}")
        on.set()
        eventually(lambda: is_empty(engine), "all are sent")


def test_what_the_database_cannot_forget_is_not_sent_again(tmp_path: Path, box: Letterbox) -> None:
    url = f"sqlite:///{tmp_path / 'orders.sqlite3'}"
    patient, engine = create_engine(url), create_engine(url, connect_args={"timeout": 0})
    create_tables(engine, metadata)
    confirmed, on = threading.Event(), threading.Event()
    add(engine, "1")
    box.after_confirming = lambda: (confirmed.set(), on.wait(30))
    with relayed(engine, box) as outbox, patient.connect() as writer:
        assert confirmed.wait(30)
        writer.exec_driver_sql("BEGIN IMMEDIATE")
        on.set()
        eventually(lambda: outbox.status().failure == "OperationalError", "the database is locked")
        writer.rollback()
        eventually(lambda: is_empty(patient), "it is forgotten once the database can be written")
    assert box.payloads() == [b"1"]
    for each in (patient, engine):
        each.dispose()


@pytest.mark.slow
@pytest.mark.thorough
def test_of_many_processes_that_are_killed_each_event_is_sent_in_the_order_of_its_key(
    registry_database: str, engine: Engine, box: Letterbox, tmp_path: Path
) -> None:
    events, keys = 150, 5
    command = [sys.executable, "-m", "tests.support.relaying", registry_database, str(tmp_path / "letters")]

    def started(number: int) -> Process:
        process = Process(f"relay {number}", command, log=tmp_path / f"relay-{number}.log")
        process.wait_until_prints("relaying")
        return process

    processes = [started(number) for number in range(3)]
    try:
        for number in range(events):
            add(engine, f"{number}", key=b"%d" % (number % keys))
            if number in (50, 100):
                processes.pop(0).kill()
                processes.append(started(number))
        eventually(lambda: is_empty(engine), "all are sent")
    finally:
        for process in processes:
            process.kill()
    for key in range(keys):
        sent = [int(letter.payload) for letter in box.letters() if letter.key == b"%d" % key]
        assert list(dict.fromkeys(sent)) == list(range(key, events, keys))  # by the first time that each was sent
    assert len(box.letters()) <= events + 2 * 5  # no kill repeats more than a batch


@pytest.mark.slow
def test_an_event_whose_relay_was_killed_between_publish_and_delete_is_sent_again_and_then_no_more(
    registry_database: str, engine: Engine, tmp_path: Path
) -> None:
    with BuiltInBroker() as broker, Ends(broker) as ends:
        topic = broker.new_topic()
        for payload in "123":
            add(engine, payload, topic=topic, key=payload.encode())
        command = [sys.executable, "-m", "tests.support.relaying", registry_database, str(tmp_path), broker.url]
        dying = Process("dying", command, log=tmp_path / "dying.log")
        eventually(lambda: not dying.running, "it kills itself")
        assert dying.exit_code == -signal.SIGKILL
        assert {message.payload for message in ends.read(topic, 3)} == {b"1", b"2", b"3"}
        assert Outbox(engine, OUTBOX).status().waiting == 3
        outbox = Outbox(engine, OUTBOX, limits=QUICK)
        outbox.start(ends.outlet)
        try:
            eventually(lambda: is_empty(engine), "the next relay takes over at once")
            add(engine, "last", topic=topic)
            eventually(lambda: is_empty(engine), "the last one is sent")
        finally:
            outbox.stop()
        sent = Counter(message.payload for message in ends.read(topic, 7))
        assert sent == {b"1": 2, b"2": 2, b"3": 2, b"last": 1}


# ---- its tables


def test_of_many_that_begin_at_once_one_creates_the_tables(registry_database: str) -> None:
    def begin(_: int) -> None:
        engine = create_engine(registry_database, connect_args={"timeout": 30} if "sqlite" in registry_database else {})
        create_tables(engine, metadata)
        engine.dispose()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(begin, range(12))) == [None] * 12


def test_the_tables_of_the_docs_do_as_well(registry_database: str, box: Letterbox) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/messaging.md").read_text()
    (ddl,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    if registry_database.startswith("sqlite"):
        ddl = ddl.replace("BIGSERIAL PRIMARY KEY", "INTEGER PRIMARY KEY AUTOINCREMENT").replace("BYTEA", "BLOB")
    engine = create_engine(registry_database)
    with engine.begin() as connection:
        for statement in filter(str.strip, ddl.split(";")):
            connection.execute(text(statement))
    box.refuses = lambda letter: letter.payload == b"poison"
    add(engine, "poison", "good", key=b"one")
    with relayed(engine, box) as outbox:
        eventually(lambda: outbox.status().put_aside == 1, "the poison is put aside")
        eventually(lambda: box.payloads() == [b"good"], "the good one is sent")
    create_tables(engine, metadata)  # finds all that it would create
    engine.dispose()


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"batch": True},
        {"batch": 10_001},
        {"attempts": 0},
        {"poll": -1},
        {"confirm_within": "5"},
        {"pauses": ()},
        {"pauses": 1},
    ],
)
def test_limits_that_are_none_are_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        OutboxLimits(**wrong)


def test_a_database_in_memory_is_refused_as_it_outlives_nothing() -> None:
    with pytest.raises(ConfigurationError, match="in memory"):
        Outbox(create_engine("sqlite://"), OUTBOX)
