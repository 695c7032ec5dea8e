"""Transaction tokens (docs/protocol.md, draft-ietf-oauth-transaction-tokens): for which user a chain of calls is made.

The edge service that authenticated the user mints one token for each transaction. The token is sent on unchanged, and
each request token binds it by `transaction_hash`. `TransactionToken.read` checks the shape of the claims;
`peerseal.verify.transaction` checks their values."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import b64url, canonical_json, strict_json_object
from peerseal.protocol.names import check_scope
from peerseal.protocol.plain import plain_text
from peerseal.protocol.tokens.claims import claim, exactly, time_claim

TRANSACTION_TYP: Final = "txntoken+jwt"
TRANSACTION_LIFETIME: Final = 300
TRANSACTION_LIFETIME_CAP: Final = 900
MAX_FACTS: Final = 1024
"""Bytes of ``tctx`` and of ``rctx``, as canonical JSON."""
MAX_ID: Final = 200
"""Characters of a transaction's or event's id."""
ID_PATTERN: Final = re.compile(rf"[\x21-\x7e]{{1,{MAX_ID}}}")
"""The pattern of a transaction's or event's id: visible ASCII."""
MAX_USER: Final = 512
"""Characters of the user's name (OpenID Connect Core section 2 has 255; a CI system's may be longer)."""

_MEMBERS = frozenset(("iss", "aud", "sub", "txn", "scope", "tctx", "rctx", "req_wl", "iat", "exp"))


@dataclass(frozen=True, slots=True)
class TransactionToken:
    """The claims of a transaction token. ``issuer`` is the minting service's id, ``audience`` the trust domain.

    ``facts`` (``tctx``) are data, such as an order's id, that no later service of the chain may change.
    ``authentication`` (``rctx``) says how the user was authenticated: the issuer and the ``jti`` of the user's token.
    ``workload`` (``req_wl``) is the service that asked for the transaction token. Times are seconds since the epoch.
    """

    issuer: str
    audience: str
    user: str
    id: str
    scopes: frozenset[str]
    workload: str
    issued_at: int
    expires_at: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    authentication: Mapping[str, Any] = field(default_factory=dict)

    def claims(self) -> dict[str, Any]:
        """The payload. Raises MalformedToken for claims that a verifier refuses."""
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": self.user,
            "txn": self.id,
            "scope": " ".join(sorted(self.scopes)),
            "tctx": dict(self.facts),
            "rctx": dict(self.authentication),
            "req_wl": self.workload,
            "iat": self.issued_at,
            "exp": self.expires_at,
        }
        type(self).read(canonical_json(claims))  # refuses what a verifier would refuse
        return claims

    @classmethod
    def read(cls, payload: bytes) -> Self:
        """From a payload of the right shape. Raises MalformedToken."""
        claims = strict_json_object(payload)
        exactly(claims, _MEMBERS)
        return cls(
            issuer=claim(claims, "iss", str),
            audience=claim(claims, "aud", str),
            user=check_user(claim(claims, "sub", str)),
            id=id_claim(claims, "txn"),
            scopes=_scopes(claim(claims, "scope", str)),
            workload=claim(claims, "req_wl", str),
            issued_at=time_claim(claims, "iat"),
            expires_at=time_claim(claims, "exp"),
            facts=small_object_claim(claims, "tctx"),
            authentication=small_object_claim(claims, "rctx"),
        )


def transaction_hash(token: str) -> str:
    """The SHA-256 of a transaction token in base64url; the request token of the same request has it as ``tth``.
    Raises MalformedToken for a text that is no token."""
    text = plain_text(token)
    if text is None or not text.isascii():
        raise MalformedToken("the transaction token is not a text, or not ASCII")
    return b64url(hashlib.sha256(text.encode("ascii")).digest())


def check_user(name: str) -> str:
    """The user's name itself. Raises MalformedToken for one that is empty, too long or not printable: a database
    refuses NUL in a text, and a line break would forge a line of a log."""
    text = plain_text(name)
    if text is None or not (0 < len(text) <= MAX_USER and text.isprintable()):
        raise MalformedToken(f"a user's name is empty, longer than {MAX_USER} characters, or not printable")
    return text


def id_claim(claims: Mapping[str, Any], name: str) -> str:
    """An id: visible ASCII, so that logs and headers can hold it unchanged. Raises MalformedToken."""
    text = claim(claims, name, str)
    if not ID_PATTERN.fullmatch(text):
        raise MalformedToken(f"claim {name} is empty, longer than {MAX_ID} characters, or not visible ASCII")
    return text


def small_object_claim(claims: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object of MAX_FACTS bytes at most. Raises MalformedToken."""
    facts = claim(claims, name, dict)
    if len(canonical_json(facts)) > MAX_FACTS:
        raise MalformedToken(f"claim {name} is longer than {MAX_FACTS} bytes")
    return facts


def _scopes(text: str) -> frozenset[str]:
    """Space-delimited scopes (RFC 6749 section 3.3), perhaps none; each once, in any order."""
    scopes = [check_scope(scope) for scope in text.split(" ")] if text else []
    if len(set(scopes)) != len(scopes):
        raise MalformedToken("a scope is repeated")
    return frozenset(scopes)
