"""PyJWT, joserfc, Authlib and jwcrypto read our request tokens with the registry's ``jwks.json``; what they sign with
the same claims, our verifier accepts."""

import json
import warnings
from collections.abc import Callable
from typing import Any
from urllib.request import urlopen

import jwcrypto.common
import jwcrypto.jwk
import jwcrypto.jwt
import jwt
import pytest
from authlib.common.errors import AuthlibBaseError
from joserfc import jws as joserfc_jws
from joserfc import jwt as joserfc_jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, import_key

import peerseal
from peerseal.errors import PeersealError
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.tokens.request import REQUEST_TYP
from tests.judges.conftest import CALLEE, Caller, accepted, tampered
from tests.support.stack import DOMAIN

with warnings.catch_warnings():
    import authlib.deprecate  # sets a filter of its own when it is imported

    warnings.simplefilter("ignore", authlib.deprecate.AuthlibDeprecationWarning)  # its JOSE has become joserfc
    from authlib.jose import JsonWebKey, JsonWebToken

AUDIENCE = f"{DOMAIN}/{CALLEE}"
ALGORITHMS = ["RS256", "ES256"]

pytestmark = pytest.mark.e2e


def key_set(caller: Caller) -> dict[str, Any]:
    with urlopen(caller.jwks_url, timeout=10) as answer:
        assert answer.headers["Content-Type"].partition(";")[0] in ("application/json", "application/jwk-set+json")
        keys: dict[str, Any] = json.load(answer)
        return keys


def by_pyjwt(caller: Caller, token: str) -> dict[str, Any]:
    keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(key_set(caller)).keys}
    key = keys[jwt.get_unverified_header(token)["kid"]]
    options = {"require": ["exp", "iat", "nbf", "aud", "iss", "sub", "jti"]}
    found: dict[str, Any] = jwt.decode(
        token, key, algorithms=ALGORITHMS, audience=AUDIENCE, issuer=caller.identity.id, options=options
    )
    return found


def by_pyjwt_over_http(caller: Caller, token: str) -> dict[str, Any]:
    key = jwt.PyJWKClient(caller.jwks_url).get_signing_key_from_jwt(token)
    found: dict[str, Any] = jwt.decode(token, key, algorithms=ALGORITHMS, audience=AUDIENCE, issuer=caller.identity.id)
    return found


def by_joserfc(caller: Caller, token: str) -> dict[str, Any]:
    decoded = joserfc_jwt.decode(token, KeySet.import_key_set(key_set(caller)), algorithms=ALGORITHMS)  # type: ignore[arg-type]
    assert decoded.header["typ"] == REQUEST_TYP
    essential = {"iss": caller.identity.id, "aud": AUDIENCE, "sub": caller.identity.id}
    asked: Any = {name: {"essential": True, "value": value} for name, value in essential.items()}
    joserfc_jwt.JWTClaimsRegistry(**asked, exp={"essential": True}).validate(decoded.claims)
    return decoded.claims


def by_authlib(caller: Caller, token: str) -> dict[str, Any]:
    options = {"iss": {"essential": True, "value": caller.identity.id}, "aud": {"essential": True, "value": AUDIENCE}}
    keys = JsonWebKey.import_key_set(key_set(caller))
    found = JsonWebToken(ALGORITHMS).decode(token, keys, claims_options=options)
    found.validate()
    return dict(found)


def by_jwcrypto(caller: Caller, token: str) -> dict[str, Any]:
    keys = jwcrypto.jwk.JWKSet.from_json(json.dumps(key_set(caller)))
    expected = {"iss": caller.identity.id, "sub": caller.identity.id, "aud": AUDIENCE, "exp": None, "iat": None}
    judged = jwcrypto.jwt.JWT(jwt=token, key=keys, algs=ALGORITHMS, check_claims=expected)
    found: dict[str, Any] = json.loads(judged.claims)
    return found


REFUSALS = (jwt.InvalidTokenError, JoseError, AuthlibBaseError, jwcrypto.common.JWException)
JUDGES = [by_pyjwt, by_pyjwt_over_http, by_joserfc, by_authlib, by_jwcrypto]


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.thorough
def test_a_request_token_verifies_against_the_registrys_jwks(
    judge: Callable[[Caller, str], dict[str, Any]], caller: Caller
) -> None:
    claims = judge(caller, caller.token())
    assert claims["iss"] == claims["sub"] == caller.identity.id
    assert claims["aud"] == AUDIENCE
    assert claims["method"] == "POST"


@pytest.mark.parametrize("judge", JUDGES)
def test_a_tampered_token_does_not(judge: Callable[[Caller, str], dict[str, Any]], caller: Caller) -> None:
    with pytest.raises(REFUSALS):
        judge(caller, tampered(caller.token()))


def signed_by_pyjwt(caller: Caller) -> str:
    return jwt.encode(
        caller.claims(), caller.key.to_pem(), algorithm=caller.key.public.alg, headers=dict(caller.header)
    )


def signed_by_joserfc(caller: Caller) -> str:
    key = import_key(caller.key.to_pem(), "RSA" if caller.key.public.alg == "RS256" else "EC")
    return joserfc_jws.serialize_compact(
        dict(caller.header), canonical_json(caller.claims()), key, algorithms=ALGORITHMS
    )


def signed_by_authlib(caller: Caller) -> str:
    token: bytes = JsonWebToken(ALGORITHMS).encode(dict(caller.header), caller.claims(), caller.key.to_pem())
    return token.decode()


def signed_by_jwcrypto(caller: Caller) -> str:
    token = jwcrypto.jwt.JWT(header=dict(caller.header), claims=caller.claims())
    token.make_signed_token(jwcrypto.jwk.JWK.from_pem(caller.key.to_pem()))
    signed: str = token.serialize()
    return signed


@pytest.mark.parametrize("sign", [signed_by_pyjwt, signed_by_joserfc, signed_by_authlib, signed_by_jwcrypto])
def test_what_another_library_signs_is_accepted(
    sign: Callable[[Caller], str], caller: Caller, verifier: peerseal.Verifier
) -> None:
    token = sign(caller)
    peer = accepted(verifier, token)
    assert (peer.id, peer.kid) == (caller.identity.id, caller.kid)
    with pytest.raises(PeersealError) as caught:
        accepted(verifier, token)
    assert caught.value.code == "replayed"


def test_a_plain_library_token_is_not_enough(caller: Caller, verifier: peerseal.Verifier) -> None:
    """PyJWT's own header (``typ: JWT``) is another kind of token."""
    token = jwt.encode(
        caller.claims(), caller.key.to_pem(), algorithm=caller.key.public.alg, headers={"kid": caller.kid}
    )
    with pytest.raises(PeersealError) as caught:
        accepted(verifier, token)
    assert caught.value.code == "wrong_type"
