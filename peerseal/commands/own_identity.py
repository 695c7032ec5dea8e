"""The identity and the key folder of the service for which a command works: those of the environment."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peerseal.errors import ConfigurationError, PeersealError
from peerseal.identity.environment import settings_of
from peerseal.identity.identity import Identity
from peerseal.identity.key_folder import KeyFolder, StoredKey
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import check_service
from peerseal.runtime.settings import SettingsReader, named

PATIENCE = 10.0
"""Seconds for the attempt of a first registration; the next call continues with the same key."""

log = logging.getLogger("peerseal.cli")  # public, and older than this module


@contextmanager
def own_identity(*, patience: float = PATIENCE, first_key: KeyPair | None = None) -> Iterator[Identity]:
    """As `start_own_identity`; stopped at the end."""
    identity = start_own_identity(patience=patience, first_key=first_key)
    try:
        yield identity
    finally:
        identity.stop()


def start_own_identity(*, patience: float = PATIENCE, first_key: KeyPair | None = None) -> Identity:
    """The identity of the service in the environment, as for `peerseal.Identity.from_env`. Its key is made and
    registered on first use, stays registered, and is replaced where that is due. ``first_key`` is used in place of a
    new one; ``patience`` is in seconds. It stops when the process ends.

    Raises ConfigurationError where a setting is missing, EnrolmentRefused, EnrolmentPending, FetchError or
    TrustUnavailable.
    """
    _show_warnings_only()
    identity = unstarted_identity()
    if first_key is not None:
        identity.take_key(first_key)
    identity.start(timeout=patience)
    _look_after_keys(identity)
    return identity


def _show_warnings_only() -> None:
    """Without a logging configuration, an identity announces itself by a warning, for the logs of a server. A command
    is not one."""
    if logging.lastResort is not None and not log.hasHandlers():
        logging.getLogger("peerseal").addHandler(logging.lastResort)


def unstarted_identity() -> Identity:
    """The same, without a call to the registry. Raises ConfigurationError."""
    _key_dir(SettingsReader(os.environ))
    return Identity.from_env({**os.environ, "PEERSEAL_RETIRE_AT_EXIT": "0"})


def own_folder() -> KeyFolder:
    """The key folder of the service in the environment. Nothing is made or changed. Raises ConfigurationError."""
    settings = settings_of(os.environ)
    service = named("PEERSEAL_SERVICE", check_service, settings.required("PEERSEAL_SERVICE"))
    return KeyFolder(_key_dir(settings) / service, own_passphrase())


def own_passphrase() -> KeyPassphrase:
    """The passphrase of private keys in the environment. Raises ConfigurationError."""
    name = "PEERSEAL_KEY_PASSPHRASE"
    return KeyPassphrase(name, SettingsReader(os.environ).secret(name))


def signing_key(folder: KeyFolder) -> StoredKey:
    """The key in the folder that signs now. Raises ConfigurationError where none is registered."""
    key = folder.load().signing(time.time())
    if key is None:
        raise ConfigurationError("this host has no registered key: peerseal join registers one")
    return key


def _key_dir(settings: SettingsReader) -> Path:
    folder = settings.path("PEERSEAL_KEY_DIR")
    if folder is None:
        raise ConfigurationError(
            "PEERSEAL_KEY_DIR is not set: the key would be gone with this command; set it to a folder that stays"
        )
    return folder


def _look_after_keys(identity: Identity) -> None:
    """Replaces the key where that is due. The current key stays valid where that fails."""
    try:
        identity.look_after_keys()
    except PeersealError as error:
        log.warning("the next key of %s is not registered yet: %s", identity.service, error)
