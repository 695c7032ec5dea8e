"""Vectors for request tokens: every step of the verification, in its order."""

from collections.abc import Iterator
from typing import Any, Final

from peerseal.protocol.encoding import b64url, canonical_json, digest_header
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import Checkpoint, sign_checkpoint
from peerseal.protocol.tokens.request import REQUEST_TYP
from tests.vectors.world import (
    ABSENT,
    CALLEE,
    CALLER,
    DAY,
    DOMAIN,
    NOW,
    REGISTRY,
    STRANGER,
    Vectors,
    changed,
    ec_key,
    header_of,
    jti,
    jws,
    kid_of,
    ledger_key,
    listed,
    object_of,
    rsa_key,
    seed,
)

METHOD: Final = "POST"
TARGET: Final = "/orders/7?dry=1&full=yes"
BODY: Final = b'{"item": 7}'
HEADERS: Final = {"content-type": "application/json"}
SCOPE: Final = "orders:write"
BILLING: Final = f"{DOMAIN}/billing"
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def claims(issuer: str = CALLER, **changes: Any) -> dict[str, Any]:
    """The claims of an honest token for the request of the defaults, changed."""
    honest = {
        "iss": issuer,
        "sub": issuer,
        "aud": CALLEE,
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 60,
        "jti": jti("request"),
        "method": METHOD,
        "target_digest": digest_header(TARGET.encode()),
        "content_digest": digest_header(BODY),
        "headers": dict(HEADERS),
    }
    return changed(honest, changes)


def token(key: KeyPair | None = None, owner: str = CALLER, **changes: Any) -> str:
    """A token with changed claims, signed like an honest one."""
    key = key or ec_key("caller")
    return jws(header_of(key, owner, REQUEST_TYP), claims(owner, **changes), key.sign)


def headed(key: KeyPair | None = None, **changes: Any) -> str:
    """A token with a changed header, signed like an honest one."""
    key = key or ec_key("caller")
    return jws(header_of(key, CALLER, REQUEST_TYP, **changes), claims(), key.sign)


def written(payload: bytes) -> str:
    """A token with this payload, byte for byte, signed like an honest one."""
    key = ec_key("caller")
    return jws(header_of(key, CALLER, REQUEST_TYP), payload, key.sign)


def for_request(method: str = METHOD, target: str = TARGET, body: bytes = BODY, **given: Any) -> dict[str, Any]:
    """The input and a token for that request; ``headers`` are bound."""
    headers = given.get("headers", HEADERS)
    digests: dict[str, Any] = {"target_digest": digest_header(target.encode()), "content_digest": digest_header(body)}
    made = token(method=method, headers=dict(headers), **digests)
    return {"token": made, "method": method, "target": target, "body": b64url(body), "headers": headers}


def callee() -> dict[str, Any]:
    """The service that verifies, and the request that it has received."""
    return {
        "now": NOW,
        "domain": DOMAIN,
        "audience": CALLEE,
        "allow": {CALLER: [SCOPE, "orders:read"], BILLING: ["orders:read"]},
        "policy": None,
        "minters": [],
        "derived_scopes": [],
        "seen": [],
        "method": METHOD,
        "target": TARGET,
        "body": b64url(BODY),
        "headers": dict(HEADERS),
        "scope": SCOPE,
    }


def told_checkpoint() -> str:
    """The ``cp`` of an honest caller."""
    return b64url(sign_checkpoint(Checkpoint(DOMAIN, 300, seed("root")), ledger_key()).encode())


def believed() -> list[Any]:
    """The keys that the callee believes."""
    return [
        listed(CALLER, ec_key("caller")),
        listed(CALLER, rsa_key("caller")),
        listed(CALLER, ec_key("retired"), "retired", until=NOW - 120),
        listed(CALLER, ec_key("young"), since=NOW - 10),
        listed(CALLER, ec_key("revoked"), "revoked"),
        listed(CALLER, ec_key("distant"), "unavailable"),
        listed(BILLING, ec_key("billing")),
        listed(STRANGER, ec_key("stranger")),
    ]


def requests() -> Vectors:
    """The whole file."""
    made = Vectors("request", "Request tokens and the requests that they are for.", believed(), callee())
    for part in (_syntax, _json, _header, _kid, _shape, _caller, _signature, _parties, _times, _binding, _rights):
        part(made)
    _order(made)
    return made


def _syntax(made: Vectors) -> None:
    good = token()
    head, payload, signature = good.split(".")
    made.good("es256", "an honest token by an EC key", claims(), token=good)
    made.good("rs256", "an honest token by an RSA key", claims(), token=token(rsa_key("caller")))
    bad: dict[str, tuple[str, str]] = {
        "empty": ("no text at all", ""),
        "two-segments": ("the signature is missing", f"{head}.{payload}"),
        "four-segments": ("one segment too many", f"{good}.{signature}"),
        "five-segments": ("a JWE in compact form has five", f"{good}..{signature}"),
        "empty-payload": ("the payload is empty", f"{head}..{signature}"),
        "padding": ("base64url with padding", f"{head}.{payload}.{signature}=="),
        "plain-base64": ("a character of plain base64", f"{head}.{payload}.{'+' + signature[1:]}"),
        "trailing-bits": ("the last character has bits that no byte holds", f"{head}.{payload}.{signature[:-1]}B"),
        "white-space-before": ("a blank before the token", f" {good}"),
        "white-space-after": ("a line feed after the token", f"{good}\n"),
        "white-space-inside": ("a blank in the payload", f"{head}.{payload[:8]} {payload[8:]}.{signature}"),
        "not-ascii": ("a letter beyond ASCII", f"{head}.{payload}.é{signature[1:]}"),
        "impossible-length": ("a segment of 4n + 1 characters", f"{head}.{payload}.{signature}AAA"),
        "json-serialisation": ("the JWS JSON serialisation", canonical_json({"payload": payload}).decode()),
        "too-long": ("more than 6,144 characters", token(headers={**HEADERS, "x-long": "a" * 5000})),
    }
    for name, (comment, text) in bad.items():
        made.bad(name, "malformed_token", comment, token=text)
    longest = {**HEADERS, "x-long": "a" * 3_500}
    made.good("long", "a long token below the limit", token=token(headers=longest), headers=longest)


def _json(made: Vectors) -> None:
    text = canonical_json(claims())
    spaced = b' {\t"nbf": %d,\n' % NOW + canonical_json(claims(nbf=ABSENT))[1:] + b"\r\n"
    made.good("other-spelling", "members in another order, with white space: JSON all the same", token=written(spaced))
    escaped = text.replace(b'"POST"', b'"\\u0050OST"')
    made.good("escapes", "an escape in a text stands for its character", token=written(escaped))
    bad: dict[str, tuple[str, bytes]] = {
        "repeated-claim": ("a claim stands twice", b'{"aud":"acme.internal/other",' + text[1:]),
        "repeated-nested": (
            "a member of headers stands twice",
            text.replace(b'"headers":{', b'"headers":{"content-type":"a",'),
        ),
        "repeated-escaped": ("a claim stands twice, once with an escape", b'{"\\u0061ud":"a",' + text[1:]),
        "nan": ("NaN is not JSON", text.replace(b'"iat":%d' % NOW, b'"iat":NaN')),
        "infinity": ("Infinity is not JSON", text.replace(b'"iat":%d' % NOW, b'"iat":Infinity')),
        "out-of-range": ("a number beyond binary64", b'{"ctx":{"a":1e400},' + text[1:]),
        "leading-zero": ("a number with a leading zero", text.replace(b'"iat":', b'"iat":0')),
        "invalid-utf-8": ("a byte that UTF-8 has not", text.replace(b"POST", b"PO\xffST")),
        "byte-order-mark": ("a byte order mark", b"\xef\xbb\xbf" + text),
        "half-a-pair": ("half a surrogate pair", text.replace(b'"POST"', b'"\\ud800"')),
        "trailing-text": ("something follows the object", text + b"{}"),
        "trailing-comma": ("a comma before the end", text[:-1] + b",}"),
        "comment": ("a comment", text[:-1] + b"/* */}"),
        "array": ("an array", b"[" + text + b"]"),
        "text": ("a text", b'"POST"'),
        "null": ("null", b"null"),
        "too-deep": ("33 levels", text[:-1] + b',"ctx":' + b'{"a":' * 31 + b"[]" + b"}" * 31 + b"}"),
        "control-character": ("a line feed in a text", text.replace(b'"POST"', b'"PO\nST"')),
    }
    for name, (comment, payload) in bad.items():
        made.bad(f"json-{name}", "malformed_token", comment, token=written(payload))


def _header(made: Vectors) -> None:
    for typ in ("JWT", "peerseal-event+jwt", "peerseal-proof+jwt", "txntoken+jwt", ""):
        made.bad(f"typ-{typ or 'empty'}", "wrong_type", "another kind of token", token=headed(typ=typ))
    comment = "typ is compared letter by letter"
    made.bad("typ-upper-case", "wrong_type", comment, token=headed(typ=REQUEST_TYP.upper()))
    made.bad("typ-missing", "malformed_token", "no typ", token=headed(typ=ABSENT))
    for alg in ("none", "None", "HS256", "PS256", "RS512", "ES384", "EdDSA", "es256", ""):
        made.bad(f"alg-{alg or 'empty'}", "malformed_token", "neither RS256 nor ES256", token=headed(alg=alg))
    made.bad("alg-missing", "malformed_token", "no alg", token=headed(alg=ABSENT))
    made.bad("alg-number", "malformed_token", "alg is a number", token=headed(alg=256))
    key = rsa_key("caller").public
    unsigned = jws(header_of(ec_key("caller"), CALLER, REQUEST_TYP, alg="none"), claims(), b"")
    made.bad("alg-none-unsigned", "malformed_token", "alg none and no signature", token=unsigned)
    extra: dict[str, Any] = {
        "crit": ["exp"],
        "jku": "https://evil.example/",
        "jwk": dict(key.jwk),
        "x5u": "https://evil.example/",
    }
    extra |= {"x5c": ["MIIB"], "zip": "DEF", "b64": False, "cty": "JWT", "nonce": "1"}
    for name, value in extra.items():
        made.bad(f"header-{name}", "malformed_token", "a member that no header has", token=headed(**{name: value}))
    twice = b'{"alg":"ES256",' + canonical_json(header_of(ec_key("caller"), CALLER, REQUEST_TYP))[1:]
    repeated = jws(twice, claims(), ec_key("caller").sign)
    made.bad("header-repeated", "malformed_token", "alg stands twice", token=repeated)
    made.bad("header-not-an-object", "malformed_token", "a list", token=jws([], claims(), ec_key("caller").sign))


def _kid(made: Vectors) -> None:
    good = kid_of(CALLER, ec_key("caller"))
    thumbprint = good.rpartition("/")[2]
    bad = {
        "thumbprint-only": thumbprint,
        "no-domain": f"client-service/{thumbprint}",
        "no-thumbprint": f"{CALLER}/",
        "short-thumbprint": good[:-1],
        "trailing-bits": good[:-1] + chr(ord(good[-1]) + 1),
        "upper-case": good.replace("acme", "ACME"),
        "traversal": f"{DOMAIN}/../registry/{thumbprint}",
        "escaped": good.replace("/", "%2f", 1),
        "line-feed": f"{good}\n",
        "empty": "",
        "four-parts": f"{DOMAIN}/a/{good}",
        "url": f"https://{good}",
        "underscore": good.replace("client-service", "client_service"),
    }
    for name, kid in bad.items():
        made.bad(f"kid-{name}", "malformed_token", "not a kid", token=headed(kid=kid))
    made.bad("kid-number", "malformed_token", "not a text", token=headed(kid=1))


def _shape(made: Vectors) -> None:
    for name in claims():
        made.bad(f"no-{name}", "malformed_token", f"the claim {name} is missing", token=token(**{name: ABSENT}))
    other: dict[str, Any] = {
        "iat-text": {"iat": str(NOW)},
        "iat-float": {"iat": NOW + 0.5},
        "iat-bool": {"iat": True},
        "iat-negative": {"iat": -1},
        "exp-null": {"exp": None},
        "exp-year-10000": {"exp": 253_402_300_800},
        "nbf-list": {"nbf": [NOW]},
        "aud-list": {"aud": [CALLEE]},
        "iss-number": {"iss": 7},
        "headers-list": {"headers": []},
        "headers-number": {"headers": {"content-type": 7}},
        "headers-upper-case": {"headers": {"Content-Type": "application/json"}},
        "jti-short": {"jti": jti("request")[:-2]},
        "jti-trailing-bits": {"jti": jti("request")[:-1] + "B"},
        "jti-uuid": {"jti": "6ba7b810-9dad-11d1-80b4-00c04fd430c8"},
        "unknown-claim": {"scope": SCOPE},
        "tth-short": {"tth": "AAAA"},
        "ctx-text": {"ctx": "tenant"},
        "ctx-too-long": {"ctx": {"a": "b" * 1017}},
        "ctx-too-long-with-escapes": {"ctx": object_of(1025)},
        "cp-number": {"cp": 7},
        "cp-null": {"cp": None},
        "cp-list": {"cp": [told_checkpoint()]},
    }
    for name, changes in other.items():
        made.bad(name, "malformed_token", "the shape of the claims is wrong", token=token(**changes))
    integral = canonical_json(claims()).replace(b'"iat":%d' % NOW, b'"iat":%d.0' % NOW)
    made.bad("iat-with-fraction", "malformed_token", "1800000000.0 is no JSON integer", token=written(integral))
    exponent = canonical_json(claims()).replace(b'"iat":%d' % NOW, b'"iat":18e8')
    made.bad("iat-with-exponent", "malformed_token", "18e8 is no JSON integer", token=written(exponent))
    made.good("ctx", "data of the application", claims(ctx={"tenant": "a"}), token=token(ctx={"tenant": "a"}))
    made.good("ctx-longest", "1,024 bytes of canonical JSON", token=token(ctx={"a": "b" * 1016}))
    told = told_checkpoint()
    made.good("cp", "the checkpoint that the caller believes", claims(cp=told), token=token(cp=told))
    comment = "what a cp says is compared later, and refuses no request"
    for name, text in {"empty": "", "no-note": "AAAA", "no-base64url": "?", "too-long": "A" * 700}.items():
        made.good(f"cp-{name}", comment, token=token(cp=text))
    made.good("ctx-longest-with-escapes", "1,024 bytes of canonical JSON", token=token(ctx=object_of(1024)))


def _caller(made: Vectors) -> None:
    stranger, ghost = token(ec_key("stranger"), STRANGER), token(ec_key("ghost"))
    made.bad("caller-not-allowed", "caller_not_allowed", "a registered service that may not call", token=stranger)
    made.bad("key-unknown", "unknown_key", "a key that the registry does not know", token=ghost)
    made.bad("key-revoked", "revoked_key", "a revoked key", token=token(ec_key("revoked")))
    comment = "the registry cannot be asked for the key now: it may exist"
    made.bad("key-unavailable", "trust_unavailable", comment, token=token(ec_key("distant")))
    other = token(ec_key("billing"), CALLER)
    made.bad("key-of-another-service", "unknown_key", "a known key under another service's name", token=other)
    made.good("allow-any", "any service of the domain may call", token=stranger, allow={"*": [SCOPE]})
    foreign = token(ec_key("foreign"), "other.internal/client-service")
    comment = "the star stands for the own domain only"
    made.bad("allow-any-foreign", "caller_not_allowed", comment, token=foreign, allow={"*": [SCOPE]})
    named = {"*": [SCOPE], CALLER: ["orders:read"]}
    comment = "a named caller has its own scopes and not those of the star"
    made.bad("allow-named-and-any", "insufficient_scope", comment, token=token(), allow=named)
    policy = {"allow": {BILLING: [SCOPE]}, "restricted": False}
    made.bad("policy-names-others", "caller_not_allowed", "the policy names others", token=token(), policy=policy)
    policy = {"allow": {CALLER: ["orders:read"]}, "restricted": False}
    made.bad("policy-narrows", "insufficient_scope", "code and policy must both allow", token=token(), policy=policy)
    policy = {"allow": {"*": [SCOPE]}, "restricted": False}
    made.good("policy-any", "the policy allows any service of the domain", token=token(), policy=policy)
    comment = "a policy cannot allow a caller that the code does not"
    made.bad("policy-widens", "caller_not_allowed", comment, token=stranger, policy=policy)


def _signature(made: Vectors) -> None:
    for kind, key in {"ec": ec_key("caller"), "rsa": rsa_key("caller")}.items():
        head, payload, signature = token(key).split(".")
        flipped = f"{head}.{payload}.{'B' if signature[0] != 'B' else 'C'}{signature[1:]}"
        made.bad(f"signature-flipped-{kind}", "bad_signature", "one bit of the signature", token=flipped)
        other = token(key, method="PUT").split(".")[1]
        made.bad(f"payload-changed-{kind}", "bad_signature", "another payload", token=f"{head}.{other}.{signature}")
        made.bad(f"signature-empty-{kind}", "bad_signature", "no signature", token=f"{head}.{payload}.")
        forged = jws(header_of(key, CALLER, REQUEST_TYP), claims(), ec_key("ghost").sign)
        made.bad(f"signed-by-another-{kind}", "bad_signature", "signed with another key", token=forged)
        crossed = "ES256" if kind == "rsa" else "RS256"
        made.bad(f"alg-crossed-{kind}", "bad_signature", "alg is not the key's", token=headed(key, alg=crossed))
    for name, comment, octets in _odd_signatures():
        odd = jws(header_of(ec_key("caller"), CALLER, REQUEST_TYP), claims(), octets)
        made.bad(f"signature-{name}", "bad_signature", comment, token=odd)
    rsa = rsa_key("caller")
    padded = jws(header_of(rsa, CALLER, REQUEST_TYP), claims(), lambda message: b"\0" + rsa.sign(message))
    made.bad("signature-rsa-longer", "bad_signature", "a zero byte before the RSA signature", token=padded)
    made.good("signature-other-s", "ECDSA accepts (r, n - s) as well: the jti counts, not the token", token=_other_s())


def _odd_signatures() -> Iterator[tuple[str, str, bytes]]:
    yield "zeros", "r and s are 0", bytes(64)
    yield "order", "r and s are the order of the curve", P256_ORDER.to_bytes(32, "big") * 2
    yield "short", "63 bytes", b"\x01" * 63
    yield "long", "65 bytes", b"\x01" * 65
    yield "der", "DER, which JOSE does not use", bytes.fromhex("3044" + "0220" + "01" * 32 + "0220" + "01" * 32)


def _other_s() -> str:
    def sign(message: bytes) -> bytes:
        signature = ec_key("caller").sign(message)
        return signature[:32] + (P256_ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")

    return jws(header_of(ec_key("caller"), CALLER, REQUEST_TYP), claims(), sign)


def _parties(made: Vectors) -> None:
    made.bad("iss-of-another", "wrong_issuer", "iss is not the key's owner", token=token(iss=BILLING))
    made.bad("sub-of-another", "wrong_issuer", "sub is not the key's owner", token=token(sub=BILLING))
    made.bad("iss-short", "wrong_issuer", "a short name is no service id", token=token(iss="client-service"))
    made.bad("aud-of-another", "wrong_audience", "for another service", token=token(aud=BILLING))
    made.bad("aud-short", "wrong_audience", "a short name is no service id", token=token(aud="resource-service"))
    made.bad("aud-domain", "wrong_audience", "the domain is no service", token=token(aud=DOMAIN))
    made.bad("aud-registry", "wrong_audience", "for the registry", token=token(aud=REGISTRY))
    made.bad("aud-slash", "wrong_audience", "a slash more", token=token(aud=f"{CALLEE}/"))


def _times(made: Vectors) -> None:
    def at(iat: int, exp: int, nbf: int | None = None, key: str = "caller") -> str:
        return token(ec_key(key), iat=iat, nbf=iat if nbf is None else nbf, exp=exp)

    made.good("lifetime-300", "the longest life", token=at(NOW, NOW + 300))
    made.bad("lifetime-301", "lifetime_too_long", "a second too long", token=at(NOW, NOW + 301))
    made.bad("exp-at-iat", "expired", "exp is not after iat", token=at(NOW, NOW))
    made.bad("exp-before-iat", "expired", "exp is before iat", token=at(NOW, NOW - 1))
    made.good("iat-30-ahead", "within leeway", token=at(NOW + 30, NOW + 90))
    made.bad("iat-31-ahead", "not_yet_valid", "beyond leeway", token=at(NOW + 31, NOW + 91))
    made.good("nbf-30-ahead", "within leeway", token=at(NOW, NOW + 60, NOW + 30))
    made.bad("nbf-31-ahead", "not_yet_valid", "beyond leeway", token=at(NOW, NOW + 60, NOW + 31))
    made.good("exp-29-ago", "within leeway", token=at(NOW - 89, NOW - 29))
    made.bad("exp-30-ago", "expired", "leeway is over", token=at(NOW - 90, NOW - 30))
    made.good("retired-before-end", "signed while the key was active", token=at(NOW - 200, NOW + 60, key="retired"))
    made.good("retired-in-leeway", "30 s after the key's end", token=at(NOW - 90, NOW + 60, key="retired"))
    made.bad("retired-after-end", "expired", "31 s after the key's end", token=at(NOW - 89, NOW + 60, key="retired"))
    made.good("young-in-leeway", "30 s before the key was active", token=at(NOW - 40, NOW + 60, key="young"))
    made.bad("young-too-early", "not_yet_valid", "31 s before that", token=at(NOW - 41, NOW + 60, key="young"))
    made.good("later-now", "the clock of the callee decides", token=at(NOW + DAY - 60, NOW + DAY), now=NOW + DAY - 50)


def _binding(made: Vectors) -> None:
    plain: dict[str, str] = {}
    rich = {**HEADERS, "content-encoding": "gzip", "x-tenant": "a"}
    made.good("get", "a GET without a body", **for_request("GET", "/", b"", headers=plain))
    made.good("bytes", "a body that is no text", **for_request(body=bytes(range(256))))
    made.good("more-headers", "headers that the application bound", **for_request(headers=rich))
    made.good("unbound-header", "a header that is not bound", token=token(), headers={**HEADERS, "x-trace": "1"})
    made.good("blanks", "blanks around a value", token=token(), headers={"content-type": " application/json\t"})
    empty = for_request(headers=plain) | {"headers": {"content-type": ""}}
    made.good("empty-content-type", "an empty content-type counts as none", **empty)
    bad: dict[str, tuple[str, dict[str, Any]]] = {
        "method": ("another method", {"method": "PUT"}),
        "method-case": ("methods are compared letter by letter", {"method": "post"}),
        "query": ("another query", {"target": "/orders/7?dry=0&full=yes"}),
        "query-order": ("parameters in another order", {"target": "/orders/7?full=yes&dry=1"}),
        "no-query": ("without its query", {"target": "/orders/7"}),
        "path": ("another path", {"target": "/orders/8?dry=1&full=yes"}),
        "slash": ("two slashes", {"target": "//orders/7?dry=1&full=yes"}),
        "escape": ("another spelling of the path", {"target": "/%6frders/7?dry=1&full=yes"}),
        "absolute": ("the absolute form", {"target": f"http://resource-service{TARGET}"}),
        "body": ("another body", {"body": b64url(b'{"item": 8}')}),
        "body-spelling": ("another spelling of the body", {"body": b64url(b'{"item":7}')}),
        "no-body": ("no body", {"body": ""}),
        "content-type": ("another content-type", {"headers": {"content-type": "text/plain"}}),
        "content-type-case": (
            "values are compared letter by letter",
            {"headers": {"content-type": "Application/JSON"}},
        ),
        "no-content-type": ("no content-type", {"headers": {}}),
        "content-encoding": ("a content-encoding was added", {"headers": {**HEADERS, "content-encoding": "gzip"}}),
    }
    for name, (comment, given) in bad.items():
        made.bad(f"other-{name}", "wrong_binding", comment, token=token(), **given)
    bound = for_request(headers=rich)
    made.bad(
        "bound-changed", "wrong_binding", "a bound header changed", **{**bound, "headers": {**rich, "x-tenant": "b"}}
    )
    gone = {name: value for name, value in rich.items() if name != "x-tenant"}
    made.bad("bound-missing", "wrong_binding", "a bound header is gone", **{**bound, "headers": gone})
    digests = {"algorithm": digest_header(BODY).replace("sha-256", "sha-512"), "no-colons": digest_header(BODY)[:-1]}
    for name, digest in digests.items():
        made.bad(f"digest-{name}", "wrong_binding", "another spelling of a digest", token=token(content_digest=digest))
    comment = "it binds a transaction token that did not come"
    bound_to = token(tth=digest_of_nothing())
    made.bad("transaction-missing", "bad_transaction_token", comment, token=bound_to)
    comment = "a transaction token came that it does not bind"
    sent = {**HEADERS, "txn-token": "e30.e30.AA"}
    made.bad("transaction-unbound", "bad_transaction_token", comment, token=token(), headers=sent)


def digest_of_nothing() -> str:
    """The base64url SHA-256 of no bytes, as ``tth`` is written."""
    return "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"


def _rights(made: Vectors) -> None:
    made.good("scope-none", "the route needs no scope", token=token(), scope=None)
    made.bad(
        "scope-missing", "insufficient_scope", "a scope that the caller has not", token=token(), scope="orders:delete"
    )
    billing = token(ec_key("billing"), BILLING)
    made.bad("scope-of-another", "insufficient_scope", "a scope that another caller has", token=billing)
    seen = [[CALLER, jti("request")]]
    made.bad("replayed", "replayed", "this token was accepted before", token=token(), seen=seen)
    made.bad("replayed-jti", "replayed", "another token with the same jti", token=token(exp=NOW + 61), seen=seen)
    others = [[BILLING, jti("request")]]
    made.good("jti-of-another", "another service used the same jti", token=token(), seen=others)


def _order(made: Vectors) -> None:
    """Tokens with two faults: the earlier step decides."""
    stranger = jws(header_of(ec_key("stranger"), STRANGER, REQUEST_TYP), claims(STRANGER), b"\1" * 64)
    made.bad("order-3-4", "caller_not_allowed", "may not call, and signed by no key", token=stranger)
    forged = jws(header_of(ec_key("caller"), CALLER, REQUEST_TYP), claims(aud=BILLING), b"\1" * 64)
    made.bad("order-4-6", "bad_signature", "signed by no key, for another audience", token=forged)
    made.bad("order-5-6", "wrong_issuer", "another issuer, another audience", token=token(iss=BILLING, aud=BILLING))
    late: dict[str, Any] = {"iat": NOW - 500, "nbf": NOW - 500, "exp": NOW - 440}
    made.bad("order-6-7", "wrong_audience", "another audience, expired", token=token(aud=BILLING, **late))
    made.bad("order-7-8", "expired", "expired, for another method", token=token(method="GET", **late))
    made.bad("order-8-10", "wrong_binding", "another method, no scope", token=token(), method="GET", scope="none")
    seen = [[CALLER, jti("request")]]
    made.bad("order-10-11", "insufficient_scope", "no scope, seen before", token=token(), scope="none", seen=seen)
