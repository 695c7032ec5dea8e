"""New keys for the registry, named by the root: roll-over with overlap, and the removal of a stolen key.

The root key may be offline, so a ceremony has three steps on up to two machines. `Ceremony.requested` makes the next
document, `signed` signs it where the root key is, and `Ceremony.publish` puts it into force. A new key is published
first, and signs after a lead time in which running clients learn of it (`Ceremony.put_in_place`). Both keys are valid
until a further document drops the previous one, so nodes may receive the new files one after the other.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from peerseal.errors import ConfigurationError, DocumentRefused, KeyRefused, MalformedToken
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_LIFETIME, RegistryKeys, read_registry_keys
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger.checkpoint import ledger_jwk
from registry.services.setup import keyfiles
from registry.services.setup.initialise import decode_document, issue
from registry.settings import NO_PASSPHRASE, Settings
from registry.storage.queries import documents
from registry.storage.unit import Store


class Rolled(StrEnum):
    """The keys that can be replaced."""

    SIGNING = "signing"
    LEDGER = "ledger"


SETTLED_AFTER = 10
"""Seconds in which every client that follows the changes learns of a new document, and every node of new key files:
twice the longest interval of both."""


class NotSettled(ConfigurationError):
    """A node may have signed a moment ago with the key that is to be dropped. ``wait`` is in seconds."""

    def __init__(self, wait: int) -> None:
        super().__init__(f"nodes may still sign with the previous key: try again in {wait} s")
        self.wait = wait


class Ceremony:
    """The registry's side of it: on a node, with the database."""

    def __init__(self, settings: Settings, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock

    def requested(self, rolled: Collection[Rolled], *, drop_past: bool) -> RegistryKeys:
        """The next document, unsigned. New keys are made for what is ``rolled``, in files next to the current ones.
        With ``drop_past`` the document names only the current keys.

        Raises ConfigurationError where the registry has not been initialised, NotSettled.
        """
        known, now = decode_document(self._newest()), int(self._clock())
        if drop_past and not rolled and now < known.issued_at + SETTLED_AFTER:
            raise NotSettled(known.issued_at + SETTLED_AFTER - now)
        signing, ledger = known.signing_keys, known.ledger_keys
        if Rolled.SIGNING in rolled:
            new = self._waiting_signing_key(make=True)
            signing = (new, *(key for key in signing if key != new))
        if Rolled.LEDGER in rolled:
            jwk = self._waiting_ledger_key(make=True)
            ledger = (jwk, *(key for key in ledger if key != jwk))
        kept = 1 if drop_past else 2
        return replace(
            known,
            issued_at=now,
            expires_at=now + REGISTRY_KEYS_LIFETIME,
            version=known.version + 1,
            signing_keys=signing[:kept],
            ledger_key=ledger[0],
            past_ledger_keys=ledger[1:kept],
            urls=self._settings.public_urls or known.urls,
        )

    def publish(self, jws: str) -> RegistryKeys:
        """Puts a document that the root signed into force. A repeated call changes nothing.

        Raises DocumentRefused, or ConfigurationError for one that does not follow the document in force.
        """
        newest = self._newest()
        known = decode_document(newest)
        document = read_registry_keys(jws, pin=known.root.thumbprint, now=self._clock())
        if jws != newest:
            if document.version != known.version + 1 or document.subject != known.subject:
                raise ConfigurationError(
                    f"version {document.version} does not follow version {known.version}: request it again"
                )
            if not issue(self._store, document, jws, replaces=newest):
                raise ConfigurationError("another document was published a moment ago: request this one again")
        return document

    def put_in_place(self, document: RegistryKeys) -> None:
        """Makes the new key files the current ones. This node signs with them from now on, and other nodes once the
        files are copied there."""
        signing, ledger = self._settings.signing_key_file, self._settings.ledger_key_file
        if _waiting(signing).exists() and self._waiting_signing_key() == document.signing_keys[0]:
            _waiting(signing).replace(signing)
        if _waiting(ledger).exists() and self._waiting_ledger_key() == document.ledger_key:
            _waiting(ledger).replace(ledger)

    def _waiting_signing_key(self, *, make: bool = False) -> PublicKey:
        path, passphrase = _waiting(self._settings.signing_key_file), self._settings.key_passphrase
        if make:
            keyfiles.ensure(path, lambda: keyfiles.new_key_pair(passphrase))
        return keyfiles.read_key_pair(path, "new signing key", passphrase).public

    def _waiting_ledger_key(self, *, make: bool = False) -> dict[str, str]:
        path, passphrase = _waiting(self._settings.ledger_key_file), self._settings.key_passphrase
        if make:
            keyfiles.ensure(path, lambda: keyfiles.new_ledger_key(passphrase))
        return ledger_jwk(keyfiles.read_ledger_key(path, passphrase).public_key())

    def _newest(self) -> str:
        with self._store.read() as connection:
            newest = documents.registry_keys(connection)
        if newest is None:
            raise ConfigurationError("the database has no registry keys document: run peerseal-registry init")
        return newest


def written(document: RegistryKeys) -> bytes:
    """The request for the machine of the root key: the claims to sign, as readable JSON."""
    return canonical_json(document.claims())


def signed(request: bytes, root_key_file: Path, passphrase: KeyPassphrase = NO_PASSPHRASE) -> str:
    """The document, signed by the root. It needs only the root key and its passphrase.

    Raises ConfigurationError for a request that cannot be read, or that is for another root.
    """
    try:
        document = RegistryKeys.from_claims(strict_json_object(request))
    except (MalformedToken, KeyRefused, DocumentRefused) as error:
        raise ConfigurationError(f"the request cannot be read: {error}") from error
    root = keyfiles.read_key_pair(root_key_file, "root key", passphrase)
    if root.public != document.root:
        raise ConfigurationError(
            f"{root_key_file} has the pin {root.public.thumbprint}, not the one that clients have pinned:"
            f" {document.root.thumbprint}"
        )
    return sign_document(document, root)


def _waiting(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")
