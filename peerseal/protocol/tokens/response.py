"""Response tokens: that an answer is the callee's, to this very request, and unaltered (docs/protocol.md).

`check_response_claims` checks the shape of the claims; `peerseal.verify.response` checks their values, step by step.
Times are seconds since the epoch.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import b64url, b64url_decode, canonical_json
from peerseal.protocol.tokens.bearer import BLANKS
from peerseal.protocol.tokens.claims import claim, exactly, time_claim

RESPONSE_TYP: Final = "peerseal-response+jwt"
RESPONSE_HEADER: Final = "Peerseal-Response"
"""The header of an answer that carries its token."""
WANT_RESPONSE_HEADER: Final = "Peerseal-Want-Response"
"""The header of a request whose caller asks for a signed answer; its value is `WANTED`."""
WANTED: Final = "1"

RESPONSE_LIFETIME: Final = 60

MAX_CHECKPOINT: Final = 512
"""Bytes of ``cp``, the signed note of a checkpoint, decoded."""

ALWAYS_SIGNED: Final = ("content-type", "content-encoding", "content-range", "location", "etag", "last-modified")
"""Headers that every response token signs. If an answer lacks one of them, its token signs the absence."""

SELECTING: Final = ("range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
"""Headers of a request that choose which answer it gets (RFC 9110 sections 13 and 14). A request that wants a signed
answer binds those that it has. The answer to a request that has another one is not signed: it may have been added on
the way."""

LENGTH: Final = "content-length"
"""It is signed in the answer to HEAD that has it; it may be missing on arrival (RFC 9110 section 9.3.2)."""

_MEMBERS = frozenset(("iss", "aud", "iat", "exp", "req", "status", "content_digest", "headers"))
_OPTIONAL = frozenset(("cp",))
_SHA256 = 32  # bytes
_STATUSES = range(200, 600)  # of final answers (RFC 9110 section 15)


_WRITTEN: Final = "connection content-length date keep-alive server trailer transfer-encoding upgrade"
UNSIGNABLE_HEADERS: Final = frozenset((*_WRITTEN.split(), RESPONSE_HEADER.lower()))
"""Headers of answers that servers and proxies write: an application cannot have them signed."""


@dataclass(frozen=True, slots=True)
class ResponseToken:
    """The claims of a response token: who answers whom, to which request, and with what.

    ``issuer`` and ``audience`` are the service ids of callee and caller. ``request`` is the `request_hash` of the
    request token that is answered. ``content_digest`` is a digest, ``sha-256=:…:``, of the body's bytes as they are
    sent, after content-coding. ``headers`` maps the lower-case names of the signed headers to their values.
    ``checkpoint`` is a signed note of the ledger, in base64url.
    """

    issuer: str
    audience: str
    issued_at: int
    request: str
    status: int
    content_digest: str
    headers: Mapping[str, str] = field(default_factory=dict)
    checkpoint: str | None = None

    def claims(self) -> dict[str, Any]:
        """The JSON payload."""
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": self.audience,
            "iat": self.issued_at,
            "exp": self.issued_at + RESPONSE_LIFETIME,
            "req": self.request,
            "status": self.status,
            "content_digest": self.content_digest,
            "headers": dict(self.headers),
        }
        if self.checkpoint is not None:
            claims["cp"] = self.checkpoint
        return claims

    def payload(self) -> bytes:
        """The claims in canonical JSON. Raises MalformedToken for claims that every verifier refuses."""
        claims = self.claims()
        check_response_claims(claims)
        return canonical_json(claims)


def request_hash(request_token: str) -> str:
    """What a response token says of the request token that it answers: the SHA-256 of the compact JWS, in base64url.
    Raises MalformedToken for a token that is not ASCII."""
    try:
        return b64url(hashlib.sha256(request_token.encode("ascii")).digest())
    except UnicodeEncodeError as error:
        raise MalformedToken("a request token that is not ASCII") from error


def signed_headers(headers: Iterable[tuple[str, str]], names: Collection[str]) -> dict[str, str]:
    """The headers of an answer that ``names`` (in lower case) lists, by lower-case name, as recipients read them. A
    value is without the blanks around it, and several values of one name are joined by a comma (RFC 9110 section 5.3).
    An empty content-type is none."""
    found: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in names:
            text = value.strip(BLANKS)
            found[lower] = f"{found[lower]}, {text}" if lower in found else text
    if found.get("content-type") == "":
        del found["content-type"]
    return found


def check_response_claims(claims: dict[str, Any]) -> None:
    """The shape of a payload: no claim missing or unknown, each of its type. Raises MalformedToken."""
    exactly(claims, _MEMBERS, _OPTIONAL)
    for name in ("iss", "aud", "content_digest"):
        claim(claims, name, str)
    time_claim(claims, "iat")
    time_claim(claims, "exp")
    if len(b64url_decode(claim(claims, "req", str))) != _SHA256:
        raise MalformedToken("req is not a SHA-256")
    if claim(claims, "status", int) not in _STATUSES:
        raise MalformedToken(f"status is not one of {_STATUSES.start} to {_STATUSES.stop - 1}")
    for name, value in claim(claims, "headers", dict).items():
        if not (type(value) is str and name == name.lower()):
            raise MalformedToken("claim headers must map lower-case names to strings")
    if "cp" in claims and not 0 < len(b64url_decode(claim(claims, "cp", str))) <= MAX_CHECKPOINT:
        raise MalformedToken(f"cp is not a checkpoint of 1 to {MAX_CHECKPOINT} bytes")
