"""The registry's own secrets in files of mode 0600: made once, never overwritten. A file that another user of the host
owns or may change is not read. The mode of a file is tightened once it is known to hold a key: a typing mistake may
name any file.

With a passphrase, new private keys are encrypted under it (PKCS #8). An older plain key is read with a warning and not
encrypted: copies of it may exist, so a new key is the better remedy.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from peerseal.errors import ConfigurationError, KeyRefused
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.protocol.keys import KeyPair, private_pem
from peerseal.runtime.files import Access, Folder, read_file, tighten_file
from peerseal.runtime.trusted_path import warn_once
from registry.settings import NO_PASSPHRASE

T = TypeVar("T")


def write_new(path: Path, data: bytes) -> bool:
    """Writes a file of mode 0600 atomically. False, and nothing is changed, where it exists. Raises ConfigurationError.

    The file is linked into place: of two processes at the same time one wins, with a complete file.
    """
    return Folder(path.parent, access=Access.COMMON, tightens=False).write_new(path.name, data)


def ensure(path: Path, make: Callable[[], bytes]) -> bool:
    """Makes the file if it is missing. True if it was made. Raises ConfigurationError."""
    return not os.path.exists(path) and write_new(path, make())


def read(path: Path, what: str) -> bytes:
    """The file's bytes. Raises ConfigurationError, which names the file and what it should hold."""
    try:
        return read_file(path, tightens=False)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{what}: {path}: {error.strerror}; has the registry been initialised?") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{what}: {error}") from error


def read_key_pair(path: Path, what: str, passphrase: KeyPassphrase = NO_PASSPHRASE) -> KeyPair:
    """A root or signing key (P-256, PKCS #8 in PEM). Raises ConfigurationError."""
    try:
        key = _opened(path, what, passphrase, KeyPair.from_pem)
    except KeyRefused as error:
        raise ConfigurationError(f"{what}: {path} holds no private key") from error
    if key.public.alg != "ES256":
        raise ConfigurationError(f"{what}: {path} holds a key for {key.public.alg}, it must be a P-256 key (ES256)")
    tighten_file(path)
    return key


def read_ledger_key(path: Path, passphrase: KeyPassphrase = NO_PASSPHRASE) -> Ed25519PrivateKey:
    """The key that signs checkpoints. Raises ConfigurationError."""
    try:
        key = _opened(path, "ledger key", passphrase, serialization.load_pem_private_key)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"ledger key: {path} holds no private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"ledger key: {path} holds no Ed25519 key")
    tighten_file(path)
    return key


def read_sealer(path: Path) -> "Sealer":
    """What encrypts secrets, with the sealing key in that file. Raises ConfigurationError."""
    sealer = Sealer(read(path, "sealing key"))
    tighten_file(path)
    return sealer


def _opened(path: Path, what: str, passphrase: KeyPassphrase, load: Callable[[bytes, bytes | None], T]) -> T:
    pem = read(path, what)
    if passphrase.leaves_plain(pem):
        warn_once(f"{what}: {path} is not encrypted, although {passphrase.setting} is set: replace the key")
    return passphrase.opened(pem, path, load)


def new_key_pair(passphrase: KeyPassphrase = NO_PASSPHRASE) -> bytes:
    """A new signing key."""
    return KeyPair.generate("ES256").to_pem(passphrase.password)


def new_root_key(passphrase: KeyPassphrase = NO_PASSPHRASE) -> bytes:
    """A new root key. Its thumbprint is the argument of ``--pin``, so it must not begin with a dash."""
    key = KeyPair.generate("ES256")
    while key.public.thumbprint.startswith("-"):
        key = KeyPair.generate("ES256")
    return key.to_pem(passphrase.password)


def new_ledger_key(passphrase: KeyPassphrase = NO_PASSPHRASE) -> bytes:
    """A new key for checkpoints."""
    return private_pem(Ed25519PrivateKey.generate(), passphrase.password)


class Sealer:
    """Encrypts the secrets in the database, so a copy of the database alone does not reveal them."""

    def __init__(self, key: bytes) -> None:
        """``key`` is a Fernet key. Raises ConfigurationError."""
        try:
            self._fernet, self._key = Fernet(key.strip()), key.strip()
        except ValueError as error:
            raise ConfigurationError("the sealing key is not a Fernet key: restore the file that init made") from error

    def derived(self, purpose: str) -> bytes:
        """A key of 32 bytes for another purpose, the same at each node (RFC 5869)."""
        return HKDF(SHA256(), 32, salt=None, info=purpose.encode("utf-8")).derive(self._key)

    def seal(self, name: str, secret: bytes) -> bytes:
        """The secret of that name, encrypted."""
        return self._fernet.encrypt(name.encode("utf-8") + b"\0" + secret)

    def open(self, name: str, sealed: bytes) -> bytes:
        """Decrypts the secret. Raises ValueError or cryptography.fernet.InvalidToken for one that was altered, or
        sealed under another name."""
        prefix, content = name.encode("utf-8") + b"\0", self._fernet.decrypt(sealed)
        if not content.startswith(prefix):
            raise ValueError(f"the secret was not sealed under the name {name}")
        return content[len(prefix) :]
