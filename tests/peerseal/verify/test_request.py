"""The verifier: what a proven caller is told to be, in which order the steps stand, and what it asks of others."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from peerseal.errors import (
    BadTransactionToken,
    Expired,
    InvalidName,
    PeersealError,
    Replayed,
    TrustUnavailable,
    WrongBinding,
)
from peerseal.protocol.encoding import b64url, digest_header
from peerseal.protocol.tokens.claims import LEEWAY
from peerseal.verify.replay.guards import FileReplayGuard, MemoryReplayGuard
from peerseal.verify.request import BODY_LATER, Peer, RequestHeaders, Verifier
from tests.attacks.forge import (
    BODY,
    CALLEE,
    CALLER,
    DOMAIN,
    HEADERS,
    JTI,
    METHOD,
    NOW,
    OTHER,
    TARGET,
    Callee,
    Keys,
    claims,
    ec_key,
    forge,
    header,
    honest_token,
    rsa_key,
)

KEY = rsa_key("caller")


@pytest.fixture
def callee() -> Callee:
    return Callee()


def verifier(**options: Any) -> Verifier:
    keys = Keys()
    keys.add(CALLER, KEY)
    settings = {"audience": "resource-service", "allow": {"client-service": {"read"}}, "clock": lambda: NOW}
    return Verifier(keys, **{**settings, **options})


def verify(verifier: Verifier, token: str, **request: Any) -> Peer:
    return verifier.verify(token, **{"method": METHOD, "target": TARGET, "body": BODY, "headers": HEADERS, **request})


def test_a_peer_says_who_called_and_what_it_may(callee: Callee) -> None:
    peer = callee.accepts(honest_token(KEY, ctx={"order": 7}), scope="orders:write")
    assert peer.service == "client-service"
    assert peer.id == CALLER
    assert peer.kid == f"{CALLER}/{KEY.public.thumbprint}"
    assert peer.scopes == frozenset({"orders:write"})
    assert dict(peer.claims) == claims(ctx={"order": 7})


def test_a_peer_cannot_be_changed(callee: Callee) -> None:
    peer = callee.accepts(honest_token(KEY))
    for change in (
        lambda: setattr(peer, "scopes", frozenset({"admin"})),
        lambda: peer.claims.__setitem__("iss", OTHER),  # type: ignore[attr-defined]
    ):
        with pytest.raises((AttributeError, TypeError)):
            change()


def test_claims_stay_out_of_a_peers_text(callee: Callee) -> None:
    assert JTI not in repr(callee.accepts(honest_token(KEY)))


@pytest.mark.parametrize("audience", ["resource-service", CALLEE])
@pytest.mark.parametrize("caller", ["client-service", CALLER, "*"])
def test_names_may_be_short_or_whole(audience: str, caller: str) -> None:
    peer = verify(verifier(audience=audience, allow={caller: {"read"}}), honest_token(KEY), scope="read")
    assert (peer.id, peer.scopes) == (CALLER, {"read"})


def test_a_caller_without_scopes_gets_in_where_none_is_needed() -> None:
    assert verify(verifier(allow={"client-service": ()}), honest_token(KEY)).scopes == frozenset()
    with pytest.raises(PeersealError) as caught:
        verify(verifier(allow={"client-service": ()}), honest_token(KEY), scope="read")
    assert (caught.value.code, caught.value.status) == ("insufficient_scope", 403)


def test_a_name_that_is_none_is_found_out_at_once_or_never_let_in() -> None:
    for options in ({"audience": "Resource"}, {"allow": {"Client": {"read"}}}):
        with pytest.raises(InvalidName):
            verify(verifier(**options), honest_token(KEY))


# ---- limits that can be set


def test_the_leeway_can_be_set() -> None:
    late = {"iat": NOW - 100, "nbf": NOW - 100, "exp": NOW - 40}
    assert verify(verifier(leeway=41), honest_token(KEY, **late)).id == CALLER
    for leeway in (0, 30, 40):
        with pytest.raises(PeersealError) as caught:
            verify(verifier(leeway=leeway), honest_token(KEY, **late))
        assert caught.value.code == "expired"


def test_the_lifetime_can_be_cut_and_not_stretched() -> None:
    for limit, lifetime, good in (
        (60, 60, True),
        (60, 61, False),
        (300, 300, True),
        (86400, 300, True),
        (86400, 301, False),
    ):
        token = honest_token(KEY, exp=NOW + lifetime)
        if good:
            assert verify(verifier(max_lifetime=limit), token).id == CALLER
        else:
            with pytest.raises(PeersealError) as caught:
                verify(verifier(max_lifetime=limit), token)
            assert caught.value.code == "lifetime_too_long"


# ---- the order of the steps

# Each claim or circumstance that breaks one step, with the code of that step, in the order of the steps.
STEPS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("wrong_issuer", {"iss": OTHER}, {}),
    ("wrong_audience", {"aud": OTHER}, {}),
    ("lifetime_too_long", {"exp": NOW + 301}, {}),
    ("wrong_binding", {"method": "GET"}, {}),
    ("bad_transaction_token", {"tth": b64url(b"\0" * 32)}, {}),
    ("insufficient_scope", {}, {"scope": "admin"}),
]


@pytest.mark.parametrize("first", range(len(STEPS)))
def test_of_several_things_wrong_the_first_step_speaks(callee: Callee, first: int) -> None:
    spoilt: dict[str, Any] = {}
    request: dict[str, Any] = {}
    for _, claim, circumstance in STEPS[first:]:
        spoilt |= claim
        request |= circumstance
    callee.refuses(honest_token(KEY, **spoilt), STEPS[first][0], **request)


def test_before_the_signature_nothing_is_believed(callee: Callee) -> None:
    """Everything is wrong: the parts are refused from the outside in."""
    spoilt = {"iss": OTHER, "aud": OTHER, "exp": NOW + 301, "method": "GET"}
    attacker = rsa_key("attacker")
    callee.refuses(forge(header(KEY, typ="JWT"), claims(**spoilt), attacker.sign), "wrong_type")
    callee.refuses(forge(header(KEY), claims(**spoilt, extra=1), attacker.sign), "malformed_token")
    callee.refuses(forge(header(KEY, f"{DOMAIN}/nobody"), claims(**spoilt), attacker.sign), "caller_not_allowed")
    callee.refuses(forge(header(attacker), claims(**spoilt), attacker.sign), "unknown_key")
    callee.refuses(forge(header(KEY), claims(**spoilt), attacker.sign), "bad_signature")
    callee.refuses(forge(header(KEY), claims(**spoilt), KEY.sign), "wrong_issuer")


def test_replay_is_asked_last_and_once(callee: Callee) -> None:
    token = honest_token(KEY)
    for code, request in (("wrong_binding", {"target": "/"}), ("insufficient_scope", {"scope": "admin"})):
        callee.refuses(token, code, **request)
    assert callee.guard.asked == 0
    callee.accepts(token)
    assert callee.guard.asked == 1


# ---- read, check and claim

REQUEST: dict[str, Any] = {"method": METHOD, "target": TARGET, "body": BODY, "headers": HEADERS}


def test_a_check_records_nothing_and_a_claim_accepts_once(callee: Callee) -> None:
    unverified = callee.verifier.read(honest_token(KEY))
    checks = [callee.verifier.check(unverified, **REQUEST, scope="orders:write") for _ in range(3)]
    assert callee.guard.asked == 0
    assert callee.verifier.claim(checks[0]) == checks[0].peer
    with pytest.raises(Replayed):
        callee.verifier.claim(checks[1])
    callee.refuses(honest_token(KEY), "replayed")


def test_reading_asks_for_no_key(callee: Callee) -> None:
    unverified = callee.verifier.read(honest_token(KEY, owner=OTHER))
    assert (unverified.signer.service_id, callee.keys.asked) == (OTHER, [])


def test_what_was_checked_is_not_claimed_once_the_guard_may_forget_it(callee: Callee) -> None:
    checked = callee.verifier.check(callee.verifier.read(honest_token(KEY)), **REQUEST)
    callee.now = checked.until
    with pytest.raises(Expired):
        callee.verifier.claim(checked)
    assert callee.guard.asked == 0
    callee.now -= 1
    callee.verifier.claim(checked)


def test_a_check_asks_the_source_that_it_is_given(callee: Callee) -> None:
    other = Keys()
    other.add(CALLER, KEY)
    unverified = callee.verifier.read(honest_token(KEY))
    callee.verifier.check(unverified, **REQUEST, source=other)
    assert (len(other.asked), len(callee.keys.asked)) == (1, 0)


def test_a_body_that_is_read_later_is_checked_before_the_claim(callee: Callee) -> None:
    unverified = callee.verifier.read(honest_token(KEY))
    request = {**REQUEST, "body": BODY_LATER}
    for code, change in (("wrong_binding", {"target": "/"}), ("insufficient_scope", {"scope": "admin"})):
        with pytest.raises(PeersealError) as refused:
            callee.verifier.check(unverified, **{**request, **change})
        assert refused.value.code == code
    checked = callee.verifier.check(unverified, **request)
    with pytest.raises(ValueError, match="was not checked"):
        callee.verifier.claim(checked)
    with pytest.raises(WrongBinding):
        checked.with_content(BODY + b" ")
    assert callee.guard.asked == 0
    assert callee.verifier.claim(checked.with_content(BODY)).id == CALLER


def test_a_digest_that_the_program_computed_stands_for_the_body(callee: Callee) -> None:
    checked = callee.verifier.check(callee.verifier.read(honest_token(KEY)), **{**REQUEST, "body": BODY_LATER})
    with pytest.raises(WrongBinding):
        checked.with_digest(digest_header(BODY + b" "))
    assert callee.verifier.claim(checked.with_digest(digest_header(BODY))).id == CALLER


# ---- what it asks of others


class DarkKeys(Keys):
    """A key source that cannot say anything now."""

    def key(self, kid: str) -> Any:
        raise TrustUnavailable("no line", retry_after=7)


def test_a_key_that_cannot_be_had_now_is_nobodys_fault() -> None:
    unavailable = Verifier(DarkKeys(), audience="resource-service", allow={"client-service": ()}, clock=lambda: NOW)
    with pytest.raises(TrustUnavailable) as caught:
        verify(unavailable, honest_token(KEY))
    assert (caught.value.code, caught.value.status, caught.value.retry_after) == ("trust_unavailable", 503, 7)


def test_the_domain_is_asked_for_when_the_first_token_comes_and_until_it_is_known() -> None:
    """A service starts while its registry is down."""

    class Waking(Keys):
        asleep = True

        @property
        def domain(self) -> str:  # type: ignore[override]
            if self.asleep:
                raise TrustUnavailable("not yet")
            return DOMAIN

    keys = Waking()
    keys.add(CALLER, KEY)
    waiting = Verifier(keys, audience="resource-service", allow={"client-service": ()}, clock=lambda: NOW)
    with pytest.raises(TrustUnavailable):
        verify(waiting, honest_token(KEY))
    keys.asleep = False
    assert verify(waiting, honest_token(KEY)).id == CALLER


def test_the_body_may_be_bytes_or_a_function_that_reads_them(callee: Callee) -> None:
    callee.accepts(honest_token(KEY), body=lambda: BODY)
    callee.accepts(honest_token(KEY, jti=f"B{JTI[1:]}"), body=BODY)


def test_an_error_while_reading_the_body_is_the_callers_to_see(callee: Callee) -> None:
    def broken() -> bytes:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        callee.accepts(honest_token(KEY), body=broken)
    assert callee.guard.asked == 0


def test_headers_are_optional_where_nothing_is_bound(callee: Callee) -> None:
    bare = honest_token(KEY, method="GET", headers={}, content_digest=digest_header(b""))
    assert callee.verifier.verify(bare, method="GET", target=TARGET).id == CALLER


def test_headers_are_looked_up_and_not_walked_through(callee: Callee) -> None:
    class Lazy(RequestHeaders):
        def __getitem__(self, name: str) -> str:
            return HEADERS[name]

        def __iter__(self) -> Any:
            raise AssertionError("walked through")

        def __len__(self) -> int:
            raise AssertionError("counted")

        def __eq__(self, other: object) -> bool:
            return NotImplemented

        __hash__ = None  # type: ignore[assignment]

    callee.accepts(honest_token(KEY), headers=Lazy())


def test_an_empty_replay_guard_is_a_replay_guard() -> None:
    """It is false while it is empty; it must be used all the same."""
    guard = MemoryReplayGuard(clock=lambda: NOW)
    assert not guard
    verify(verifier(replay=guard), honest_token(KEY))
    assert len(guard) == 1


def test_the_guard_keeps_a_token_until_it_can_no_longer_be_accepted() -> None:
    class Noting(MemoryReplayGuard):
        until = 0.0

        def claim(self, issuer: str, jti: str, until: float) -> bool:
            assert (issuer, jti) == (CALLER, JTI)
            self.until = until
            return super().claim(issuer, jti, until)

    guard = Noting(clock=lambda: NOW)
    verify(verifier(replay=guard, leeway=70), honest_token(KEY, exp=NOW + 100))
    assert guard.until == NOW + 170


@pytest.mark.parametrize("leeway", [0, 17, LEEWAY])
def test_verifiers_with_another_leeway_look_for_a_token_where_it_was_kept(tmp_path: Path, leeway: int) -> None:
    guard = FileReplayGuard(tmp_path / "replay", clock=lambda: NOW)
    for number in range(30):
        token = honest_token(KEY, exp=NOW + 100 + number, jti=b64url(number.to_bytes(16, "big")))
        verify(verifier(replay=guard), token)
        with pytest.raises(Replayed):
            verify(verifier(replay=guard, leeway=leeway), token)


def test_both_algorithms_and_all_services_share_one_verifier(callee: Callee) -> None:
    for _ in range(2):
        for key, owner in ((KEY, CALLER), (ec_key("caller"), CALLER), (rsa_key("other"), OTHER)):
            jti = b64url(len(callee.keys.asked).to_bytes(16, "big"))
            assert callee.accepts(honest_token(key, owner, jti=jti)).id == owner


@pytest.mark.parametrize("name", ["Content-Type", "CONTENT-TYPE", "Txn-Token"])
def test_any_mapping_of_headers_is_read_whatever_the_case(callee: Callee, name: str) -> None:
    bare = honest_token(KEY, method="GET", headers={}, content_digest=digest_header(b""))
    with pytest.raises((WrongBinding, BadTransactionToken)):
        callee.verifier.verify(bare, method="GET", target=TARGET, headers=MappingProxyType({name: "text/plain"}))
