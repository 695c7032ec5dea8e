"""Tokens as an attacker or a malicious service would send them, made with the SDK's protocol functions."""

import time

from peerseal.protocol import jose
from peerseal.protocol.encoding import canonical_json, digest_header
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid
from peerseal.protocol.tokens.claims import new_jti
from peerseal.protocol.tokens.request import REQUEST_LIFETIME, REQUEST_TYP, RequestToken


def forged_token(issuer: str, audience: str, *, method: str, target: str) -> str:
    """A correct request token in the name of ``issuer``, signed with a new, unregistered key."""
    key = KeyPair.generate()
    now = int(time.time())
    token = RequestToken(
        issuer=issuer,
        audience=audience,
        issued_at=now,
        not_before=now,
        expires_at=now + REQUEST_LIFETIME,
        jti=new_jti(),
        method=method,
        target_digest=digest_header(target.encode("ascii")),
        content_digest=digest_header(b""),
    )
    header = jose.Header(key.public.alg, make_kid(issuer, key.public.thumbprint), REQUEST_TYP)
    return jose.compact(jose.encode_header(header), canonical_json(token.claims()), key.sign)
