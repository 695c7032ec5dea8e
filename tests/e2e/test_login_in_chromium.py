"""A person logs in with a real browser; the console client orders in that person's name."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import url_contains
from selenium.webdriver.support.wait import WebDriverWait

from demo.login import start
from demo.processes import Process
from demo.stack import Stack
from tests.support.chromium import PATIENCE, chromium

pytestmark = [pytest.mark.e2e, pytest.mark.browser]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    with chromium(tmp_path) as browser:
        yield browser


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("login")) as stack:
        yield stack


@pytest.fixture(scope="module")
def running(stack: Stack) -> tuple[str, str, str]:
    """URLs of login page and edge, and the password."""
    return start(stack)


def log_in(browser: Chrome, url: str, password: str) -> None:
    """Fill the login form and send it."""
    browser.get(url)
    browser.find_element(By.ID, "user").send_keys("ada")
    browser.find_element(By.ID, "password").send_keys(password)
    browser.find_element(By.TAG_NAME, "button").click()


def audited(stack: Stack, transaction: str) -> list[dict[str, Any]]:
    """The audit lines of that transaction, of all services."""
    lines = "".join(log.read_text() for log in (stack.root / "logs").glob("*.log")).splitlines()
    found = [json.loads(line) for line in lines if line.startswith('{"kind"')]
    return [line for line in found if line.get("transaction") == transaction]


@pytest.mark.parametrize("sort", ["opaque", "JWT"])
def test_a_login_in_the_browser_becomes_an_invoice_and_every_hop_names_the_user(
    browser: Chrome, stack: Stack, running: tuple[str, str, str], tmp_path: Path, sort: str
) -> None:
    login, edge, password = running
    command = [sys.executable, "-m", "demo.console_client", "--login", login, "--edge", edge, "--no-browser"]
    with Process("console", [*command, *(["--jwt"] if sort == "JWT" else [])], log=tmp_path / "console.log") as console:
        url = console.wait_until_prints("Log in here: ").partition(": ")[2]
        log_in(browser, url, "guess")
        WebDriverWait(browser, PATIENCE).until(
            lambda page: page.find_element(By.CSS_SELECTOR, "[role=alert]").text == "Name or password is wrong."
        )
        log_in(browser, url, password)
        WebDriverWait(browser, PATIENCE).until(url_contains("/callback?"))
        assert browser.find_element(By.ID, "done").text.startswith("You are logged in")
        console.wait_until_prints("invoice ")
        printed = console.output()
    token = re.search(r"access token .*:\n +(\S+)", printed)
    placed = re.search(r"ordered (\S+) for (\S+)", printed)
    assert token is not None
    assert placed is not None
    assert placed[2] == "ada"
    assert ("." in token[1]) == (sort == "JWT")
    hops = audited(stack, placed[1])
    assert {line["user"] for line in hops} == {"ada"}
    assert len(hops) >= 4, "minted at the edge, event taken, minted by the consumer, calls of it"
    logs = "".join(log.read_text(errors="replace") for log in (stack.root / "logs").glob("*.log"))
    assert [secret for secret in (token[1], password) if secret in logs] == []
