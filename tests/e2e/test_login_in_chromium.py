"""A person logs in with a real browser; the console client gets the tokens."""

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import url_contains
from selenium.webdriver.support.wait import WebDriverWait

from demo.processes import Process, Server, free_port, gunicorn
from tests.support.chromium import PATIENCE, chromium

pytestmark = [pytest.mark.e2e, pytest.mark.browser]

PASSWORD = secrets.token_urlsafe(12)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    with chromium(tmp_path) as browser:
        yield browser


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    settings = {"IDP_URL": f"http://127.0.0.1:{port}", "IDP_PASSWORD": PASSWORD}
    target = "demo.identity_provider.app:create_app()"
    with gunicorn(
        "login", target, port=port, log=tmp_path / "login.log", settings=settings, workers=1, threads=8
    ) as server:
        yield server.wait_until_answers(f"{server.url}/.well-known/openid-configuration")


def log_in(browser: Chrome, url: str, password: str) -> None:
    """Fill the login form and send it."""
    browser.get(url)
    browser.find_element(By.ID, "user").send_keys("ada")
    browser.find_element(By.ID, "password").send_keys(password)
    browser.find_element(By.TAG_NAME, "button").click()


def test_a_person_logs_in_and_is_told_to_go_back(browser: Chrome, provider: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo.console_client", "--login", provider.url, "--no-browser"]
    with Process("console", command, log=tmp_path / "console.log") as console:
        url = console.wait_until_prints("Log in here: ").partition(": ")[2]
        log_in(browser, url, "guess")
        WebDriverWait(browser, PATIENCE).until(
            lambda page: page.find_element(By.CSS_SELECTOR, "[role=alert]").text == "Name or password is wrong."
        )
        log_in(browser, url, PASSWORD)
        WebDriverWait(browser, PATIENCE).until(url_contains("/callback?"))
        assert browser.find_element(By.ID, "done").text.startswith("You are logged in")
        assert "sub=ada" in console.wait_until_prints("ID token: ")
