"""Calls that wait for a change, in threads of this process, and the moment in which they do."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from werkzeug.test import TestResponse

from tests.registry.driver import Driver
from tests.support.waiting import until


def ask(
    registry: Driver, since: int, wait: int = 20, address: str = "127.0.0.1", services: str | None = None
) -> TestResponse:
    """One call, over a client of its own, about some services or all."""
    client = registry.app.test_client()
    server = {"REMOTE_ADDR": address, "wsgi.multithread": True}
    filtered = "" if services is None else f"&services={services}"
    return client.get(f"/v1/changes?since={since}&wait={wait}{filtered}", environ_overrides=server)


@contextmanager
def waiters(
    registry: Driver, count: int, *, wait: int = 20, address: str = "127.0.0.1", services: str | None = None
) -> Iterator[list[Future[TestResponse]]]:
    """So many calls that wait for the first change after the newest entry, once they all do."""
    head, waiting = registry.changes(0).seq, registry.registry.changes.waiting
    before = len(waiting)
    with ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(ask, registry, head, wait, address, services) for _ in range(count)]
        until(lambda: len(waiting) == before + count)
        yield calls
