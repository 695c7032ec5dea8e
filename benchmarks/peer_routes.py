"""The route of `benchmarks.apps`, protected by other libraries, each as its documentation says, with its key cached.

All check a request token of ours that is sent as a bearer token: its signature and times, and its audience where the
library has a way to say so. None binds the request or refuses a replay. ``keys_url`` is where the caller's JWK Set is.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jwt
import requests
from atlassian_jwt_auth.frameworks.flask import requires_asap
from atlassian_jwt_auth.key import BasePublicKeyRetriever
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Flask, abort, request
from flask_jwt_extended import JWTManager, jwt_required
from jwt import PyJWK, PyJWKClient

from benchmarks.apps import open_route, profile

with warnings.catch_warnings(record=True):  # Authlib's advice to use joserfc, which has no way to protect a route
    from authlib.integrations.flask_oauth2 import ResourceProtector
    from authlib.jose import JsonWebKey, JsonWebToken
    from authlib.oauth2.rfc6750 import BearerTokenValidator

_RS256 = ["RS256"]


def authlib_route(keys_url: str, audience: str) -> Flask:
    """Authlib's ResourceProtector with a validator of JWT bearer tokens (its guide *JWT Profile for Access Tokens*)."""
    keys, decoder = JsonWebKey.import_key_set(_keys(keys_url)), JsonWebToken(_RS256)
    claims_options = {"aud": {"essential": True, "value": audience}, "exp": {"essential": True}}

    class Claims:
        """What a ResourceProtector asks of a token."""

        def __init__(self, claims: Mapping[str, Any]) -> None:
            self.claims = claims

        def get_scope(self) -> str:
            """No scope is asked for."""
            return ""

    class Validator(BearerTokenValidator):  # type: ignore[misc] # the library has no types
        """Decodes the token with the key of its kid."""

        def authenticate_token(self, token_string: str) -> Claims:
            """Verify the signature and return the claims."""
            return Claims(decoder.decode(token_string, keys, claims_options=claims_options))

        def validate_token(self, token: Claims, scopes: object, request: object, **_: Any) -> None:
            """Times and audience."""
            token.claims.validate(leeway=30)  # type: ignore[attr-defined]

    protect = ResourceProtector()
    protect.register_token_validator(Validator())
    return _protected(protect())


def pyjwt_route(keys_url: str, audience: str) -> Flask:
    """PyJWT and its PyJWKClient (its *Usage Examples*, OIDC), in a decorator."""
    client = PyJWKClient(keys_url, cache_keys=True)

    def protect(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def protected(*args: Any, **kwargs: Any) -> Any:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme != "Bearer":
                abort(401)
            try:
                key = client.get_signing_key_from_jwt(token)
                jwt.decode(token, key, algorithms=_RS256, audience=audience, leeway=30)
            except jwt.PyJWTError:
                abort(401)
            return view(*args, **kwargs)

        return protected

    return _protected(protect)


def atlassian_route(keys_url: str, audience: str) -> Flask:
    """atlassian-jwt-auth's ``requires_asap``, with a retriever that has the key in memory."""
    key = PyJWK(_keys(keys_url)["keys"][0])
    pem = key.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    class Retriever(BasePublicKeyRetriever):
        """Has the one key."""

        def __init__(self, base_url: str) -> None:
            pass

        def retrieve(self, key_identifier: object, **_: Any) -> Any:
            """The key in PEM, which the library parses once."""
            return pem

    app = _protected(requires_asap)
    app.config["ASAP_VALID_AUDIENCE"] = audience
    app.config["ASAP_VALID_ISSUERS"] = {str(key.key_id).rpartition("/")[0]}
    app.config["ASAP_PUBLICKEY_REPOSITORY"] = keys_url
    app.config["ASAP_KEY_RETRIEVER_CLASS"] = Retriever
    return app


def flask_jwt_extended_route(keys_url: str, audience: str) -> Flask:
    """flask-jwt-extended's ``jwt_required`` with an RS256 key."""
    app = _protected(jwt_required())
    app.config["JWT_ALGORITHM"] = "RS256"
    app.config["JWT_PUBLIC_KEY"] = PyJWK(_keys(keys_url)["keys"][0]).key
    app.config["JWT_DECODE_AUDIENCE"] = audience
    JWTManager(app)
    return app


def _keys(url: str) -> Any:
    return requests.get(url, timeout=10).json()


def _protected(protect: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Flask:
    app = open_route()
    app.view_functions["profile"] = protect(profile)
    return app


ROUTES: Mapping[str, Callable[[str, str], Flask]] = {
    "Authlib ResourceProtector": authlib_route,
    "PyJWT + PyJWKClient": pyjwt_route,
    "atlassian-jwt-auth": atlassian_route,
    "flask-jwt-extended": flask_jwt_extended_route,
}
"""By the name of the library."""
