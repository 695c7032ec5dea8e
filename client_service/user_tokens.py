"""An issuer of users' tokens with a key of its own, as an OIDC provider is one.

It stands for a foreign identity provider (a login service bought or run elsewhere), so it shares nothing with Peerseal:
another key, another library, and its name counts only because the domain's settings list it.
"""

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jose import jwk, jwt

import peerseal

LIFETIME = 15 * 60
"""Seconds."""
AUDIENCE = "client-service"
SCOPE = "profiles:read orders:write orders:read invoices:read trigger_invoicing"
"""What a demo user may do."""
ADMINISTRATORS = ("katherine",)
"""Who may approve large orders, too."""
ALG = "ES256"


class UserTokens:
    """Issues tokens under the name ``issuer_url``. ``private_key`` is a PEM; ``clock`` gives seconds since the epoch.

    ``jwks_file`` holds the JWK Set, for verifiers of the same host: an issuer's name must be https, where this service
    may well be reached over plain HTTP only.
    """

    def __init__(self, issuer_url: str, private_key: str, jwks_file: Path, clock: Callable[[], float]) -> None:
        self.issuer_url = issuer_url
        self.jwks_file = jwks_file
        self._private_key = private_key
        self._clock = clock
        self.jwks = _public_set(private_key)
        self._kid = self.jwks["keys"][0]["kid"]

    @classmethod
    def kept_in(cls, key_file: Path, issuer_url: str, identity: peerseal.Identity) -> Self:
        """With the key in that file, which is made where it is missing: one, however many workers begin at once."""
        key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        jwks_file = key_file.with_suffix(".jwks.json")
        with key_file.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not key_file.exists():
                _write(key_file, _new_key())
            tokens = cls(issuer_url, key_file.read_text("ascii"), jwks_file, identity.clock)
            _write(jwks_file, json.dumps(tokens.jwks))
        return tokens

    def issue(self, user: str) -> str:
        """A token for that user, who has shown a password."""
        now = int(self._clock())
        claims = {"iss": self.issuer_url, "sub": user, "aud": AUDIENCE, "jti": str(uuid.uuid4())}
        claims["scope"] = scope_of(user)
        times = {"iat": now, "nbf": now, "exp": now + LIFETIME}
        return jwt.encode({**claims, **times}, self._private_key, algorithm=ALG, headers={"kid": self._kid})

    def discovery(self) -> dict[str, Any]:
        """The issuer's metadata (OpenID Connect Discovery 1.0 section 3), as far as there is something to say."""
        return {
            "issuer": self.issuer_url,
            "jwks_uri": f"{self.issuer_url}/.well-known/jwks.json",
            "id_token_signing_alg_values_supported": [ALG],
            "response_types_supported": [],
            "subject_types_supported": ["public"],
        }


def scope_of(user: str) -> str:
    """What that user's token allows."""
    return f"{SCOPE} orders:approve" if user in ADMINISTRATORS else SCOPE


def _new_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def _public_set(private_key: str) -> dict[str, Any]:
    public = jwk.construct(private_key, ALG).public_key().to_dict()
    kid = hashlib.sha256(json.dumps(public, sort_keys=True).encode()).hexdigest()[:32]
    return {"keys": [{**public, "use": "sig", "kid": kid}]}


def _write(path: Path, text: str) -> None:
    """The whole file at once, for its owner's eyes only."""
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)
