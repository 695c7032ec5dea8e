"""What every attack starts from: a fresh callee, and the caller's keys."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from peerseal.protocol.keys import KeyPair
from peerseal.runtime.log_lines import JsonFormatter
from tests.attacks.forge import Callee, ec_key, rsa_key


@pytest.fixture
def callee() -> Callee:
    """The service under attack."""
    return Callee()


@pytest.fixture(scope="session")
def key() -> KeyPair:
    """The honest caller's RSA key, which an attacker does not have unless the attack says so."""
    return rsa_key("caller")


@pytest.fixture(scope="session")
def p256() -> KeyPair:
    """The honest caller's P-256 key."""
    return ec_key("caller")


@pytest.fixture(scope="session")
def attacker() -> KeyPair:
    """A key that no service registered."""
    return rsa_key("attacker")


_TOKEN = re.compile(r"eyJ[\w-]{8,}\.eyJ[\w-]*\.[\w-]{20,}|\bps[jo]1\.[\w-]+\.[\w-]{16,}|PRIVATE KEY")
"""A whole token, as it could be used by a reader of the log: a JWS with its signature, or one of the registry's."""


class _LeakSeeker(logging.Handler):
    """Collects lines with a token, formatted without the removal of secrets."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.leaks: list[str] = []
        self._json = JsonFormatter("attacked")

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        members = [str(value) for value in vars(record).values() if isinstance(value, dict)]
        text = "\n".join((self.format(record), *members))
        if _TOKEN.search(text):
            self.leaks.append(text)
        json.loads(self._json.format(record))


@pytest.fixture(autouse=True)
def logs_hold_no_token() -> Iterator[None]:
    """No line that the SDK and the registry log under any attack has a token, in any format; each is valid JSON."""
    seeker = _LeakSeeker()
    with ExitStack() as undo:
        for log in map(logging.getLogger, ("peerseal", "registry")):
            undo.callback(log.setLevel, log.level)
            undo.callback(log.removeHandler, seeker)
            log.addHandler(seeker)
            log.setLevel(logging.DEBUG)
        yield
    assert seeker.leaks == []
