"""What the commands share that read a registry from outside, again and again."""

import argparse
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from peerseal.identity.environment import settings_of
from peerseal.runtime.options import check_pin, check_pinned
from peerseal.runtime.settings import named
from peerseal.transport.fetch import HttpFetcher, check_urls


def add_registry_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--registry`` and ``--pin``."""
    parser.add_argument("--registry", metavar="URL", help="[PEERSEAL_REGISTRY_URL]")
    parser.add_argument("--pin", help="thumbprint of the registry's root key [PEERSEAL_REGISTRY_PIN]")


def registry_of(arguments: argparse.Namespace, known_pin: str | None = None) -> tuple[HttpFetcher, str | None]:
    """The registry to read, and the pin of its root key; ``known_pin`` is used where neither an option nor a variable
    names one. Raises ConfigurationError."""
    settings = settings_of(os.environ)
    given = None if arguments.registry is None else named("--registry", check_urls, arguments.registry)
    urls = given or settings.checked("PEERSEAL_REGISTRY_URL", check_urls) or ""
    fetcher = HttpFetcher([url.strip() for url in urls.split(",") if url.strip()])
    given_pin = None if arguments.pin is None else named("--pin", check_pin, arguments.pin)
    pin = given_pin or settings.checked("PEERSEAL_REGISTRY_PIN", check_pin) or known_pin
    check_pinned(pin, loopback_only=fetcher.loopback_only)
    return fetcher, pin


def until_interrupted(interrupt_wait: Callable[[], None] = lambda: None) -> threading.Event:
    """An event that SIGINT and SIGTERM set, so that the current look is finished first. They also call
    ``interrupt_wait``, which ends a wait for the registry."""
    ended = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()
        interrupt_wait()

    if threading.current_thread() is threading.main_thread():
        for interrupt in (signal.SIGINT, signal.SIGTERM):
            signal.signal(interrupt, end)
    return ended
