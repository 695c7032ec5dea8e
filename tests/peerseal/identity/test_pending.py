"""A service whose key waits for an operator of the registry, which is a real one in this process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerseal import Identity
from peerseal.errors import EnrolmentPending, TrustUnavailable
from peerseal.testing import Answer
from peerseal.transport.fetch import Fetcher
from tests.registry.driver import Clock, Driver

DAY = 24 * 3600


class InProcess(Fetcher):
    """Calls a registry in this process. ``before`` is called before the registration of that number, from 0."""

    def __init__(self, registry: Driver) -> None:
        self._registry = registry
        self.registrations: list[int] = []
        self.before: Callable[[int], None] = lambda number: None

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Any = None) -> Answer:
        if method == "POST":
            self.before(len(self.registrations))
        answer = self._registry.client.open(path, method=method, data=body, headers=headers)
        if method == "POST":
            self.registrations.append(answer.status_code)
        return Answer(answer.status_code, answer.data, {name.lower(): value for name, value in answer.headers})

    def target(self, path: str) -> str:
        return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(sqlite_url: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(sqlite_url, tmp_path / "home", clock, applicants=True)
    yield driver
    driver.close()


@pytest.fixture
def fetcher(registry: Driver) -> InProcess:
    return InProcess(registry)


@pytest.fixture
def make(registry: Driver, fetcher: InProcess, tmp_path: Path, clock: Clock) -> Iterator[Callable[[], Identity]]:
    made = []

    def make() -> Identity:
        options: dict[str, Any] = {"alg": "ES256", "key_dir": tmp_path / "keys", "retire_at_exit": False}
        urls = {"registry": "http://registry.invalid", "pin": registry.pin}
        made.append(Identity("billing", **urls, clock=clock, fetcher=fetcher, **options))
        return made[-1]

    yield make
    for identity in made:
        identity.stop()


def waiting(registry: Driver) -> list[str]:
    return [row["kid"] for row in registry.registry.applicants.page()["applicants"]]


def approve(registry: Driver) -> str:
    [kid] = waiting(registry)
    path = f"/v1/services/billing/keys/{kid.rpartition('/')[2]}/approve"
    assert registry.client.post(path, headers=registry.operator).status_code == 201
    return kid


def test_a_start_goes_on_asking_with_the_same_key_until_it_is_approved(
    registry: Driver, fetcher: InProcess, make: Callable[[], Identity]
) -> None:
    approved: list[str] = []
    fetcher.before = lambda number: approved.append(approve(registry)) if number == 2 else None
    identity = make().start(timeout=30)
    assert fetcher.registrations == [202, 202, 200]
    assert identity.credentials.key_id == approved[0]
    token = identity.sign_request("shipping", method="GET", target="/")
    assert token.count(".") == 2


def test_a_start_that_waited_in_vain_says_so_and_the_next_one_goes_on_with_the_same_key(
    registry: Driver, fetcher: InProcess, make: Callable[[], Identity]
) -> None:
    for _ in range(2):
        identity = make()
        with pytest.raises(EnrolmentPending) as pending:
            identity.start(timeout=0)
        assert pending.value.code == "key_pending"
        with pytest.raises(TrustUnavailable):
            identity.credentials  # noqa: B018
    [kid] = waiting(registry)
    assert kid in str(pending.value)
    assert approve(registry) == kid
    assert make().start(timeout=0).credentials.key_id == kid
    assert fetcher.registrations == [202, 202], "the registry's word about the key was enough"


def test_one_that_was_turned_away_waits_again(
    registry: Driver, fetcher: InProcess, make: Callable[[], Identity]
) -> None:
    def turn_away_then_approve(number: int) -> None:
        if number == 1:
            [kid] = waiting(registry)
            path = f"/v1/services/billing/keys/{kid.rpartition('/')[2]}?reason=rejected"
            assert registry.client.delete(path, headers=registry.operator).status_code == 204
            assert waiting(registry) == []
        if number == 2:
            approve(registry)

    fetcher.before = turn_away_then_approve
    make().start(timeout=30)
    assert fetcher.registrations == [202, 202, 200]


def test_a_host_that_slept_past_the_end_of_its_keys_waits_in_the_background(
    registry: Driver, fetcher: InProcess, make: Callable[[], Identity], clock: Clock
) -> None:
    fetcher.before = lambda number: approve(registry) and None if number == 1 else None
    identity = make().start(timeout=30)
    first = identity.credentials.key_id
    fetcher.before = lambda number: None
    clock.forward(8 * DAY)
    for _ in range(2):
        with pytest.raises(EnrolmentPending):
            identity.look_after_keys()
    second = approve(registry)
    identity.look_after_keys()
    assert first != second == identity.credentials.key_id
