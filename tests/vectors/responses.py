"""Vectors for response tokens: an answer as it arrives, and the request token that it answers."""

from typing import Any, Final

from peerseal.protocol.encoding import DIGEST_OF_NOTHING, b64url, digest_header
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.tokens.request import REQUEST_TYP
from peerseal.protocol.tokens.response import LENGTH, RESPONSE_TYP, request_hash
from tests.vectors.requests import BILLING
from tests.vectors.requests import token as request_token
from tests.vectors.world import (
    ABSENT,
    CALLEE,
    CALLER,
    DOMAIN,
    NOW,
    STRANGER,
    Vectors,
    changed,
    ec_key,
    header_of,
    jws,
    listed,
    rsa_key,
)

BODY: Final = b'{"id": 7}'
HEADERS: Final = {"content-type": "application/json", "etag": '"7"'}
DATE: Final = "Thu, 01 Jan 1970 00:00:00 GMT"
REQUEST: Final = request_token()


def claims(issuer: str = CALLEE, **changes: Any) -> dict[str, Any]:
    """The claims of an honest token for the answer of the defaults, changed."""
    honest = {
        "iss": issuer,
        "aud": CALLER,
        "iat": NOW,
        "exp": NOW + 60,
        "req": request_hash(REQUEST),
        "status": 200,
        "content_digest": digest_header(BODY),
        "headers": dict(HEADERS),
    }
    return changed(honest, changes)


def token(key: KeyPair | None = None, owner: str = CALLEE, **changes: Any) -> str:
    """A token with changed claims, signed like an honest one."""
    key = key or ec_key("callee")
    return jws(header_of(key, owner, RESPONSE_TYP), claims(owner, **changes), key.sign)


def headed(**changes: Any) -> str:
    """A token with a changed header, signed like an honest one."""
    key = ec_key("callee")
    return jws(header_of(key, CALLEE, RESPONSE_TYP, **changes), claims(), key.sign)


def responses() -> Vectors:
    """The whole file."""
    made = Vectors("response", "Response tokens and the answers that they are for.", _believed(), _caller())
    for part in (_honest, _form, _signer, _parties, _times, _binding):
        part(made)
    return made


def _caller() -> dict[str, Any]:
    """The service that called, its request token, and the answer that it has received."""
    return {
        "now": NOW,
        "domain": DOMAIN,
        "caller": CALLER,
        "audience": CALLEE,
        "request_token": REQUEST,
        "signed_headers": [],
        "status": 200,
        "body": b64url(BODY),
        "headers": dict(HEADERS),
    }


def _believed() -> list[Any]:
    """The keys that the caller believes."""
    return [
        listed(CALLEE, ec_key("callee")),
        listed(CALLEE, rsa_key("callee")),
        listed(CALLEE, ec_key("callee-retired"), "retired", until=NOW - 120),
        listed(CALLEE, ec_key("callee-revoked"), "revoked"),
        listed(CALLEE, ec_key("callee-distant"), "unavailable"),
        listed(BILLING, ec_key("billing")),
    ]


def _honest(made: Vectors) -> None:
    made.good("es256", "an honest token by an EC key", claims(), token=token())
    made.good("rs256", "an honest token by an RSA key", claims(), token=token(rsa_key("callee")))
    cp = b64url(b"a" * 512)
    made.good("checkpoint", "the longest checkpoint", claims(cp=cp), token=token(cp=cp))
    empty: dict[str, Any] = {"status": 204, "content_digest": DIGEST_OF_NOTHING, "headers": {}}
    made.good(
        "no-content", "an answer without a body", claims(**empty), token=token(**empty), status=204, body="", headers={}
    )
    rich = {**HEADERS, "x-total": "7"}
    made.good(
        "more-headers", "a header that the callee bound", token=token(headers=rich), headers={**rich, "date": "x"}
    )
    made.good("blanks", "blanks around a value", token=token(), headers={**HEADERS, "etag": ' "7" '})
    part: dict[str, Any] = {"status": 206, "headers": {**HEADERS, "content-range": "bytes 0-8/20"}}
    made.good("part", "a part of a body", token=token(**part), **part)
    sized = token(headers={**HEADERS, LENGTH: "9"}, content_digest=DIGEST_OF_NOTHING)
    made.good("head-no-length", "an answer to HEAD that lost its length", token=sized, body="")
    same = {**HEADERS, LENGTH: "9"}
    made.good("head-length", "an answer to HEAD with its length", token=sized, body="", headers=same)
    refusal: dict[str, Any] = {"status": 403, "headers": {"content-type": "application/problem+json"}}
    made.good("refusal", "a refusal of a verified caller", token=token(**refusal), **refusal)


def _form(made: Vectors) -> None:
    good, code = token(), "malformed_response"
    head, payload, _ = good.split(".")
    bad = {
        "empty": ("no text at all", ""),
        "two-segments": ("the signature is missing", f"{head}.{payload}"),
        "two-values": ("the header came twice", f"{good}, {good}"),
        "padding": ("base64url with padding", f"{good}=="),
        "request-token": ("a request token", REQUEST),
        "retyped": ("the type of a request token", headed(typ=REQUEST_TYP)),
        "none": ("no algorithm", headed(alg="none")),
        "hs256": ("an algorithm with a shared secret", headed(alg="HS256")),
        "no-kid": ("no kid", headed(kid=ABSENT)),
    }
    for name, (comment, text) in bad.items():
        made.bad(name, code, comment, token=text)
    shapes: dict[str, dict[str, Any]] = {
        "unknown-claim": {"sub": CALLEE},
        "no-status": {"status": ABSENT},
        "status-text": {"status": "200"},
        "status-true": {"status": True},
        "status-informational": {"status": 103},
        "status-large": {"status": 600},
        "req-short": {"req": "AAAA"},
        "headers-list": {"headers": []},
        "headers-upper-case": {"headers": {"Content-Type": "application/json"}},
        "iat-fraction": {"iat": NOW + 0.5},
        "checkpoint-long": {"cp": b64url(b"a" * 513)},
        "checkpoint-empty": {"cp": ""},
    }
    for name, changes in shapes.items():
        made.bad(name, code, "claims of another shape", token=token(**changes))
    made.bad("unsigned", "unsigned_response", "the answer has no token", token=None)


def _signer(made: Vectors) -> None:
    made.bad("no-signature", "bad_signature", "the signature is empty", token=token().rpartition(".")[0] + ".")
    made.bad("stolen-kid", "bad_signature", "signed with another key than its kid names", token=_by("stranger"))
    made.bad("unknown-key", "unknown_key", "the callee has no such key", token=token(ec_key("callee-unknown")))
    made.bad("revoked-key", "revoked_key", "a revoked key of the callee", token=token(ec_key("callee-revoked")))
    made.bad("retired-key", "expired", "signed after the key was retired", token=token(ec_key("callee-retired")))
    code = "trust_unavailable"
    made.bad("distant-key", code, "the registry cannot be asked", token=token(ec_key("callee-distant")))


def _by(name: str) -> str:
    return jws(header_of(ec_key("callee"), CALLEE, RESPONSE_TYP), claims(), ec_key(name).sign)


def _parties(made: Vectors) -> None:
    code = "wrong_response"
    made.bad("other-request", code, "the answer to another request", token=token(req=request_hash("a.b.c")))
    made.bad("other-caller", code, "an answer to another caller", token=token(aud=BILLING))
    made.bad("other-issuer", code, "in another service's name", token=token(iss=BILLING))
    made.bad("other-service", code, "signed by another service", token=token(ec_key("billing"), BILLING))
    made.bad("other-domain", code, "signed by a service of another domain", token=token(ec_key("stranger"), STRANGER))


def _times(made: Vectors) -> None:
    wrong: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("yesterday", "an answer of yesterday", {"iat": NOW - 86_400, "exp": NOW - 86_340}),
        ("tomorrow", "an answer of tomorrow", {"iat": NOW + 86_400, "exp": NOW + 86_460}),
        ("long-life", "it lives longer than 60 seconds", {"exp": NOW + 61}),
    )
    for name, comment, changes in wrong:
        made.bad(name, "expired", comment, token=token(**changes))
    early: dict[str, Any] = {"iat": NOW - 85, "exp": NOW - 25}
    made.good("leeway", "ended within the leeway", claims(**early), token=token(**early))


def _binding(made: Vectors) -> None:
    code = "wrong_binding"
    for name, comment, arrived in (
        ("status", "another status", {"status": 201}),
        ("body", "another body", {"body": b64url(b"{}")}),
        ("cut", "the body was cut", {"body": b64url(BODY[:-1])}),
        ("type", "another content type", {"headers": {**HEADERS, "content-type": "text/html"}}),
        ("no-etag", "a header is gone", {"headers": {"content-type": "application/json"}}),
        ("weak-etag", "a proxy made the ETag weak", {"headers": {**HEADERS, "etag": 'W/"7"'}}),
        ("coding", "a proxy compressed the body", {"headers": {**HEADERS, "content-encoding": "gzip"}}),
        ("range", "a part of a body, as it is said", {"headers": {**HEADERS, "content-range": "bytes 0-8/20"}}),
        ("date", "a time of change was added", {"headers": {**HEADERS, "last-modified": DATE}}),
        ("location", "a redirect was added", {"headers": {**HEADERS, "location": "/"}}),
        (
            "required",
            "a required header is not signed",
            {"signed_headers": ["x-a"], "headers": {**HEADERS, "x-a": "1"}},
        ),
    ):
        made.bad(name, code, comment, token=token(), **arrived)
    sized: dict[str, Any] = {"token": token(headers={**HEADERS, LENGTH: "9"}, content_digest=DIGEST_OF_NOTHING)}
    longer = {**HEADERS, LENGTH: "99"}
    made.bad("head-other-length", code, "an answer to HEAD with another length", body="", headers=longer, **sized)
    made.bad("signed-absent", code, "a signed header did not arrive", token=token(headers={**HEADERS, "x-a": "1"}))
