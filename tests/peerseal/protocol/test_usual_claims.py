"""Two readings of a payload, a quick and a strict one: what the quick one reads, both read as the same claims."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import canonical_json, digest_header, strict_json_object
from peerseal.protocol.tokens.claims import LATEST_TIME
from peerseal.protocol.tokens.event import EventToken, check_event_claims, usual_event_claims
from peerseal.protocol.tokens.request import RequestToken, check_request_claims, usual_request_claims
from tests.attacks.mutations import other_bytes, other_json

JTI = "0123456789abcdefghijkQ"
REQUEST = RequestToken(
    issuer="acme.internal/shop",
    audience="acme.internal/billing",
    issued_at=1_700_000_000,
    not_before=1_700_000_000,
    expires_at=1_700_000_060,
    jti=JTI,
    method="POST",
    target_digest=digest_header(b"/invoices"),
    content_digest=digest_header(b"{}"),
).claims()
HEADERS = {"content-type": "application/json", "x-tenant": "7"}
EVENT = EventToken(
    issuer="acme.internal/shop",
    user="alice",
    audience="billing",
    scope="orders:write",
    event_id="e-1",
    transaction_id="t-1",
    topic="orders",
    payload_hash="0" * 64,
    issued_at=1_700_000_000,
    expires_at=1_700_000_060,
    jti=JTI,
    authentication={"iss": "https://login.acme.internal", "jti": "u-1"},
).claims()
EXCHANGED = EVENT | {"act": {"sub": "acme.internal/shop"}}

Strict = Callable[[dict[str, Any]], None]
Usual = Callable[[bytes], dict[str, Any] | None]
KINDS: list[tuple[Strict, Usual, list[dict[str, Any]]]] = [
    (
        check_request_claims,
        usual_request_claims,
        [REQUEST, REQUEST | {"headers": HEADERS}, REQUEST | {"tth": "A" * 43}, REQUEST | {"ctx": {"order": "7"}}],
    ),
    (check_event_claims, usual_event_claims, [EVENT, EVENT | {"rctx": {}}, EXCHANGED]),
]

PIECES = [
    *'"\\{}[]:,. \t\n0123456789-+eEaZ_/',
    "null",
    "true",
    '"":',
    '"a":',
    "\u00e9",
    "\x7f",
    "\x00",
    "\ufeff",
    "\\u0041",
]
VALUES: list[Any] = [
    *["", "a", "A", "a/b", "é", "\x7f", "a b", '"', "\\", "x" * 300, JTI, JTI[:-1] + "R", "0" * 64, "A" * 43, "B" * 43],
    *[0, -1, 1, LATEST_TIME, LATEST_TIME + 1, 10**11, 10**11 - 1, 10**30, 1.0, 1e3, True, None],
    *[[], {}, {"A": "a"}, {"a": 1}, {"a": "b"}, {"1": "a"}, {"": ""}, {"a": {"a": "b"}}, {"a": "}", "b": "{"}],
]


def mutated(random: Random, claims: dict[str, Any]) -> bytes:
    """A payload near the usual one: other values, other spellings, and spoilt bytes."""
    kind, payload = random.random(), canonical_json(claims)
    if kind < 0.35:
        others = dict(claims)
        for _ in range(random.choice((1, 1, 2))):
            others[random.choice([*claims, "tth", "ctx", "act"])] = random.choice(VALUES)
        if kind < 0.05:
            del others[random.choice([*others])]
        return canonical_json(others)
    if kind < 0.75:
        text = payload.decode()
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            at = random.randrange(len(text))
            text = text[:at] + random.choice(PIECES) + text[at + random.choice((0, 0, 1, 1, 5)) :]
        return text.encode()
    if kind < 0.85:  # a member twice, or in another place
        pairs = [f"{json.dumps(name)}:{json.dumps(value)}".replace(": ", ":") for name, value in claims.items()]
        pairs.insert(random.randrange(len(pairs)), random.choice(pairs))
        return "{{{}}}".format(",".join(sorted(pairs))).encode()
    return other_json(random, payload) if kind < 0.95 else other_bytes(random, payload)


def strictly(payload: bytes, check: Strict) -> dict[str, Any] | None:
    """The claims as the strict path gives them; None where it refuses the payload."""
    try:
        claims = strict_json_object(payload)
        check(claims)
    except MalformedToken:
        return None
    return claims


def compare(random: Random, count: int) -> Counter[str]:
    """Compare both readings of ``count`` mutated payloads; how many the quick one read, and how many were refused."""
    seen: Counter[str] = Counter()
    for _ in range(count):
        check, usual, originals = random.choice(KINDS)
        payload = mutated(random, random.choice(originals))
        quick, strict = usual(payload), strictly(payload, check)
        if quick is not None:
            assert strict is not None, payload
            assert json.dumps(quick, sort_keys=True) == json.dumps(strict, sort_keys=True), payload  # 1 is not True
        seen["quick" if quick is not None else "strict" if strict is not None else "refused"] += 1
    return seen


@pytest.mark.parametrize(("check", "usual", "claims"), [(c, u, each) for c, u, all in KINDS for each in all])
def test_a_payload_of_our_own_signers_is_read_quickly_unless_it_has_ctx_or_an_actor(
    check: Strict, usual: Usual, claims: dict[str, Any]
) -> None:
    payload = canonical_json(claims)
    assert strictly(payload, check) == claims
    assert usual(payload) == (None if claims.keys() & {"ctx", "act"} else claims)


@pytest.mark.parametrize(
    ("spoilt", "by"),
    [
        (b'"exp":01700000060', b'"exp":1700000060'),
        (b'"exp":1700000060.0', b'"exp":1700000060'),
        (b'"exp":"1700000060"', b'"exp":1700000060'),
        (b'"aud":"a","aud":"acme.internal/billing"', b'"aud":"acme.internal/billing"'),
        (b'"method":"POST", "nbf"', b'"method":"POST","nbf"'),
        (b'"method":"P\\u004fST"', b'"method":"POST"'),
        (b'"method":"P\xd6ST"', b'"method":"POST"'),
        (b'"headers":{"A":"b"}', b'"headers":{}'),
        (b'"headers":{"a":"b","a":"c"}', b'"headers":{}'),
        (b'"headers":{"a":"b",}', b'"headers":{}'),
        (b'"headers":{,"a":"b"}', b'"headers":{}'),
        (JTI.encode()[:-1] + b"R", JTI.encode()),
    ],
)
def test_another_spelling_is_left_to_the_strict_reading(spoilt: bytes, by: bytes) -> None:
    payload = canonical_json(REQUEST)
    assert by in payload
    assert usual_request_claims(payload.replace(by, spoilt)) is None


def test_no_mutated_payload_is_read_otherwise_than_strictly() -> None:
    seen = compare(Random(20_261_129), 20_000)
    assert min(seen["quick"], seen["strict"], seen["refused"]) > 1_000


@pytest.mark.fuzz
def test_1_000_000_mutated_payloads_are_not_read_otherwise_than_strictly() -> None:
    seed, count = os.environ.get("FUZZ_SEED", str(time.time_ns())), int(os.environ.get("FUZZ_PAYLOADS", "1000000"))
    seen = compare(Random(seed), count)
    print(f"seed {seed}: {dict(seen)}")
    assert min(seen.values()) > count / 50
