"""What every attack starts from: a fresh callee, and the caller's keys."""

import pytest

from peerseal.protocol.keys import KeyPair
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
