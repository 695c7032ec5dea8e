"""Request tokens made with a key alone, for callers without an identity."""

import time
from collections.abc import Callable

from peerseal.protocol import jose
from peerseal.protocol.encoding import canonical_json, digest_header
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import service_id, split_kid
from peerseal.protocol.tokens.claims import new_jti
from peerseal.protocol.tokens.request import REQUEST_LIFETIME, REQUEST_TYP, RequestToken

AUDIENCE = "resource-service"
TARGET = "/profiles/42"


def signed_request(kid: str, key: KeyPair, domain: str) -> str:
    """A token for a GET of TARGET at AUDIENCE."""
    return request_token(kid, key.public.alg, key.sign, domain)


def request_token(kid: str, alg: str, sign: Callable[[bytes], bytes], domain: str) -> str:
    """The same with a signature by ``sign``."""
    return token_of(kid, alg, sign, service_id(domain, AUDIENCE), int(time.time()), ("GET", TARGET))


def token_of(
    kid: str,
    alg: str,
    sign: Callable[[bytes], bytes],
    audience: str,
    now: int,
    call: tuple[str, str],
    body: bytes = b"",
) -> str:
    """A token for any call (method and target), made at that time."""
    method, target = call
    claims = RequestToken(
        issuer=split_kid(kid)[0],
        audience=audience,
        issued_at=now,
        not_before=now,
        expires_at=now + REQUEST_LIFETIME,
        jti=new_jti(),
        method=method,
        target_digest=digest_header(target.encode("ascii")),
        content_digest=digest_header(body),
    ).claims()
    header = jose.encode_header(jose.Header(alg, kid, REQUEST_TYP))
    return jose.compact(header, canonical_json(claims), sign)
