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
    """As `start_own_identity`; stopped at the end."""
    identity = start_own_identity()
    try:
        yield identity
    finally:
        identity.stop()


def start_own_identity() -> Identity:
    """The identity of the service in the environment, as for `peerseal.Identity.from_env`. Its key is made and
    registered on first use, stays registered, and is replaced where that is due. It stops when the process ends.

    Raises ConfigurationError where a setting is missing, EnrolmentRefused, EnrolmentPending, FetchError or
    TrustUnavailable.
    """
    if SettingsReader(os.environ).path("PEERSEAL_KEY_DIR") is None:
        raise ConfigurationError(
            "PEERSEAL_KEY_DIR is not set: the key would be gone with this command; set it to a folder that stays"
        )
    _show_warnings_only()
    identity = Identity.from_env({**os.environ, "PEERSEAL_RETIRE_AT_EXIT": "0"}).start(timeout=PATIENCE)
    _look_after_keys(identity)
    return identity


def _show_warnings_only() -> None:
    """Without a logging configuration, an identity announces itself by a warning, for the logs of a server. A command
    is not one."""
    if logging.lastResort is not None and not log.hasHandlers():
        logging.getLogger("peerseal").addHandler(logging.lastResort)


def _look_after_keys(identity: Identity) -> None:
    """Replaces the key where that is due. The current key stays valid where that fails."""
    try:
        identity.look_after_keys()
    except PeersealError as error:
        log.warning("the next key of %s is not registered yet: %s", identity.service, error)
