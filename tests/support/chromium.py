"""A real Chromium without a window, driven by its own driver (W3C WebDriver)."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

PATIENCE: Final = 30
"""Seconds to wait for what a page should show."""


def need_chromium() -> None:
    """Skip the test where Chromium or its driver is missing; fail where CI is set."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "Chromium is not here: packages chromium, chromium-driver"
        )


@contextmanager
def chromium(folder: Path) -> Iterator[Chrome]:
    """A fresh browser with its profile under ``folder``. Its log, which `Chrome.get_log` empties, has all messages."""
    need_chromium()
    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium does not start as root with it
    browser = Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()
