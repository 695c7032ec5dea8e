"""Vectors for what leaves and enters the domain: access tokens, and the tokens and answers of users' issuers."""

from typing import Any, Final

from peerseal.protocol.documents.key_set import ACTIVE
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.tokens.assertion import ACCESS_TYP
from peerseal.protocol.tokens.introspection import SIGNED_TYP
from tests.vectors.requests import token
from tests.vectors.world import (
    ABSENT,
    CALLER,
    DAY,
    DOMAIN,
    NOW,
    REGISTRY,
    Vectors,
    changed,
    ec_key,
    header_of,
    jti,
    jws,
    listed,
    rsa_key,
)

RESOURCE: Final = "https://kafka.example.com"
ISSUER: Final = "https://login.example.com"
CLIENT: Final = "orders-at-login"
"""This service's name at the issuer."""
USERS: Final = "https://orders.example.com"
"""The audience of users' tokens."""


# ---- access tokens


def access_tokens() -> Vectors:
    """Access tokens of the registry, as a resource server outside of Peerseal checks them."""
    keys = [listed(REGISTRY, ec_key("signing")), listed(CALLER, ec_key("caller"))]
    made = Vectors("access-token", "Access tokens (RFC 9068), for resource servers outside of Peerseal.", keys)
    made.defaults = {"now": NOW, "domain": DOMAIN, "issuer": REGISTRY, "audience": RESOURCE}
    made.good("honest", "for a broker", access_claims(), token=access())
    made.good("longest-life", "an hour", token=access(exp=NOW + 3600))
    made.good("in-leeway", "29 s after its end", token=access(iat=NOW - 329, exp=NOW - 29))
    signing, caller = ec_key("signing"), ec_key("caller")
    plain = jws(header_of(signing, REGISTRY, "JWT"), access_claims(), signing.sign)
    made.bad("typ", "wrong_type", "another kind of token", token=plain)
    made.bad("request-token", "wrong_type", "a request token", token=token())
    unknown = jws(header_of(ec_key("ghost"), REGISTRY, ACCESS_TYP), access_claims(), ec_key("ghost").sign)
    made.bad("unknown-key", "unknown_key", "no key of the registry", token=unknown)
    own = jws(header_of(caller, CALLER, ACCESS_TYP), access_claims(), caller.sign)
    made.bad("self-made", "wrong_issuer", "signed by the service itself", token=own)
    forged = jws(header_of(signing, REGISTRY, ACCESS_TYP), access_claims(), caller.sign)
    made.bad("forged", "bad_signature", "signed with another key", token=forged)
    made.bad("issuer", "wrong_issuer", "of another registry", token=access(iss="other.internal/registry"))
    made.bad("audience", "wrong_audience", "for another server", token=access(aud="https://other.example.com"))
    made.bad("expired", "expired", "its life is over", token=access(iat=NOW - 330, exp=NOW - 30))
    made.bad("from-the-future", "not_yet_valid", "beyond leeway", token=access(iat=NOW + 31, exp=NOW + 331))
    made.bad("too-long", "lifetime_too_long", "more than an hour", token=access(exp=NOW + 3601))
    for name in access_claims():
        made.bad(f"no-{name}", "malformed_token", f"the claim {name} is missing", token=access(**{name: ABSENT}))
    return made


def access_claims(**changes: Any) -> dict[str, Any]:
    """The claims of an honest access token, changed."""
    parties = {"iss": REGISTRY, "sub": CALLER, "client_id": CALLER, "aud": RESOURCE}
    return changed({**parties, "scope": "read write", "iat": NOW, "exp": NOW + 300, "jti": jti("access")}, changes)


def access(**changes: Any) -> str:
    """An access token with changed claims, signed like an honest one."""
    key = ec_key("signing")
    return jws(header_of(key, REGISTRY, ACCESS_TYP), access_claims(**changes), key.sign)


# ---- users' tokens


def _issuer(**members: Any) -> dict[str, Any]:
    """The issuer, as the domain's settings name it."""
    keys = [{**key.public.jwk, "kid": name, "alg": key.public.alg} for name, key in _issuer_keys().items()]
    return {"issuer": ISSUER, "audience": USERS, "jwks": {"keys": keys}, **members}


def _issuer_keys() -> dict[str, KeyPair]:
    return {"login-1": ec_key("login"), "login-2": rsa_key("caller")}


def user_tokens() -> Vectors:
    """Tokens of a user's issuer: the edge accepts them, and the token endpoint as ``subject_token``."""
    made = Vectors("user-token", "Tokens of users' issuers, whose keys stand in the domain's settings.")
    made.defaults = {"now": NOW, "issuers": [_issuer()]}
    facts = {"iss": ISSUER, "sub": "ada@example.com", "jti": "a1", "scopes": ["orders:write", "profile"]}
    made.good("es256", "a token by an EC key", facts, token=user())
    made.good("rs256", "a token by an RSA key", facts, token=user("login-2"))
    made.good("typ-jwt", "typ JWT", token=user(header={"typ": "JWT"}))
    made.good("access-token", "typ at+jwt", token=user(header={"typ": ACCESS_TYP}))
    made.good("x5t", "a certificate's hash is not looked at", token=user(header={"x5t": "AAAA"}))
    made.good("audiences", "one of several audiences", token=user(aud=["https://other.example.com", USERS]))
    made.good("unknown-claim", "claims that nothing checks", token=user(groups=["a"]))
    made.good("scp", "scopes under another name", facts, token=user(scope=ABSENT, scp=["profile", "orders:write"]))
    made.good("no-scope", "a token without scopes", {"scopes": []}, token=user(scope=ABSENT))
    made.good("day", "24 hours", token=user(exp=NOW + DAY))
    _bad_user_headers(made)
    _bad_user_claims(made)
    return made


def _bad_user_headers(made: Vectors) -> None:
    for typ in ("peerseal-request+jwt", "txntoken+jwt", "peerseal-event+jwt", SIGNED_TYP):
        made.bad(f"typ-{typ}", "wrong_type", "another kind of token", token=user(header={"typ": typ}))
    for name, value in {"crit": ["exp"], "jku": "https://evil.example.com", "jwk": {}, "x5c": [], "zip": "DEF"}.items():
        made.bad(f"header-{name}", "malformed_token", "a member that is not allowed", token=user(header={name: value}))
    made.bad("no-kid", "malformed_token", "no kid", token=user(header={"kid": ABSENT}))
    made.bad("alg-none", "malformed_token", "no algorithm", token=user(header={"alg": "none"}))
    made.bad("unknown-key", "unknown_key", "the issuer has no such key", token=user(header={"kid": "login-3"}))
    made.bad("forged", "bad_signature", "signed with another key", token=user(signer=ec_key("ghost")))
    made.bad("alg-crossed", "bad_signature", "alg is not the key's", token=user(header={"alg": "RS256"}))
    made.bad("own-issuer", "wrong_issuer", "an issuer that the settings do not name", token=user(), issuers=[])


def _bad_user_claims(made: Vectors) -> None:
    made.bad("issuer-slash", "wrong_issuer", "compared character by character", token=user(iss=f"{ISSUER}/"))
    made.bad("audience", "wrong_audience", "for another application", token=user(aud="https://other.example.com"))
    made.bad("expired", "expired", "its life is over", token=user(iat=NOW - 330, exp=NOW - 30))
    made.bad("not-before", "not_yet_valid", "nbf is beyond leeway", token=user(nbf=NOW + 31))
    made.bad("from-the-future", "not_yet_valid", "iat is beyond leeway", token=user(iat=NOW + 31))
    made.bad("too-long", "lifetime_too_long", "more than 24 hours", token=user(exp=NOW + DAY + 1))
    for name in ("iss", "sub", "aud", "iat", "exp"):
        made.bad(f"no-{name}", "malformed_token", f"the claim {name} is missing", token=user(**{name: ABSENT}))
    changes: dict[str, dict[str, Any]] = {
        "exp-text": {"exp": str(NOW + 300)},
        "long-subject": {"sub": "u" * 513},
        "line-feed-in-subject": {"sub": "a\nb"},
        "two-scope-claims": {"scp": "profile"},
        "scope-number": {"scope": 7},
        "scope-quote": {"scope": 'a"b'},
    }
    for name, change in changes.items():
        made.bad(name, "malformed_token", "the shape of the claims is wrong", token=user(**change))


def user(kid: str = "login-1", *, header: Any = None, signer: KeyPair | None = None, **changes: Any) -> str:
    """A user's token with changed claims and header, signed like an honest one."""
    key = _issuer_keys()[kid]
    head = changed({"alg": key.public.alg, "kid": kid}, header or {})
    names = {"iss": ISSUER, "sub": "ada@example.com", "aud": USERS, "jti": "a1", "scope": "profile orders:write"}
    return jws(head, changed({**names, "iat": NOW, "exp": NOW + 300}, changes), (signer or key).sign)


# ---- introspection


def introspections() -> Vectors:
    """Answers of an issuer about an opaque token: JSON (RFC 7662), and signed (RFC 9701)."""
    made = Vectors("introspection", "What an issuer answers about a user's opaque token, as JSON or signed.")
    keys = [listed(CALLER, key, ACTIVE) | {"kid": kid} for kid, key in _issuer_keys().items()]
    made.keys = keys
    made.defaults = {"now": NOW, "issuer": ISSUER, "audience": USERS, "client_id": CLIENT, "signed": True}
    facts = {"iss": ISSUER, "sub": "ada@example.com", "exp": NOW + 300}
    made.good("signed", "a signed answer", facts, answer=signed_answer())
    made.good("rs256", "signed by an RSA key", facts, answer=signed_answer("login-2"))
    made.good("for-the-audience", "addressed to the audience of the tokens", answer=signed_answer(aud=USERS))
    made.good("plain", "an answer as JSON", facts, answer=meaning(), signed=False)
    made.good("no-end", "the issuer names no end", {"exp": None}, answer=meaning(exp=ABSENT), signed=False)
    _bad_signed_answers(made)
    _refused_by_issuer(made)
    return made


def _bad_signed_answers(made: Vectors) -> None:
    malformed = "document_malformed"
    made.bad("typ", malformed, "another kind of token", answer=signed_answer(header={"typ": "JWT"}))
    made.bad("user-token", malformed, "the user's token itself", answer=user())
    made.bad("not-ascii", malformed, "no compact JWS", answer="é.é.é")
    comment = "the issuer has no such key"
    made.bad("unknown-key", "document_unknown_signer", comment, answer=signed_answer(header={"kid": "login-3"}))
    forged = signed_answer(signer=ec_key("ghost"))
    made.bad("forged", "document_bad_signature", "signed with another key", answer=forged)
    made.bad("issuer", malformed, "of another issuer", answer=signed_answer(iss="https://other.example.com"))
    made.bad("reader", malformed, "for another reader", answer=signed_answer(aud="another-client"))
    made.bad("stale", "document_stale", "the answer to an earlier question", answer=signed_answer(iat=NOW - 31))
    made.bad("ahead", "document_stale", "signed in the future", answer=signed_answer(iat=NOW + 31))
    made.bad("no-answer", malformed, "no answer in it", answer=signed_answer(token_introspection=ABSENT))


def _refused_by_issuer(made: Vectors) -> None:
    refusals: dict[str, tuple[str, str, dict[str, Any]]] = {
        "not-active": ("expired", "the token has ended, or never existed", {"active": False}),
        "refresh-token": ("wrong_type", "a refresh token", {"token_type": "refresh_token"}),
        "answer-issuer": ("wrong_issuer", "a token of another issuer", {"iss": "https://other.example.com"}),
        "answer-audience": ("wrong_audience", "a token for another application", {"aud": "https://other.example.com"}),
        "no-audience": ("wrong_audience", "the issuer does not say for whom", {"aud": ABSENT}),
        "expired": ("expired", "its end has passed", {"exp": NOW - 30}),
        "not-before": ("not_yet_valid", "nbf is beyond leeway", {"nbf": NOW + 31}),
        "no-user": ("malformed_token", "the token of a program", {"sub": ABSENT}),
        "active-text": ("document_malformed", "active is a text", {"active": "true"}),
        "no-active": ("document_malformed", "active is missing", {"active": ABSENT}),
    }
    for name, (code, comment, change) in refusals.items():
        made.bad(name, code, comment, answer=meaning(**change), signed=False)
        within = signed_answer(token_introspection=meaning(**change))
        made.bad(f"{name}-signed", code, comment, answer=within)


def meaning(**changes: Any) -> dict[str, Any]:
    """An issuer's answer about a token that is active, changed."""
    members = {"active": True, "iss": ISSUER, "sub": "ada@example.com", "aud": USERS, "scope": "profile"}
    return changed({**members, "exp": NOW + 300}, changes)


def signed_answer(kid: str = "login-1", *, header: Any = None, signer: KeyPair | None = None, **changes: Any) -> str:
    """A signed answer with changed claims and header."""
    key = _issuer_keys()[kid]
    head = changed({"alg": key.public.alg, "kid": kid, "typ": SIGNED_TYP}, header or {})
    claims = {"iss": ISSUER, "aud": CLIENT, "iat": NOW, "token_introspection": meaning()}
    return jws(head, changed(claims, changes), (signer or key).sign)
