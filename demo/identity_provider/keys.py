"""The key that the identity provider signs tokens with."""

import os
from pathlib import Path
from typing import Any

from joserfc.jwk import ECKey

ALG = "ES256"


class SigningKey:
    """A private key for ES256, named by its thumbprint (RFC 7638)."""

    def __init__(self, key: ECKey) -> None:
        self.key = key
        self.kid = key.thumbprint()

    @classmethod
    def kept_in(cls, file: Path | None) -> "SigningKey":
        """The key in that file, which is created if it is missing; without a file, a new key."""
        if file is None:
            return cls(ECKey.generate_key("P-256"))
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return cls(ECKey.import_key(file.read_bytes()))
        made = ECKey.generate_key("P-256")
        with os.fdopen(descriptor, "wb") as new:
            new.write(made.as_pem(private=True))
        return cls(made)

    @property
    def jwks(self) -> dict[str, Any]:
        """The public half, as a JWK Set (RFC 7517)."""
        public = self.key.as_dict(private=False)
        public.pop("kid", None)
        return {"keys": [{**public, "use": "sig", "alg": ALG, "kid": self.kid}]}
