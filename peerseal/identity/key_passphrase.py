"""The passphrase that encrypts private keys in files (PKCS #8, RFC 5958)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from peerseal.errors import ConfigurationError, KeyRefused
from peerseal.runtime.options import check_unicode

SHORTEST = 16
LONGEST = 1000
"""Bytes in UTF-8. OpenSSL accepts at most 1,023. ``cryptography`` writes PKCS #8 with 2,048 rounds of PBKDF2 only,
so a short passphrase could be guessed."""

_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeyPassphrase:
    """The passphrase of the variable ``setting``, or of the variable with ``_FILE``; None for plain keys.

    Raises ConfigurationError if it is too short or too long.
    """

    setting: str
    value: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.value is None:
            return
        check_unicode(self.setting, self.value)
        if not SHORTEST <= len(self.value.encode("utf-8")) <= LONGEST:
            remedy = "make one with: openssl rand -base64 32"
            raise ConfigurationError(f"{self.setting}: expected {SHORTEST} to {LONGEST} bytes; {remedy}")

    @property
    def password(self) -> bytes | None:
        """The passphrase in bytes, for new keys."""
        return None if self.value is None else self.value.encode("utf-8")

    def leaves_plain(self, pem: bytes) -> bool:
        """Whether a key is plain although there is a passphrase."""
        return self.value is not None and not is_encrypted(pem)

    def opened(self, pem: bytes, path: Path, load: Callable[[bytes, bytes | None], T]) -> T:
        """The key in ``pem``, the content of the file ``path``, as ``load(pem, password)`` returns it; the password is
        None for a plain key. Raises ConfigurationError if the passphrase is missing or wrong, and the errors of
        ``load`` for a plain key."""
        if not is_encrypted(pem):
            return load(pem, None)
        if self.value is None:
            problem = f"{path} is encrypted, and {self.setting} is not set"
            raise ConfigurationError(f"{problem}: set it, or {self.setting}_FILE, to the passphrase of that file")
        try:
            return load(pem, self.password)
        except (KeyRefused, ValueError, TypeError) as error:
            problem = f"{self.setting} does not open {path}"
            raise ConfigurationError(
                f"{problem}: set it, or {self.setting}_FILE, to the passphrase under which that file was written, "
                "or bring the file back if it was damaged; it is left as it is"
            ) from error


def is_encrypted(pem: bytes) -> bool:
    """Whether the private key in a PEM needs a password."""
    return _ENCRYPTED in pem
