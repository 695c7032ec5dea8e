"""Attacks on claims: who speaks, to whom, for how long; claims of the wrong type, missing, twice, or unknown."""

import json
from typing import Any

import pytest

from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.tokens.request import MAX_CTX
from tests.attacks.forge import (
    ABSENT,
    CALLEE,
    CALLER,
    DOMAIN,
    HEADERS,
    JTI,
    NOW,
    OTHER,
    Callee,
    claims,
    forge,
    header,
    honest_token,
    rsa_key,
)

MANDATORY = ["iss", "sub", "aud", "iat", "nbf", "exp", "jti", "method", "target_digest", "content_digest", "headers"]
NO_STRINGS = [None, True, 1, 1.5, ["a"], {"a": "b"}]

NO_TIMES: dict[str, bytes] = {
    "string": b'"1800000060"',
    "float": b"1800000060.0",
    "float with a fraction": b"1800000060.5",
    "exponent": b"18e8",
    "exponent in capitals": b"1.8E+9",
    "true": b"true",
    "false": b"false",
    "null": b"null",
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "-Infinity": b"-Infinity",
    "1e400": b"1e400",
    "-1e400": b"-1e400",
    "negative": b"-1",
    "far negative": b"-9223372036854775809",
    "year 10000": b"253402300800",
    "year 10^9": b"31556889864403199",
    "64 bits": b"18446744073709551616",
    "32 bits and a bit": str((1 << 32) * 1000 + NOW).encode(),
    "a thousand digits": b"1" * 1000,
    "more digits than the interpreter converts": b"1" * 4301,
    "leading zero": b"01800000060",
    "plus sign": b"+1800000060",
    "hexadecimal": b"0x6B49D23C",
    "underscore": b"1_800_000_060",
    "digits of another script": "١٨٠٠٠٠٠٠٦٠".encode(),
    "array": b"[1800000060]",
    "object": b'{"$date":1800000060}',
    "date": b'"2027-01-15T08:01:00Z"',
}


def with_raw(name: str, raw: bytes) -> bytes:
    """The honest payload, with the text of one claim replaced."""
    return canonical_json(claims(**{name: "PLACE"})).replace(b'"PLACE"', raw)


# ---- shape


@pytest.mark.parametrize("name", MANDATORY)
def test_claim_missing(callee: Callee, key: KeyPair, name: str) -> None:
    callee.refuses(honest_token(key, **{name: ABSENT}), "malformed_token")


@pytest.mark.parametrize("name", [name for name in MANDATORY if name not in ("iat", "nbf", "exp", "headers")])
@pytest.mark.parametrize("value", NO_STRINGS)
def test_claim_that_is_no_string(callee: Callee, key: KeyPair, name: str, value: Any) -> None:
    callee.refuses(honest_token(key, **{name: value}), "malformed_token")


@pytest.mark.parametrize("name", ["iat", "nbf", "exp"])
@pytest.mark.parametrize("raw", NO_TIMES.values(), ids=NO_TIMES)
def test_time_that_is_no_time(callee: Callee, key: KeyPair, name: str, raw: bytes) -> None:
    callee.refuses(forge(header(key), with_raw(name, raw), key.sign), "malformed_token")


@pytest.mark.parametrize("name", ["iat", "nbf", "exp"])
def test_minus_zero_is_the_epoch(callee: Callee, key: KeyPair, name: str) -> None:
    """JSON's -0 is an integer, and long ago: it buys nothing."""
    code = {"iat": "lifetime_too_long", "exp": "expired"}.get(name)
    token = forge(header(key), with_raw(name, b"-0"), key.sign)
    if code is None:
        callee.accepts(token)
    else:
        callee.refuses(token, code)


@pytest.mark.parametrize("name", MANDATORY)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("escaped", [False, True])
def test_claim_twice(callee: Callee, key: KeyPair, name: str, first: bool, escaped: bool) -> None:
    """As it is and with its first letter escaped (``"\\u0069ss"`` is ``"iss"``), before and after."""
    member = f"\\u{ord(name[0]):04x}{name[1:]}" if escaped else name
    honest, extra = canonical_json(claims())[1:-1], f'"{member}":{json.dumps(claims()[name])}'.encode()
    payload = b"{" + (extra + b"," + honest if first else honest + b"," + extra) + b"}"
    callee.refuses(forge(header(key), payload, key.sign), "malformed_token")


@pytest.mark.parametrize(
    "ctx", [rb'{"a":1,"a":1}', rb'{"a":{"b":1,"\u0062":2}}', rb'{"a":[{"b":1,"b":2}]}', rb'{"":1,"":2}']
)
def test_member_twice_further_down(callee: Callee, key: KeyPair, ctx: bytes) -> None:
    callee.refuses(forge(header(key), with_raw("ctx", ctx), key.sign), "malformed_token")
    callee.refuses(forge(header(key), with_raw("headers", ctx), key.sign), "malformed_token")


@pytest.mark.parametrize("name", ["cnf", "act", "may_act", "crit", "cp2", "scope", "ISS", "iss ", "", "__proto__"])
def test_unknown_claim(callee: Callee, key: KeyPair, name: str) -> None:
    """A claim that this version does not check must not look as if it were."""
    callee.refuses(honest_token(key, **{name: "a"}), "malformed_token")


@pytest.mark.parametrize("cp", [None, 1, 1.5, True, [], {}, ["AAAA"]])
def test_cp_that_is_no_text(callee: Callee, key: KeyPair, cp: object) -> None:
    callee.refuses(honest_token(key, cp=cp), "malformed_token")


@pytest.mark.parametrize("cp", ["", "a", "?", "A" * 3000])
def test_cp_that_is_nonsense_refuses_no_request(callee: Callee, key: KeyPair, cp: str) -> None:
    """It is compared after the request was accepted, and says nothing about the request."""
    assert callee.accepts(honest_token(key, cp=cp))


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b'"a"', b"1", b"{}", b"[{}]", b"{}{}", b"true", b"\0"])
def test_payload_that_is_no_object_of_claims(callee: Callee, key: KeyPair, payload: bytes) -> None:
    callee.refuses(forge(header(key), payload, key.sign), "malformed_token")


def test_claims_as_a_list_of_pairs(callee: Callee, key: KeyPair) -> None:
    callee.refuses(forge(header(key), list(claims().items()), key.sign), "malformed_token")


@pytest.mark.parametrize(
    "jti",
    ["", "A", JTI[1:], f"A{JTI}", f"{JTI}\n", *(f"{JTI[:-1]}{end}" for end in "B=+/ \0"), f" {JTI[1:]}", "А" * 22],
)
def test_jti_that_is_not_128_bits(callee: Callee, key: KeyPair, jti: str) -> None:
    callee.refuses(honest_token(key, jti=jti), "malformed_token")


@pytest.mark.parametrize(
    "headers",
    [
        *(None, [], "a", 1, [["content-type", "application/json"]]),
        *({"content-type": None}, {"content-type": ["application/json"]}, {"content-type": 1}),
        *({"Content-Type": "application/json"}, {"CONTENT-TYPE": "application/json"}, {"content-type": {"a": "b"}}),
    ],
)
def test_bound_headers_of_the_wrong_shape(callee: Callee, key: KeyPair, headers: Any) -> None:
    callee.refuses(honest_token(key, headers=headers), "malformed_token")


@pytest.mark.parametrize("ctx", [None, [], "a", 1, True])
def test_ctx_that_is_no_object(callee: Callee, key: KeyPair, ctx: Any) -> None:
    callee.refuses(honest_token(key, ctx=ctx), "malformed_token")


def test_ctx_of_more_than_1_kib(callee: Callee, key: KeyPair) -> None:
    room = MAX_CTX - len('{"a":""}')
    callee.refuses(honest_token(key, ctx={"a": "x" * (room + 1)}), "malformed_token")
    callee.refuses(honest_token(key, ctx={"a": "ü" * (room // 2 + 1)}), "malformed_token")
    assert callee.accepts(honest_token(key, ctx={"a": "x" * room})).claims["ctx"] == {"a": "x" * room}


# ---- who


def test_service_a_signs_with_its_own_key_as_service_b(callee: Callee, key: KeyPair) -> None:
    callee.refuses(honest_token(key, iss=OTHER, sub=OTHER), "wrong_issuer")
    callee.refuses(honest_token(key, iss=OTHER), "wrong_issuer")
    callee.refuses(honest_token(key, sub=OTHER), "wrong_issuer")


@pytest.mark.parametrize(
    "name",
    [
        *("", "client-service", f"{CALLER}/", f"/{CALLER}", f"{CALLER}.", CALLER.upper(), f"{CALLER} ", f"{CALLER}\0"),
        *(f"https://{CALLER}", DOMAIN, CALLEE, f"{DOMAIN}/registry", CALLER[:-1], f"{CALLER}2", f"{CALLER}\n{OTHER}"),
        f"{DOMAIN}/сlient-service",
    ],
)
@pytest.mark.parametrize("claim", ["iss", "sub"])
def test_issuer_that_is_nearly_the_keys_owner(callee: Callee, key: KeyPair, claim: str, name: str) -> None:
    callee.refuses(honest_token(key, **{claim: name}), "wrong_issuer")


# ---- to whom


@pytest.mark.parametrize(
    "audience",
    [
        *(OTHER, CALLER, f"{DOMAIN}/registry", DOMAIN, "resource-service", "", "*", f"{DOMAIN}/*", f"{DOMAIN}/"),
        *(CALLEE[:-1], f"{CALLEE}2", f"{CALLEE}-eu", CALLEE.upper(), CALLEE.title(), f"{CALLEE}.", f"{CALLEE}/"),
        *(f"/{CALLEE}", f"{CALLEE} ", f" {CALLEE}", f"{CALLEE}\0", f"{CALLEE}\n", f"{CALLEE},{OTHER}"),
        *(f"{CALLEE} {OTHER}", f"https://{CALLEE}", f"evil.{CALLEE}", "staging.internal/resource-service"),
        CALLEE.replace("c", "\N{CYRILLIC SMALL LETTER ES}"),
    ],
)
def test_audience_that_is_not_exactly_ours(callee: Callee, key: KeyPair, audience: str) -> None:
    callee.refuses(honest_token(key, aud=audience), "wrong_audience")


@pytest.mark.parametrize("audience", [[CALLEE], [CALLEE, OTHER], [OTHER, CALLEE], [], {"aud": CALLEE}])
def test_audience_as_a_list(callee: Callee, key: KeyPair, audience: Any) -> None:
    callee.refuses(honest_token(key, aud=audience), "malformed_token")


def test_token_for_another_callee(key: KeyPair) -> None:
    """A callee cannot pass the caller's token on to another one that trusts the same caller."""
    token = honest_token(key, aud=OTHER)
    Callee().refuses(token, "wrong_audience")


# ---- when


@pytest.mark.parametrize(("late", "code"), [(29, None), (30, "expired"), (31, "expired"), (10**9, "expired")])
def test_expired_by_the_leeway(callee: Callee, key: KeyPair, late: int, code: str | None) -> None:
    callee.now = NOW + 60 + late
    if code is None:
        callee.accepts(honest_token(key))
    else:
        callee.refuses(honest_token(key), code)


@pytest.mark.parametrize(("early", "code"), [(30, None), (31, "not_yet_valid"), (3600, "not_yet_valid")])
@pytest.mark.parametrize("together", [False, True])
def test_issued_in_the_future(callee: Callee, key: KeyPair, early: int, code: str | None, together: bool) -> None:
    times = {"iat": NOW + early, "exp": NOW + early + 60} | ({"nbf": NOW + early} if together else {})
    if code is None:
        callee.accepts(honest_token(key, **times))
    else:
        callee.refuses(honest_token(key, **times), code)


@pytest.mark.parametrize(("early", "code"), [(30, None), (31, "not_yet_valid")])
def test_not_before_in_the_future(callee: Callee, key: KeyPair, early: int, code: str | None) -> None:
    token = honest_token(key, nbf=NOW + early)
    if code is None:
        callee.accepts(token)
    else:
        callee.refuses(token, code)


def test_lifetime_over_the_cap(callee: Callee, key: KeyPair) -> None:
    callee.refuses(honest_token(key, exp=NOW + 301), "lifetime_too_long")
    callee.refuses(honest_token(key, exp=253_402_300_799), "lifetime_too_long")
    callee.refuses(honest_token(key, iat=0), "lifetime_too_long")
    callee.refuses(honest_token(key, iat=NOW - 250, exp=NOW + 51), "lifetime_too_long")
    callee.accepts(honest_token(key, exp=NOW + 300))


def test_ends_before_it_begins(callee: Callee, key: KeyPair) -> None:
    for end in (NOW, NOW - 1, 0):
        callee.refuses(honest_token(key, exp=end), "expired")


def test_issued_before_its_key_was_active(callee: Callee) -> None:
    young = rsa_key("young")
    callee.keys.add(CALLER, young, active_from=NOW + 31)
    callee.refuses(honest_token(young), "not_yet_valid")
    callee.keys.add(CALLER, young, active_from=NOW + 30)
    callee.accepts(honest_token(young))


def test_issued_after_its_key_was_retired(callee: Callee) -> None:
    """A stolen retired key signs nothing new; what it signed while it was active stays good."""
    old = rsa_key("old")
    callee.keys.add(CALLER, old, active_until=NOW - 31)
    callee.refuses(honest_token(old), "expired")
    callee.accepts(honest_token(old, iat=NOW - 40, nbf=NOW - 40, exp=NOW + 20))


# ---- what it may do


def test_scope_that_the_caller_does_not_have(callee: Callee, key: KeyPair) -> None:
    for scope in ("orders:read", "orders:write2", "orders:", "*", "", "ORDERS:WRITE"):
        callee.refuses(honest_token(key), "insufficient_scope", scope=scope)
    assert callee.accepts(honest_token(key), scope="orders:write").scopes == {"orders:write"}


def test_scope_of_another_caller(callee: Callee, key: KeyPair) -> None:
    assert callee.accepts(honest_token(rsa_key("other"), OTHER), scope="orders:read").service == "billing"
    callee.refuses(honest_token(key), "insufficient_scope", scope="orders:read")


def test_scope_that_a_caller_gives_itself(callee: Callee, key: KeyPair) -> None:
    callee.refuses(honest_token(key, scope="orders:read"), "malformed_token", scope="orders:read")
    callee.refuses(honest_token(key, ctx={"scope": "orders:read"}), "insufficient_scope", scope="orders:read")


def test_nobody_may_call_by_default(key: KeyPair) -> None:
    Callee(allow={}).refuses(honest_token(key), "caller_not_allowed")


# ---- transaction tokens, which no verifier accepts yet


def test_tth_without_a_transaction_token(callee: Callee, key: KeyPair) -> None:
    callee.refuses(honest_token(key, tth=b64url(b"\0" * 32)), "bad_transaction_token")


def test_transaction_token_without_tth(callee: Callee, key: KeyPair) -> None:
    for name, value in (("txn-token", "a"), ("Txn-Token", "a"), ("TXN-TOKEN", "a"), ("txn-token", "")):
        callee.refuses(honest_token(key), "bad_transaction_token", headers={**HEADERS, name: value})


def test_tth_for_another_transaction_token(callee: Callee, key: KeyPair) -> None:
    headers = {**HEADERS, "Txn-Token": "a.b.c"}
    callee.refuses(honest_token(key, tth=b64url(b"\1" * 32)), "bad_transaction_token", headers=headers)


@pytest.mark.parametrize("tth", [None, "", 1, "A" * 42, "A" * 44, "A" * 42 + "B", "A" * 43 + "=", "ü" * 43])
def test_tth_that_is_no_hash(callee: Callee, key: KeyPair, tth: Any) -> None:
    callee.refuses(honest_token(key, tth=tth), "malformed_token")
