"""A person whom the operators' issuer names signs in at two nodes at one moment; on both databases."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from registry.services.access.operators import Person, Role
from tests.registry.driver import Clock, Driver

SIGN_INS = 6


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(registry_database, tmp_path / "home", clock)
    yield driver
    driver.close()


def test_a_person_is_one_operator_also_with_several_sign_ins_at_once(registry: Driver) -> None:
    nodes = [registry.node() for _ in range(2)]
    for number in range(5):
        person, together = Person("https://issuer.example", f"person-{number}", "ada"), Barrier(SIGN_INS)

        def begin(turn: int, person: Person = person, together: Barrier = together) -> str:
            sessions = nodes[turn % 2].registry.console_sessions
            together.wait(20)
            return sessions.begin_as(person, Role.VIEWER)

        with ThreadPoolExecutor(SIGN_INS) as pool:
            secrets = list(pool.map(begin, range(SIGN_INS)))
        found = [registry.registry.console_sessions.find(secret) for secret in secrets]
        assert len({session.operator.id for session in found if session is not None}) == 1
    for node in nodes:
        node.close()
