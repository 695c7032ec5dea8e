"""Attacks on transaction tokens: all one answer, ``bad_transaction_token``, and nothing recorded; only what goes beyond
a scope is another, and only what cannot be known now a third."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from peerseal.errors import PeersealError, TrustUnavailable
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.policies import DomainSettings
from peerseal.protocol.tokens.claims import new_jti
from peerseal.protocol.tokens.event import EVENT_TYP
from peerseal.protocol.tokens.transaction import TRANSACTION_TYP, transaction_hash
from peerseal.trust.beliefs import TrustedKey
from peerseal.verify.event import EventVerifier
from peerseal.verify.replay.guards import MemoryReplayGuard
from peerseal.verify.request import Peer, Verifier
from tests.attacks import forge
from tests.attacks.forge import (
    ABSENT,
    CALLEE,
    CALLER,
    DOMAIN,
    NOW,
    OTHER,
    STRANGER,
    Keys,
    changed,
    claims,
    ec_key,
    header,
)

EDGE = f"{DOMAIN}/edge"


def transaction_claims(**changes: Any) -> dict[str, Any]:
    """Those of an honest transaction token, changed."""
    honest = {
        "iss": EDGE,
        "aud": DOMAIN,
        "sub": "ada",
        "txn": "t-1",
        "scope": "orders:read orders:write",
        "tctx": {"order": 7},
        "rctx": {"iss": "https://login.example.com", "jti": "u-1"},
        "req_wl": EDGE,
        "iat": NOW,
        "exp": NOW + 300,
    }
    return changed(honest, changes)


class Callee:
    """The service under attack: ``client-service`` may read and write; ``edge`` may mint."""

    def __init__(self) -> None:
        self.keys = Keys()
        self.caller, self.edge = ec_key("caller"), ec_key("edge")
        for owner, key in ((CALLER, self.caller), (EDGE, self.edge), (OTHER, ec_key("other"))):
            self.keys.add(owner, key)
        self.keys.domain_settings = DomainSettings(minters=frozenset((EDGE,)))
        self.guard = MemoryReplayGuard(clock=lambda: NOW)
        allow = {"client-service": {"orders:read", "orders:write", "orders:delete"}}
        self.verifier = Verifier(self.keys, audience=CALLEE, allow=allow, replay=self.guard, clock=lambda: NOW)

    def minted(self, key: KeyPair | None = None, owner: str = EDGE, head: Any = None, **changes: Any) -> str:
        key = key or self.edge
        return forge.forge(
            header(key, owner, **{"typ": TRANSACTION_TYP, **(head or {})}), transaction_claims(**changes), key.sign
        )

    def call(self, token: str | None, *, scope: str = "orders:read", tth: Any = "of it", **more: str) -> Peer:
        """A good call with that transaction token next to it, bound by its hash, or by ``tth``."""
        bound = (transaction_hash(token) if token is not None else ABSENT) if tth == "of it" else tth
        self.jti = new_jti()
        request = forge.forge(header(self.caller), claims(tth=bound, jti=self.jti), self.caller.sign)
        headers = {**forge.HEADERS, **({} if token is None else {"Txn-Token": token}), **more}
        return self.verifier.verify(
            request, method=forge.METHOD, target=forge.TARGET, body=forge.BODY, headers=headers, scope=scope
        )

    def refuses(self, token: str | None, code: str = "bad_transaction_token", **options: Any) -> None:
        with pytest.raises(PeersealError) as refused:
            self.call(token, **options)
        assert refused.value.code == code, refused.value
        assert self.guard.claim(CALLER, self.jti, NOW + 90), "the refused call used up its token"


@pytest.fixture
def callee() -> Callee:
    return Callee()


def test_an_honest_transaction_goes_along(callee: Callee) -> None:
    peer = callee.call(callee.minted())
    assert peer.transaction is not None
    assert (peer.transaction.user, peer.transaction.id, peer.transaction.minter) == ("ada", "t-1", EDGE)
    assert peer.scopes == {"orders:read", "orders:write"}, "what both allow"


def test_a_call_needs_the_callers_scope_and_the_transactions(callee: Callee) -> None:
    callee.refuses(callee.minted(), "insufficient_scope", scope="orders:delete")
    callee.refuses(callee.minted(scope="orders:read orders:refund"), "insufficient_scope", scope="orders:refund")
    callee.refuses(callee.minted(scope=""), "insufficient_scope", scope="orders:read")


def test_a_transaction_token_that_is_not_bound_and_a_bound_one_that_did_not_come(callee: Callee) -> None:
    token = callee.minted()
    callee.refuses(token, tth=ABSENT)
    callee.refuses(None, tth=transaction_hash(token))
    callee.refuses(token, tth=transaction_hash(callee.minted(sub="grace")))


def test_two_transaction_tokens_in_one_request(callee: Callee) -> None:
    """Servers join two headers with a comma."""
    token, other = callee.minted(), callee.minted(sub="grace")
    for both in (f"{token},{other}", f"{token}, {token}"):
        callee.refuses(both, tth=transaction_hash(token))
        callee.refuses(both)


def test_the_same_transaction_under_another_request_token_is_honest_and_another_user_is_not(callee: Callee) -> None:
    mine, another = callee.minted(), callee.minted(sub="grace")
    callee.refuses(another, tth=transaction_hash(mine))
    assert callee.call(mine).transaction is not None


def test_only_minters_mint(callee: Callee) -> None:
    callee.refuses(callee.minted(ec_key("other"), OTHER, iss=OTHER))
    callee.refuses(callee.minted(callee.caller, CALLER, iss=CALLER))
    callee.keys.asked.clear()
    callee.refuses(callee.minted(ec_key("stranger"), STRANGER, iss=STRANGER))
    assert not [kid for kid in callee.keys.asked if kid.startswith(STRANGER)], (
        "no key is asked for, for one that may not"
    )


def test_a_minter_that_an_operator_took_out_mints_no_more(callee: Callee) -> None:
    token = callee.minted()
    callee.keys.domain_settings = DomainSettings()
    callee.refuses(token)


def test_a_minter_cannot_mint_as_another(callee: Callee) -> None:
    callee.refuses(callee.minted(iss=OTHER))
    callee.refuses(callee.minted(ec_key("other"), EDGE))
    callee.refuses(callee.minted(ec_key("other"), head={"kid": forge.kid_of(EDGE, callee.edge)}))


def test_a_revoked_minters_key_mints_no_more(callee: Callee) -> None:
    token = callee.minted()
    callee.keys.revoke(EDGE, callee.edge)
    callee.refuses(token)


CLAIMS: Mapping[str, dict[str, Any]] = {
    **{f"no {name}": {name: ABSENT} for name in transaction_claims()},
    "another domain": {"aud": "other.internal"},
    "a service as audience": {"aud": CALLEE},
    "a list of audiences": {"aud": [DOMAIN]},
    "expired": {"iat": NOW - 400, "exp": NOW - 31},
    "from the future": {"iat": NOW + 31, "exp": NOW + 300},
    "for over 15 minutes": {"exp": NOW + 901},
    "ends before it begins": {"exp": NOW - 1},
    "exp as text": {"exp": str(NOW + 300)},
    "exp as float": {"exp": NOW + 300.0},
    "signed before its key was there": {"iat": NOW - 3600 - 31, "exp": NOW - 3600 + 300},
    "scope as a list": {"scope": ["orders:read"]},
    "a scope twice": {"scope": "orders:read orders:read"},
    "two blanks": {"scope": "orders:read  orders:write"},
    "nobody": {"sub": ""},
    "a user without an end": {"sub": "x" * 513},
    "a user with NUL": {"sub": "ada\0"},
    "a user with a line break": {"sub": "ada\nrefused: grace"},
    "an id with a newline": {"txn": "t\n1"},
    "facts of 2 kB": {"tctx": {"x": "y" * 2000}},
    "facts that are none": {"tctx": []},
    "an unknown claim": {"admin": True},
    "a claim for later": {"cp": "x"},
}


@pytest.mark.parametrize("changes", CLAIMS.values(), ids=CLAIMS)
def test_claims_that_are_not_those_of_a_transaction_here_and_now(callee: Callee, changes: dict[str, Any]) -> None:
    callee.refuses(callee.minted(**changes))


Make = Callable[[Callee], str]

WRITTEN: Mapping[str, Make] = {
    "a request token": lambda c: forge.forge(header(c.edge, EDGE), claims(EDGE), c.edge.sign),
    "a request token's typ": lambda c: c.minted(head={"typ": "peerseal-request+jwt"}),
    "an event's typ": lambda c: c.minted(head={"typ": "peerseal-event+jwt"}),
    "no typ": lambda c: c.minted(head={"typ": ABSENT}),
    "alg none": lambda c: forge.forge(header(c.edge, EDGE, typ=TRANSACTION_TYP, alg="none"), transaction_claims(), b""),
    "HS256": lambda c: c.minted(head={"alg": "HS256"}),
    "the other alg": lambda c: c.minted(head={"alg": "RS256"}),
    "an embedded key": lambda c: c.minted(head={"jwk": dict(c.edge.public.jwk)}),
    "jku": lambda c: c.minted(head={"jku": "https://evil.example"}),
    "a kid that is none": lambda c: c.minted(head={"kid": "../../edge"}),
    "no signature": lambda c: forge.forge(header(c.edge, EDGE, typ=TRANSACTION_TYP), transaction_claims(), b""),
    "a member twice": lambda c: forge.forge(
        header(c.edge, EDGE, typ=TRANSACTION_TYP),
        canonical_json(transaction_claims())[:-1] + b',"sub":"grace"}',
        c.edge.sign,
    ),
    "another signature": lambda c: c.minted()[:-10] + b64url(b"x" * 7),
    "10 kB": lambda c: c.minted() + "A" * 10_000,
    "not ASCII": lambda c: c.minted() + "ä",
    "rubbish": lambda c: "rubbish",
    "empty": lambda c: "",
}


@pytest.mark.parametrize("make", WRITTEN.values(), ids=WRITTEN)
def test_what_is_no_transaction_token(callee: Callee, make: Make) -> None:
    token = make(callee)
    callee.refuses(token, tth=transaction_hash(token) if token.isascii() else b64url(b"\0" * 32))


def test_an_event_token_is_no_transaction_and_a_transaction_token_no_event(callee: Callee) -> None:
    event = {
        **transaction_claims(aud="jobs.example.com", scope="orders:read", txn=ABSENT, tctx=ABSENT, req_wl=ABSENT),
        **{"event_id": "e-1", "transaction_id": "t-1", "topic": "OrderCreated", "jti": new_jti()},
        "event_payload_hash": hashlib.sha256(b"{}").hexdigest(),
    }
    signed = forge.forge(header(callee.edge, EDGE, typ=EVENT_TYP), event, callee.edge.sign)
    allow = {EDGE: {"orders:read", "orders:write"}}
    consumer = EventVerifier(
        callee.keys, audience="jobs.example.com", allow=allow, max_age=timedelta(days=7), clock=lambda: NOW
    )
    assert consumer.verify(b"{}", {"authorization": f"Bearer {signed}"}, topic="OrderCreated").user == "ada"
    callee.refuses(signed)
    with pytest.raises(PeersealError) as refused:
        consumer.verify(b"{}", {"authorization": f"Bearer {callee.minted()}"}, topic="OrderCreated")
    assert refused.value.code == "wrong_type"


def test_a_transaction_token_opens_nothing_by_itself(callee: Callee) -> None:
    with pytest.raises(PeersealError) as refused:
        callee.verifier.verify(callee.minted(), method=forge.METHOD, target=forge.TARGET, body=forge.BODY)
    assert refused.value.code == "wrong_type"


@pytest.mark.parametrize("late", [0, 29])
def test_leeway_is_half_a_minute(callee: Callee, late: int) -> None:
    assert callee.call(callee.minted(iat=NOW - 300, exp=NOW - late)).transaction is not None
    assert callee.call(callee.minted(iat=NOW + late)).transaction is not None


def test_a_minters_key_that_cannot_be_had_is_no_verdict(callee: Callee) -> None:
    known = callee.keys.key

    def away(kid: str) -> TrustedKey:
        if kid.startswith(EDGE):
            raise TrustUnavailable("the registry is away")
        return known(kid)

    callee.keys.key = away  # type: ignore[method-assign]
    callee.refuses(callee.minted(), "trust_unavailable")


def test_settings_that_cannot_be_had_are_no_verdict(callee: Callee) -> None:
    def away() -> DomainSettings:
        raise TrustUnavailable("the registry is away")

    token = callee.minted()
    callee.keys.settings = away  # type: ignore[method-assign]
    callee.refuses(token, "trust_unavailable")
