"""A registry with a console, and the browsers of operators."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.services.access.operators import Role
from tests.registry.console.browser import Browser
from tests.registry.driver import Clock, Driver


@pytest.fixture
def registry(sqlite_url: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(sqlite_url, tmp_path / "home", clock, console=True)
    yield driver
    driver.close()


def token_of(registry: Driver, role: Role) -> str:
    """A new operator token."""
    return registry.registry.operators.create(role, 86_400)[1]


def browser_of(registry: Driver, role: Role) -> Browser:
    """The browser of an operator who is signed in, and has opened no page yet."""
    browser = Browser(registry)
    assert browser.sign_in(token_of(registry, role), follow=False).status_code == 303
    return browser


@pytest.fixture
def admin(registry: Driver) -> Browser:
    return browser_of(registry, Role.ADMIN)


@pytest.fixture
def operator(registry: Driver) -> Browser:
    return browser_of(registry, Role.OPERATOR)


@pytest.fixture
def viewer(registry: Driver) -> Browser:
    return browser_of(registry, Role.VIEWER)


@pytest.fixture
def stranger(registry: Driver) -> Browser:
    return Browser(registry)
