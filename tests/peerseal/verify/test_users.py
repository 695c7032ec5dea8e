"""Users' tokens at the edge: whom the domain's settings let in, and no other."""

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from peerseal import TrustLimits, User, UserVerifier, Verifier
from peerseal.errors import (
    CallerNotAllowed,
    Expired,
    InsufficientScope,
    PeersealError,
    TrustUnavailable,
    UnsignableRequest,
    WrongIssuer,
)
from peerseal.protocol.policies import UserIssuer
from peerseal.runtime.limits import IssuerLimits
from peerseal.testing import Clock, MemoryRegistry
from tests.support.issuer import DISCOVERY, JWKS, Issuer, public_jwk, running_issuer

LIMITS = IssuerLimits()


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


@pytest.fixture(params=["RS256", "ES256"])
def issuer(request: pytest.FixtureRequest) -> Iterator[Issuer]:
    with running_issuer(alg=request.param) as issuer:
        yield issuer


@pytest.fixture
def registry(issuer: Issuer, clock: Clock) -> Iterator[MemoryRegistry]:
    with MemoryRegistry(clock=clock) as registry:
        registry.set_domain(minters=["edge"], issuers=[UserIssuer(issuer.url, "edge")])
        yield registry


@pytest.fixture
def users(registry: MemoryRegistry, clock: Clock) -> UserVerifier:
    return UserVerifier(registry.trust_store(), clock=clock)


def token(issuer: Issuer, clock: Clock, **changes: Any) -> str:
    audience = changes.pop("audience", "edge")
    return issuer.token("ada", audience, now=clock(), **{"scope": "orders:write orders:read", **changes})


def test_a_user_is_who_the_issuer_says(issuer: Issuer, users: UserVerifier, clock: Clock) -> None:
    user = users.verify(token(issuer, clock, jti="u-1"))
    assert (user.name, user.issuer, user.scopes) == ("ada", issuer.url, {"orders:write", "orders:read"})
    assert user.authentication == {"iss": issuer.url, "jti": "u-1"}
    assert issuer.fetched == {DISCOVERY: 1, JWKS: 1}


def with_header(token: str, **members: Any) -> str:
    """The token with another header, and the signature that it had."""
    header, _, rest = token.partition(".")
    said = json.loads(base64.urlsafe_b64decode(header + "==")) | members
    return f"{base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip('=')}.{rest}"


Claims = Callable[[Issuer, Clock], str]

REFUSED: Mapping[str, tuple[Claims, str]] = {
    "of an issuer that nobody configured": (lambda i, c: token(i, c, iss="https://evil.example"), "wrong_issuer"),
    "of nearly that issuer": (lambda i, c: token(i, c, iss=i.url + "/"), "wrong_issuer"),
    "for another audience": (lambda i, c: token(i, c, audience="billing"), "wrong_audience"),
    "expired": (lambda i, c: token(i, c, exp=int(c()) - 31), "expired"),
    "from the future": (lambda i, c: token(i, c, iat=int(c()) + 60, nbf=None), "not_yet_valid"),
    "not before the future": (lambda i, c: token(i, c, nbf=int(c()) + 60), "not_yet_valid"),
    "for over a day": (lambda i, c: token(i, c, exp=int(c()) + 25 * 3600), "lifetime_too_long"),
    "without an end": (lambda i, c: token(i, c, exp=None), "malformed_token"),
    "without a subject": (lambda i, c: token(i, c, sub=None), "malformed_token"),
    "of a subject with NUL": (lambda i, c: token(i, c, sub="ada\0"), "malformed_token"),
    "of a subject with a line break": (lambda i, c: token(i, c, sub="ada\nrefused: grace"), "malformed_token"),
    "scope and scp": (lambda i, c: token(i, c, scp=["x"]), "malformed_token"),
    "a scope that is none": (lambda i, c: token(i, c, scope='a"b'), "malformed_token"),
    "scp that is no text": (lambda i, c: token(i, c, scope=None, scp=[1]), "malformed_token"),
    "by an unknown key": (lambda i, c: i.sign(i.claims("ada", "edge", now=c()), headers={"kid": "x"}), "unknown_key"),
    "of another kind": (
        lambda i, c: i.sign(i.claims("ada", "edge", now=c()), headers={"typ": "peerseal-event+jwt"}),
        "wrong_type",
    ),
    "unsigned": (lambda i, c: with_header(token(i, c), alg="none").rpartition(".")[0] + ".", "malformed_token"),
    "signed with a secret": (lambda i, c: with_header(token(i, c), alg="HS256"), "malformed_token"),
    "by the key's other algorithm": (
        lambda i, c: with_header(token(i, c), alg="ES256" if i.alg == "RS256" else "RS256"),
        "bad_signature",
    ),
    "with an embedded key": (lambda i, c: with_header(token(i, c), jwk={}), "malformed_token"),
    "for two, and not the edge": (lambda i, c: token(i, c, audience=["billing", "x"]), "wrong_audience"),
    "altered": (lambda i, c: token(i, c)[:-8] + "AAAAAAAA", "bad_signature"),
    "rubbish": (lambda i, c: "rubbish", "malformed_token"),
}


@pytest.mark.parametrize(("make", "code"), REFUSED.values(), ids=REFUSED)
def test_a_users_token_is_checked_as_strictly_as_ours(
    issuer: Issuer, users: UserVerifier, clock: Clock, make: Claims, code: str
) -> None:
    with pytest.raises(PeersealError) as refused:
        users.verify(make(issuer, clock))
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": None}, set()),
        ({"scope": ""}, set()),
        ({"scope": None, "scp": ["a", "b"]}, {"a", "b"}),
        ({"scope": None, "scp": "a b"}, {"a", "b"}),
    ],
    ids=["none", "empty", "scp as a list", "scp as a text"],
)
def test_scopes_as_issuers_write_them(
    issuer: Issuer, users: UserVerifier, clock: Clock, claims: dict[str, Any], scopes: set[str]
) -> None:
    assert users.verify(token(issuer, clock, **claims)).scopes == scopes


def test_an_issuer_that_was_taken_out_of_the_settings_is_refused_from_then_on(
    registry: MemoryRegistry, issuer: Issuer, clock: Clock
) -> None:
    trust = registry.trust_store()
    users = UserVerifier(trust, clock=clock)
    assert users.verify(token(issuer, clock)).name == "ada"
    registry.set_domain(minters=["edge"])
    trust.refresh()
    with pytest.raises(PeersealError) as refused:
        users.verify(token(issuer, clock))
    assert refused.value.code == "wrong_issuer"


@pytest.mark.parametrize("url", ["https://h:99999", "https://h:0", "https://a..b", "https://a\\b", "https://h/\x00"])
def test_a_setting_whose_url_nothing_can_be_asked_at_is_no_error_of_the_application(
    registry: MemoryRegistry, issuer: Issuer, clock: Clock, url: str
) -> None:
    for setting in (
        UserIssuer(issuer.url, "edge", url),
        UserIssuer(issuer.url, "edge", introspection_url=url, introspect_jwts=True),
    ):
        registry.set_domain(issuers=[setting])
        with pytest.raises(TrustUnavailable, match="no URL of a server"):
            UserVerifier(registry.trust_store(), clock=clock).verify(token(issuer, clock))


def test_an_edge_that_only_verifies_users_hears_of_an_issuer_that_was_taken_out(issuer: Issuer) -> None:
    """It asks for no key of a peer, which would start the following of changes as well."""
    with MemoryRegistry() as registry:
        registry.set_domain(issuers=[UserIssuer(issuer.url, "edge")])
        users = UserVerifier(registry.trust_store(limits=TrustLimits(poll_interval=0.05, wait=0.0)))
        assert users.verify(token(issuer, Clock(time.time()))).name == "ada"
        registry.set_domain()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                users.verify(token(issuer, Clock(time.time())))
            except WrongIssuer:
                return
            time.sleep(0.02)
        raise AssertionError("it is still let in")


def test_keys_by_url_and_by_file(registry: MemoryRegistry, issuer: Issuer, clock: Clock, tmp_path: Path) -> None:
    registry.set_domain(issuers=[UserIssuer(issuer.url, "edge", issuer.url + JWKS)])
    assert UserVerifier(registry.trust_store(), clock=clock).verify(token(issuer, clock)).name == "ada"
    assert issuer.fetched == {JWKS: 1}, "no discovery"

    named = "https://login.example.com"
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [public_jwk(key, kid) for kid, key in issuer.keys.items()]}))
    registry.set_domain(issuers=[UserIssuer(named, "edge")])
    users = UserVerifier(registry.trust_store(), jwks_files={named: file}, clock=clock)
    assert users.verify(token(issuer, clock, iss=named)).name == "ada"


def test_a_rotated_key_is_found_and_a_withdrawn_one_refused(issuer: Issuer, users: UserVerifier, clock: Clock) -> None:
    old = token(issuer, clock)
    users.verify(old)
    clock.advance(LIMITS.cooldown)
    issuer.rotate(keep=0)
    assert users.verify(token(issuer, clock)).name == "ada"
    with pytest.raises(PeersealError) as refused:
        users.verify(old)
    assert refused.value.code in ("unknown_key", "trust_unavailable")


def test_an_issuer_that_is_down_is_no_verdict(issuer: Issuer, users: UserVerifier, clock: Clock) -> None:
    issuer.down = True
    with pytest.raises(TrustUnavailable):
        users.verify(token(issuer, clock))


# ---- what is minted for a user


def test_a_transaction_is_never_wider_than_the_users_token(
    registry: MemoryRegistry, issuer: Issuer, users: UserVerifier, clock: Clock
) -> None:
    edge, user = registry.identity("edge"), users.verify(token(issuer, clock))
    transaction = edge.mint_transaction(user, scope=["orders:write"], facts={"order": 7})
    assert (transaction.user, transaction.scopes, transaction.facts) == ("ada", {"orders:write"}, {"order": 7})
    with pytest.raises(InsufficientScope):
        edge.mint_transaction(user, scope=["orders:write", "admin"])


def test_nothing_is_minted_once_the_users_token_has_ended(
    registry: MemoryRegistry, issuer: Issuer, users: UserVerifier, clock: Clock
) -> None:
    edge, user = registry.identity("edge"), users.verify(token(issuer, clock, exp=int(clock()) + 60))
    clock.advance(60 + 29)
    assert edge.mint_transaction(user, scope=["orders:read"]).user == "ada", "within the leeway that verifying has"
    clock.advance(1)
    with pytest.raises(Expired):
        edge.mint_transaction(user, scope=["orders:read"])


@pytest.mark.parametrize("after", [0, 450, 900 + 29])
def test_a_transaction_is_good_for_its_15_minutes_though_its_minters_key_was_retired_at_once(
    registry: MemoryRegistry, issuer: Issuer, users: UserVerifier, clock: Clock, after: int
) -> None:
    edge, caller = registry.identity("edge"), registry.identity("caller")
    user = users.verify(token(issuer, clock))
    minted = {"txn-token": edge.mint_transaction(user, scope=["orders:read"], lifetime=timedelta(minutes=15)).carry()}
    edge.stop()
    clock.advance(after)
    cold = Verifier(registry.trust_store(), audience="callee", allow={"caller": {"orders:read"}}, clock=clock)
    request = caller.sign_request("callee", method="GET", target="/", headers=minted)
    peer = cold.verify(request, method="GET", target="/", headers=minted, scope="orders:read")
    assert peer.transaction is not None
    assert peer.transaction.user == "ada"


def test_a_service_that_is_no_minter_mints_nothing(
    registry: MemoryRegistry, issuer: Issuer, users: UserVerifier, clock: Clock
) -> None:
    user = users.verify(token(issuer, clock))
    with pytest.raises(CallerNotAllowed):
        registry.identity("billing").mint_transaction(user, scope=[])


@pytest.mark.parametrize(
    "changes",
    [{"facts": {"x": "y" * 1100}}, {"transaction_id": "t 1"}, {"facts": {"x": object()}}],
    ids=["long facts", "an id with a blank", "no JSON"],
)
def test_what_no_callee_would_read_is_not_minted(registry: MemoryRegistry, changes: dict[str, Any]) -> None:
    user = User("ada", "https://login.example.com", frozenset(("a",)), None, 2**40, {})
    with pytest.raises(UnsignableRequest):
        registry.identity("edge").mint_transaction(user, scope=["a"], **changes)
