"""The registry's own secrets in files of mode 0600: made once, never overwritten. What another user of the host made
or may change is not read."""

import os
from collections.abc import Callable
from pathlib import Path

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.errors import ConfigurationError, KeyRefused
from peerseal.protocol.keys import KeyPair
from peerseal.runtime.files import Access, Folder, read_file


def write_new(path: Path, data: bytes) -> bool:
    """Writes a file of mode 0600, whole or not at all. False where it was there before: then nothing is changed. Raises
    ConfigurationError.

    Linked into place, so that of two processes that begin at once one file wins, complete.
    """
    return Folder(path.parent, access=Access.COMMON).write_new(path.name, data)


def ensure(path: Path, make: Callable[[], bytes]) -> bool:
    """Makes the file where it is missing. True where it was made. Raises ConfigurationError."""
    return not os.path.exists(path) and write_new(path, make())


def read(path: Path, what: str) -> bytes:
    """The file's bytes. Raises ConfigurationError, which names the file and what it should hold."""
    try:
        return read_file(path)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{what}: {path}: {error.strerror}; has the registry been initialised?") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{what}: {error}") from error


def read_key_pair(path: Path, what: str) -> KeyPair:
    """A root or signing key (P-256, PKCS #8 in PEM). Raises ConfigurationError."""
    try:
        key = KeyPair.from_pem(read(path, what))
    except KeyRefused as error:
        raise ConfigurationError(f"{what}: {path} holds no private key") from error
    if key.public.alg != "ES256":
        raise ConfigurationError(f"{what}: {path}: the registry signs with P-256 keys")
    return key


def read_ledger_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs checkpoints. Raises ConfigurationError."""
    try:
        key = serialization.load_pem_private_key(read(path, "ledger key"), None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"ledger key: {path} holds no private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"ledger key: {path} holds no Ed25519 key")
    return key


def new_key_pair() -> bytes:
    """A new signing key."""
    return KeyPair.generate("ES256").to_pem()


def new_root_key() -> bytes:
    """A new root key. Its thumbprint is what people type behind ``--pin``, where a dash would begin an option."""
    key = KeyPair.generate("ES256")
    while key.public.thumbprint.startswith("-"):
        key = KeyPair.generate("ES256")
    return key.to_pem()


def new_ledger_key() -> bytes:
    """A new key for checkpoints."""
    form = serialization.PrivateFormat.PKCS8
    return Ed25519PrivateKey.generate().private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


class Sealer:
    """Encrypts what the database keeps secret, so that a copy of the database alone is of no use."""

    def __init__(self, key: bytes) -> None:
        """``key`` is a Fernet key. Raises ConfigurationError."""
        try:
            self._fernet = Fernet(key.strip())
        except ValueError as error:
            raise ConfigurationError("the sealing key cannot be read") from error

    def seal(self, name: str, secret: bytes) -> bytes:
        """The secret of that name, encrypted."""
        return self._fernet.encrypt(name.encode("utf-8") + b"\0" + secret)

    def open(self, name: str, sealed: bytes) -> bytes:
        """The secret again. Raises ValueError or cryptography.fernet.InvalidToken for one that was altered, or moved
        here from another name."""
        prefix, content = name.encode("utf-8") + b"\0", self._fernet.decrypt(sealed)
        if not content.startswith(prefix):
            raise ValueError("a sealed secret under another name")
        return content[len(prefix) :]
