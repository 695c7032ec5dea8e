"""Request tokens: who makes which call (docs/protocol.md). Times are seconds since the epoch.

`check_request_claims` checks the shape of the claims; `peerseal.verify.request` checks their values, step by step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import b64url_decode, canonical_json, strict_json_object
from peerseal.protocol.plain import kind_of
from peerseal.protocol.tokens.claims import (
    JTI,
    LATEST_TIME,
    SECONDS,
    TEXT,
    TEXTS,
    canonical_object,
    check_jti,
    claim,
    exactly,
    texts,
    wrong_type_error,
)

REQUEST_TYP: Final = "peerseal-request+jwt"

REQUEST_LIFETIME = 60
REQUEST_LIFETIME_CAP = 300

MAX_CTX = 1024
"""Bytes of ``ctx``, the application's data, as canonical JSON."""

ALWAYS_BOUND = ("content-type", "content-encoding")
"""Headers that every request token binds, since they say how the body is read. If a request lacks one of them, its
token binds the absence: a request that has it is refused."""

_REQUEST_MEMBERS = (
    "iss",
    "sub",
    "aud",
    "jti",
    "method",
    "target_digest",
    "content_digest",
    "iat",
    "nbf",
    "exp",
    "headers",
)
_TIMES = ("iat", "nbf", "exp")
_TEMPLATE = (
    '{"aud":"%s","content_digest":"%s","exp":%d,"headers":{},"iat":%d,"iss":"%s","jti":"%s","method":"%s","nbf":%d,'
    '"sub":"%s","target_digest":"%s"}'
)
_TYPES = (str, str, int, int, str, str, str, int, str, str)  # of its values
_QUOTATION_MARKS = _TEMPLATE.count('"')
_request_values = itemgetter(*_REQUEST_MEMBERS)
_REQUEST_OPTIONAL = frozenset(("tth", "ctx", "cp"))

_USUAL = canonical_object(
    {
        "aud": TEXT,
        "content_digest": TEXT,
        "exp": SECONDS,
        "headers": TEXTS,
        "iat": SECONDS,
        "iss": TEXT,
        "jti": JTI,
        "method": TEXT,
        "nbf": SECONDS,
        "sub": TEXT,
        "target_digest": TEXT + r'(?:,"tth":"([A-Za-z0-9_-]{42}[AEIMQUYcgkosw048])")?',
    }
)


@dataclass(frozen=True, slots=True)
class RequestToken:
    """The claims of a request token: who calls whom, and for exactly which request.

    ``issuer`` and ``audience`` are service ids. ``target_digest`` and ``content_digest`` are digests, ``sha-256=:…:``,
    of the origin-form request-target and of the body's bytes. ``headers`` maps the lower-case names of the bound
    headers to their values. ``tth`` is the `transaction_hash` of the request's transaction token, None if it has none.
    ``ctx`` is data of the caller's application. ``cp`` is the newest checkpoint that the caller believes
    (`peerseal.protocol.ledger.split_view`).
    """

    issuer: str
    audience: str
    issued_at: int
    not_before: int
    expires_at: int
    jti: str
    method: str
    target_digest: str
    content_digest: str
    headers: Mapping[str, str] = field(default_factory=dict)
    tth: str | None = None
    ctx: Mapping[str, Any] | None = None
    cp: str | None = None

    def claims(self) -> dict[str, Any]:
        """The JSON payload. Raises as `plain_ctx` for a ``ctx`` that does not fit."""
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": self.issuer,
            "aud": self.audience,
            "iat": self.issued_at,
            "nbf": self.not_before,
            "exp": self.expires_at,
            "jti": self.jti,
            "method": self.method,
            "target_digest": self.target_digest,
            "content_digest": self.content_digest,
            "headers": dict(self.headers),
        }
        if self.tth is not None:
            claims["tth"] = self.tth
        if self.ctx is not None:
            claims["ctx"] = plain_ctx(self.ctx)
        if self.cp is not None:
            claims["cp"] = self.cp
        return claims

    def payload(self) -> bytes:
        """The claims in canonical JSON. Raises as `claims`, and ValueError for values that JSON lacks.

        A template writes most tokens, in a fifth of the time: those without headers, ``tth``, ``ctx`` and ``cp`` whose
        texts are ASCII and need no escapes.
        """
        values = (
            self.audience,
            self.content_digest,
            self.expires_at,
            self.issued_at,
            self.issuer,
            self.jti,
            self.method,
            self.not_before,
            self.issuer,
            self.target_digest,
        )
        bare = self.ctx is None and self.tth is None and self.cp is None
        if bare and type(self.headers) is dict and not self.headers and tuple(map(type, values)) == _TYPES:
            text = _TEMPLATE % values
            # As many quotation marks as the template has: no text holds one.
            if text.isascii() and text.isprintable() and "\\" not in text and text.count('"') == _QUOTATION_MARKS:
                return text.encode("ascii")
        return canonical_json(self.claims())


def plain_ctx(ctx: Mapping[str, Any]) -> dict[str, Any]:
    """A plain copy of ``ctx``, as a verifier reads it. Raises ValueError where it is no mapping or longer than
    MAX_CTX, MalformedToken where it is nested deeper than any verifier reads, and the errors of json for values that
    JSON cannot express."""
    if not isinstance(ctx, Mapping):
        raise ValueError(f"ctx is a mapping, and this is {kind_of(ctx)}")
    text = canonical_json(dict(ctx))
    if len(text) > MAX_CTX:
        raise ValueError(f"ctx is longer than {MAX_CTX} bytes")
    return strict_json_object(text)  # do not sign what a verifier would refuse


def check_request_claims(claims: dict[str, Any]) -> None:
    """Step 2 for a request token's payload: no claim missing or unknown, each of its type. Raises MalformedToken.

    It checks in place and builds nothing: it runs on every request.
    """
    if type(claims) is not dict:
        raise MalformedToken(f"claims are an object, and this is {kind_of(claims)}")
    try:
        iss, sub, aud, jti, method, target, content, iat, nbf, exp, headers = _request_values(claims)
    except KeyError as error:
        raise MalformedToken(f"claim {error} is missing") from error
    if len(claims) != len(_REQUEST_MEMBERS):
        _check_optional_claims(claims)
    if not (
        (type(iat) is type(nbf) is type(exp) is int and type(headers) is dict)
        and (type(iss) is type(sub) is type(aud) is type(jti) is str)
        and (type(method) is type(target) is type(content) is str)
    ):
        raise wrong_type_error(claims, _TIMES, ("headers", "ctx"))
    if not (0 <= iat <= LATEST_TIME and 0 <= nbf <= LATEST_TIME and 0 <= exp <= LATEST_TIME):
        raise MalformedToken(f"iat, nbf or exp is not a time of 0 to {LATEST_TIME}")
    check_jti(jti)
    for name, value in headers.items():
        if not (type(value) is type(name) is str and name == name.lower()):
            raise MalformedToken("claim headers must map lower-case names to strings")


def usual_request_claims(payload: bytes) -> dict[str, Any] | None:
    """The claims of a payload as our own signers write it: canonical JSON, ASCII without escapes, no ``ctx`` and
    no ``cp``. None for any other payload.

    It gives what `strict_json_object` and `check_request_claims` give together, in a third of their time.
    """
    found = _USUAL.fullmatch(str(payload, "latin-1"))
    if found is None:
        return None
    aud, content, exp, members, iat, iss, jti, method, nbf, sub, target_digest, tth = found.groups()
    headers = texts(members)
    if headers is None or not all(map(str.islower, headers)):
        return None
    claims = {
        "aud": aud,
        "content_digest": content,
        "exp": int(exp),
        "headers": headers,
        "iat": int(iat),
        "iss": iss,
        "jti": jti,
        "method": method,
        "nbf": int(nbf),
        "sub": sub,
        "target_digest": target_digest,
    }
    if tth is not None:
        claims["tth"] = tth
    return claims


def _check_optional_claims(claims: dict[str, Any]) -> None:
    exactly(claims, frozenset(_REQUEST_MEMBERS), _REQUEST_OPTIONAL)
    if "tth" in claims and len(b64url_decode(claim(claims, "tth", str))) != 32:
        raise MalformedToken("tth is not a SHA-256")
    if "ctx" in claims and len(canonical_json(claim(claims, "ctx", dict))) > MAX_CTX:
        raise MalformedToken(f"ctx is longer than {MAX_CTX} bytes")
    if "cp" in claims:
        claim(claims, "cp", str)  # what it says is compared later, and refuses no request
