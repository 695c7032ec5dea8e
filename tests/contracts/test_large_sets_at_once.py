"""Several large key sets that a node has not read yet: their readers hold up no others, and take no connections."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from registry.limits import Limits
from registry.storage.engine import connection_counts
from registry.storage.queries import keys
from tests.registry.driver import Clock, Driver
from tests.support.keys import in_part, key
from tests.support.waiting import PATIENCE, until

LIMITS = Limits(keys_in_set=3)


class HeldReads:
    """Reads of parts: those of the services in ``held`` wait until they are let go. ``begun`` names each read."""

    def __init__(self, read: Callable[..., Any], *held: str) -> None:
        self._read = read
        self._held = held
        self._let_go = threading.Event()
        self.begun: list[tuple[str, tuple[str, ...]]] = []

    def __call__(self, connection: object, service: str, initials: Any, *times: int) -> Any:
        self.begun.append((service, tuple(initials)))
        if service in self._held:
            assert self._let_go.wait(2 * PATIENCE)
        return self._read(connection, service, initials, *times)

    def let_go(self) -> None:
        self._let_go.set()


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(registry_database, tmp_path / "home", clock, limits=LIMITS)
    for name in ("billing", "orders", "shipping"):
        token = driver.join_token(name, uses=4)
        assert [driver.join(in_part(part), name, token).status_code for part in range(4)] == [201] * 4
    driver.joined(key(), "small")
    yield driver
    driver.close()


def holding(monkeypatch: pytest.MonkeyPatch, *services: str) -> HeldReads:
    held = HeldReads(keys.listed_of_parts, *services)
    monkeypatch.setattr(keys, "listed_of_parts", held)
    return held


def status(registry: Driver, path: str) -> int:
    return registry.app.test_client().get(f"/v1/services/{path}").status_code


def test_the_first_reader_of_a_large_set_holds_up_no_other_service(
    registry: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(registry, "shipping/jwks.jwt") == 200
    reads = holding(monkeypatch, "billing")
    first = [f"billing/jwks{name}.jwt" for name in ("", "/0", "/1")]
    then = ["orders/jwks.jwt", "orders/jwks/0.jwt"]
    with ThreadPoolExecutor(len(first) + len(then)) as pool:
        try:
            answers = [pool.submit(status, registry, path) for path in first]
            until(lambda: len(reads.begun) == 1)
            answers += [pool.submit(status, registry, path) for path in then]
            registry.joined(in_part(5), "shipping")
            others = ["shipping/jwks.jwt", "shipping/jwks/5.jwt", "small/jwks.jwt"]
            assert [in_a_thread(status, registry, path) for path in others] == [200] * 3
            until(
                lambda: connection_counts(registry.registry.store.engine).used <= 1,
                what="that those who wait hold none",
            )
            assert {service for service, _ in reads.begun} == {"billing", "shipping"}, "one reads all keys at a time"
        finally:
            reads.let_go()
        assert [answer.result(PATIENCE) for answer in answers] == [200] * 5


def in_a_thread(action: Callable[..., int], *arguments: object) -> int:
    """The action in another thread, which may hang."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(action(*arguments)), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert found, f"{arguments[-1]} is held up"
    return found[0]


def test_those_who_want_the_same_part_wait_for_one_reader(registry: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status(registry, "billing/jwks.jwt") == 200
    reads = holding(monkeypatch, "billing")
    with ThreadPoolExecutor(4) as pool:
        try:
            answers = [pool.submit(status, registry, "billing/jwks/0.jwt") for _ in range(4)]
            until(lambda: len(reads.begun) == 1)
        finally:
            reads.let_go()
        assert [answer.result(PATIENCE) for answer in answers] == [200] * 4
    assert len(reads.begun) == 1


def test_a_part_that_did_not_change_is_neither_read_nor_signed_again(
    registry: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = registry.client.get("/v1/services/billing/jwks/0.jwt")
    registry.joined(in_part(5), "billing")
    assert status(registry, "billing/jwks.jwt") == 200
    reads = holding(monkeypatch)
    assert registry.client.get("/v1/services/billing/jwks/0.jwt").data == before.data
    assert reads.begun == []


def test_the_bound_of_documents_in_memory_is_that_of_parts_too(
    registry: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it drops is in no other cache."""
    node = registry.node(limits=Limits(keys_in_set=3, documents_cached=8 * 1024))
    assert status(node, "billing/jwks/0.jwt") == 200
    for service in ("orders", "shipping", "small"):
        assert [status(node, f"{service}/jwks.{kind}") for kind in ("json", "jwt")] == [200] * 2
    assert node.registry.publisher.held <= 8 * 1024
    reads = holding(monkeypatch)
    assert status(node, "billing/jwks/0.jwt") == 200
    assert len(reads.begun) == 1
    node.close()
