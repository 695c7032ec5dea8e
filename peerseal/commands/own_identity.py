"""The identity of the service for which a command works."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from peerseal.errors import ConfigurationError, PeersealError
from peerseal.identity.identity import Identity
from peerseal.runtime.settings import SettingsReader

PATIENCE = 10.0
"""Seconds for the attempt of a first registration; the next call continues with the same key."""

log = logging.getLogger("peerseal.cli")  # public, and older than this module


@contextmanager
def own_identity() -> Iterator[Identity]:
    """The identity of the service in the environment, as for `peerseal.Identity.from_env`. Its key is made and
    registered on first use, stays registered, and is replaced where that is due.

    Raises ConfigurationError where a setting is missing, EnrolmentRefused, EnrolmentPending, FetchError or
    TrustUnavailable.
    """
    if SettingsReader(os.environ).path("PEERSEAL_KEY_DIR") is None:
        raise ConfigurationError("PEERSEAL_KEY_DIR is not set: the key would be gone with this command")
    identity = Identity.from_env({**os.environ, "PEERSEAL_RETIRE_AT_EXIT": "0"}).start(timeout=PATIENCE)
    try:
        _look_after_keys(identity)
        yield identity
    finally:
        identity.stop()


def _look_after_keys(identity: Identity) -> None:
    """Replaces the key where that is due. The current key stays valid where that fails."""
    try:
        identity.look_after_keys()
    except PeersealError as error:
        log.warning("the next key of %s is not registered yet: %s", identity.service, error)
