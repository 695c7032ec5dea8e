"""Join tokens: ``psj1.<id>.<secret>.<root pin>`` (docs/protocol.md).

The secret never crosses the wire. Its holder sends the id and an HMAC over the proof of possession, so
someone who reads the registration cannot register a different key. With the pin, the service that joins checks the
registry.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Self

from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.encoding import b64url, b64url_decode
from peerseal.protocol.plain import kind_of, plain_text

_PREFIX = "psj1"
_ID_BYTES = 12
_SECRET_BYTES = 32
_PIN_BYTES = 32


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A short-lived secret with which its holder registers keys for one service.

    ``id`` (12 bytes), ``secret`` (32 bytes) and ``pin`` (the root key's thumbprint) are unpadded base64url.
    """

    id: str
    secret: str = field(repr=False)
    pin: str

    @classmethod
    def generate(cls, pin: str) -> Self:
        """A new token for the registry whose root key has the thumbprint ``pin``."""
        token_id = b64url(secrets.token_bytes(_ID_BYTES))
        while token_id.startswith("-"):  # operators type it, and a command would take it for an option
            token_id = b64url(secrets.token_bytes(_ID_BYTES))
        return cls(token_id, b64url(secrets.token_bytes(_SECRET_BYTES)), pin)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads the text form and strips white space. Raises ConfigurationError, which never contains the token."""
        plain = plain_text(text)
        if plain is None:
            raise ConfigurationError(f"a join token is text, not {kind_of(text)}")
        try:
            prefix, *parts = plain.strip().split(".")
            sizes = tuple(len(b64url_decode(part)) for part in parts)
        except MalformedToken as error:
            raise ConfigurationError("the join token cannot be read") from error
        if prefix != _PREFIX or sizes != (_ID_BYTES, _SECRET_BYTES, _PIN_BYTES):
            raise ConfigurationError("the join token cannot be read")
        return cls(*parts)

    def encode(self) -> str:
        """The text form that an operator hands over."""
        return f"{_PREFIX}.{self.id}.{self.secret}.{self.pin}"

    @property
    def mac_key(self) -> bytes:
        """The key of the MAC: SHA-256 of the secret's 32 bytes. It is what the registry keeps, encrypted."""
        return hashlib.sha256(b64url_decode(self.secret)).digest()


def join_mac(mac_key: bytes, proof: str) -> str:
    """HMAC-SHA256 over the proof of possession (a compact JWS), unpadded base64url."""
    return b64url(hmac.new(mac_key, proof.encode("ascii"), hashlib.sha256).digest())


def join_mac_matches(mac_key: bytes, proof: str, mac: str) -> bool:
    """Whether ``mac`` is the MAC of ``proof``, compared in constant time."""
    return hmac.compare_digest(join_mac(mac_key, proof).encode("ascii"), mac.encode("utf-8"))
