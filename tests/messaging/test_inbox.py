"""Each event once through the application's own database, on SQLite and PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine, select

from peerseal import Event
from peerseal.inbox import first_time, inbox_table

metadata = MetaData()
INBOX = inbox_table(metadata)


def event(event_id: str = "e-1", issuer: str = "test.internal/client") -> Event:
    nothing: Any = MappingProxyType({})
    place = issuer, issuer.split("/")[1], f"{issuer}/kid", "ada", "trigger_invoicing", event_id, "t-1", "OrderCreated"
    return Event(*place, 0, 1, nothing, b"", nothing)


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = create_engine(request.getfixturevalue(request.param))
    metadata.create_all(engine)
    yield engine
    engine.dispose()


def handled(engine: Engine, what: Event) -> bool:
    with engine.begin() as connection:
        return first_time(connection, INBOX, what, now=7.9)


def test_an_event_is_new_once(engine: Engine) -> None:
    assert [handled(engine, event()) for _ in range(3)] == [True, False, False]


def test_another_publishers_event_of_the_same_id_is_another_event(engine: Engine) -> None:
    assert handled(engine, event())
    assert handled(engine, event(issuer="test.internal/billing"))
    assert handled(engine, event("e-2"))


def test_work_that_was_rolled_back_was_not_done(engine: Engine) -> None:
    with engine.connect() as connection:
        assert first_time(connection, INBOX, event(), now=1)
        connection.rollback()
    assert handled(engine, event())


def test_of_ten_at_once_one_is_first(engine: Engine) -> None:
    with ThreadPoolExecutor(10) as pool:
        assert sorted(pool.map(lambda _: handled(engine, event()), range(10))) == [False] * 9 + [True]
    with engine.connect() as connection:
        assert connection.execute(select(INBOX)).all() == [("test.internal/client", "e-1", "OrderCreated", 7)]
