"""Other libraries' bare decode of a request token, each with a key made ready once, as its documentation advises.

None of them checks the binding to a request, a policy or a replay; PyJWT and atlassian-jwt-auth check times and
audience, joserfc and Authlib not even those: that is what their bare decode is.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jwt
from atlassian_jwt_auth import JWTAuthVerifier
from atlassian_jwt_auth.key import BasePublicKeyRetriever
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import RSAKey

from peerseal.protocol.keys import PublicKey

with warnings.catch_warnings(record=True):  # Authlib's advice to use joserfc, which is measured here, too
    from authlib.jose import JsonWebToken
    from authlib.jose import RSAKey as AuthlibRSAKey

_RS256 = ["RS256"]


def bare_decoders(key: PublicKey, audience: str) -> dict[str, Callable[[str], object]]:
    """By library, a function that decodes one token or raises."""
    pem = key.pem()
    return {
        "PyJWT": partial(jwt.decode, key=key.crypto, algorithms=_RS256, audience=audience),
        "joserfc": partial(joserfc_jwt.decode, key=RSAKey.import_key(pem), algorithms=_RS256),
        "Authlib": partial(JsonWebToken(_RS256).decode, key=AuthlibRSAKey.import_key(pem)),
        "atlassian-jwt-auth": partial(JWTAuthVerifier(_StaticRetriever(pem)).verify_jwt, audience=audience, leeway=30),
    }


class _StaticRetriever(BasePublicKeyRetriever):
    """A key repository with one key in memory: no HTTP is timed."""

    def __init__(self, pem: str) -> None:
        self._pem = pem

    def retrieve(self, key_identifier: object, **_: Any) -> str:
        """The key, whichever was asked for."""
        return self._pem
