"""The keys that one process signs with: the keys of the key folder, kept in memory."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress

from peerseal.errors import ConfigurationError, PeersealError, TrustUnavailable
from peerseal.identity.key_folder import KeyFolder, StoredKey, StoredKeys
from peerseal.protocol.names import split_kid, split_service_id
from peerseal.runtime.forks import notice_fork
from peerseal.runtime.metrics import Metric, gauge

log = logging.getLogger("peerseal.identity")

RELOAD_EVERY = 1.0
"""Seconds between two checks whether another process has changed the folder."""


class SigningKeys:
    """The keys of ``service`` in ``folder``. Key rotation changes them with `save`; all that signs asks for `current`.

    ``clock`` gives seconds since the epoch.
    """

    def __init__(self, service: str, folder: KeyFolder, clock: Callable[[], float]) -> None:
        self.service = service
        self.folder = folder
        self.clock = clock
        self.stored = StoredKeys()
        self._stamp: tuple[int, int] | None = None
        self._checked_at = 0.0

    def current(self) -> StoredKey:
        """The key to sign with now. Raises TrustUnavailable if no key is registered."""
        notice_fork()
        now = self.clock()
        if now - self._checked_at > RELOAD_EVERY or now < self._checked_at:
            self._reload_if_possible()
        key = self.stored.signing(now)
        if key is None:
            raise TrustUnavailable("this service has no registered key; was it started?")
        return key

    def collect(self) -> Iterator[Metric]:
        """The metrics of the key that signs now; none if there is no key."""
        with suppress(TrustUnavailable):
            key, now = self.current(), self.clock()
            age, rest = now - (key.registered_at or now), key.expires_at - now
            yield gauge("peerseal_identity_info", "The service that this is.", 1, {"service": key.owner})
            yield gauge("peerseal_key_age_seconds", "Since the signing key was registered.", age)
            yield gauge("peerseal_key_good_for_seconds", "Until the signing key ends.", rest)

    def _reload_if_possible(self) -> None:
        """A folder that cannot be read does not stop signing: the keys in memory stay in use."""
        try:
            self.reload()
        except (OSError, PeersealError):
            log.exception("the key folder of %s cannot be read; the keys in memory stay in use", self.service)

    def reload(self) -> None:
        """Read the folder if another process has saved keys. Takes no lock: files are replaced in one step."""
        self._checked_at = self.clock()
        stamp = self.folder.stamp()
        if stamp is None and self.stored.keys:
            log.error("%s was emptied; the keys in memory stay in use", self.folder.path)
        elif stamp != self._stamp:
            stored = self.folder.load()
            for key in stored.keys:  # the folder may have been replaced by the one of another service of the same user
                if split_service_id(split_kid(key.kid)[0])[1] != self.service:
                    raise ConfigurationError(f"{self.folder.path} holds {key.kid}, which is no key of {self.service}")
            self.stored, self._stamp = stored, stamp

    def save(self, stored: StoredKeys) -> None:
        """Replace the keys, in the folder first. The caller has locked the folder."""
        self.folder.save(stored)
        self.stored, self._stamp = stored, self.folder.stamp()
