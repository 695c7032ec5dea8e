"""The registry's policies at the callee: what is believed and for how long, and that code AND registry decide."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from peerseal import Identity, TrustLimits, TrustStore, Verifier
from peerseal.errors import (
    CallerNotAllowed,
    DocumentRefused,
    InsufficientScope,
    PeersealError,
    TrustUnavailable,
)
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.policies import CallPolicy
from peerseal.testing import Answer, Clock, MemoryRegistry
from peerseal.trust.shelves import KnownSetting
from peerseal.verify.request import Peer

CALLEE = "test.internal/callee"
POLICY = "GET /v1/services/callee/policy.jwt"
PATH = "/v1/services/callee/policy.jwt"
KEYS = "GET /v1/services/client/jwks.jwt"
QUIET = TrustLimits(poll_interval=3600.0, refresh_interval=10 * 24 * 3600.0)
"""The background thread sleeps through the test, which calls ``refresh`` itself; time alone makes nothing due."""

Call = Callable[..., Peer]


@pytest.fixture
def callee(registry: MemoryRegistry) -> Identity:
    return registry.identity("callee", limits=QUIET)


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client", limits=QUIET)


@pytest.fixture
def call(callee: Identity, client: Identity, clock: Clock, registry: MemoryRegistry) -> Call:
    """A call of the client's, verified at the callee, whose code lets it read and write."""
    verifier = Verifier(callee.trust, audience="callee", allow={"client": {"read", "write"}}, clock=clock)

    def call(scope: str | None = None, by: Identity = client) -> Peer:
        token = by.sign_request("callee", method="GET", target="/")
        return verifier.verify(token, method="GET", target="/", scope=scope)

    registry.calls.clear()
    return call


def code_of(do: Callable[[], Any]) -> str:
    with pytest.raises(PeersealError) as caught:
        do()
    return caught.value.code


# ---- the belief


def document(seq: int = 5, head: int = 9, at: int = 1000, policy: CallPolicy | None = None) -> PolicyDocument:
    place: dict[str, Any] = {"seq": seq, "head": head, "checkpoint": ""}
    return PolicyDocument(**frame(CALLEE, at, 86400), **place, policy=policy)


def changes(since: int, seq: int, *services: str, at: int = 2000, reset: bool = False) -> Changes:
    told: dict[str, Any] = {"since": since, "seq": seq, "checkpoint": "", "services": services, "reset": reset}
    return Changes(**frame("test.internal", at, 60), **told)


def frame(subject: str, at: int, lifetime: int) -> dict[str, Any]:
    return {"issuer": "test.internal/registry", "subject": subject, "issued_at": at, "expires_at": at + lifetime}


WIDE, NARROW = CallPolicy({"*": frozenset(("read",))}), CallPolicy({})


def test_a_newer_policy_takes_the_place_of_an_older_one() -> None:
    known = KnownSetting.of(document(policy=WIDE), WIDE).updated(document(10, 12, 2000, NARROW), NARROW)
    assert known == KnownSetting(NARROW, 10, 12, 2000, 2000 + 86400)


@pytest.mark.parametrize("older", [document(4, 9, policy=WIDE), document(6, 8, policy=WIDE)])
def test_an_older_policy_is_refused(older: PolicyDocument) -> None:
    """Be it in an older document, or in one that knows less of the ledger than was seen."""
    with pytest.raises(DocumentRefused) as refused:
        KnownSetting.of(document(), None).updated(older, WIDE)
    assert refused.value.code == "document_rolled_back"


def test_an_older_copy_of_the_same_policy_says_nothing_new() -> None:
    known = KnownSetting.of(document(head=9, at=3000), None)
    assert known.updated(document(head=7, at=1000), None) == known


def test_a_list_of_changes_confirms_a_policy_that_it_does_not_name() -> None:
    known = KnownSetting.of(document(), None)
    confirmed = known.confirmed(CALLEE, changes(9, 12, "test.internal/other"))
    assert confirmed == KnownSetting(None, 5, 12, 2000, 1000 + 86400)
    assert known.confirmed(CALLEE, changes(3, 8)) is known
    for doubt in (changes(9, 12, CALLEE), changes(10, 12), changes(9, 12, reset=True)):
        assert known.confirmed(CALLEE, doubt) is None


# ---- code AND registry


def test_without_a_policy_code_decides(call: Call) -> None:
    assert call("read").scopes == {"read", "write"}
    assert code_of(lambda: call("admin")) == "insufficient_scope"


def test_what_both_allow_is_allowed(registry: MemoryRegistry, callee: Identity, call: Call) -> None:
    registry.set_policy("callee", {"client": ["read", "admin"]})
    assert call("read").scopes == {"read"}
    for scope in ("write", "admin"):
        with pytest.raises(InsufficientScope):
            call(scope)


@pytest.mark.parametrize("allow", [{}, {"somebody": ["read"]}])
def test_a_policy_that_does_not_name_the_caller_refuses_it(
    registry: MemoryRegistry, call: Call, allow: dict[str, list[str]]
) -> None:
    registry.set_policy("callee", allow)
    with pytest.raises(CallerNotAllowed):
        call()
    assert registry.calls[KEYS] == 0, "nothing is fetched for a caller that may not call"


def test_a_policy_lets_nobody_in_whom_code_does_not(registry: MemoryRegistry, call: Call) -> None:
    registry.set_policy("callee", {"*": ["read"]})
    stranger = registry.identity("stranger", limits=QUIET)
    registry.calls.clear()
    assert code_of(lambda: call(by=stranger)) == "caller_not_allowed"
    assert registry.calls[POLICY] == 0, "nor is the registry asked about it"
    assert call("read").scopes == {"read"}


def test_a_change_is_in_force_after_the_next_look(registry: MemoryRegistry, callee: Identity, call: Call) -> None:
    assert call("write")
    registry.set_policy("callee", {"client": ["read"]})
    assert call("write"), "not known yet"
    callee.trust.refresh()
    assert code_of(lambda: call("write")) == "insufficient_scope"
    registry.set_policy("callee", None)
    callee.trust.refresh()
    assert call("write")
    assert registry.calls[POLICY] == 3


def test_the_policy_is_fetched_once_and_confirmed_from_then_on(
    registry: MemoryRegistry, callee: Identity, call: Call, clock: Clock
) -> None:
    registry.set_policy("callee", {"*": ["read"]})
    for _ in range(5):
        call("read")
        clock.advance(3000)
        callee.trust.refresh()
    assert registry.calls[POLICY] == 1


def test_both_are_put_together_once_a_policy(registry: MemoryRegistry, callee: Identity, call: Call) -> None:
    registry.set_policy("callee", {"*": ["read"]})
    first = callee.trust.policy(CALLEE)
    registry.retire(callee.credentials.key_id)  # another change of the service: its policy says what it said
    callee.trust.refresh()
    assert registry.calls[POLICY] == 2
    assert callee.trust.policy(CALLEE) is first


# ---- what cannot be had


def test_a_policy_that_was_never_had_refuses_everybody(registry: MemoryRegistry, call: Call, clock: Clock) -> None:
    """It may be one that denies."""
    registry.answers[PATH] = Answer(404, b"{}")
    with pytest.raises(TrustUnavailable) as refused:
        call()
    assert refused.value.retry_after == 6
    assert code_of(call) == "trust_unavailable"
    assert registry.calls[POLICY] == 1, "and is not asked for again at once"
    del registry.answers[PATH]
    clock.advance(5)
    assert call()


def test_a_failed_refresh_takes_nothing_away_until_the_offline_limit(
    registry: MemoryRegistry, callee: Identity, call: Call, clock: Clock
) -> None:
    registry.set_policy("callee", {"client": ["read"]})
    assert call("read")
    registry.down = True
    clock.advance(3599)
    callee.trust.refresh()
    assert call("read")
    assert code_of(lambda: call("write")) == "insufficient_scope"
    clock.advance(1)
    assert code_of(lambda: call("read")) == "trust_unavailable"
    registry.down = False
    clock.advance(5)
    assert call("read")


def test_a_change_that_cannot_be_fetched_is_tried_again_with_pauses(
    registry: MemoryRegistry, callee: Identity, call: Call, clock: Clock
) -> None:
    assert call("write")
    registry.set_policy("callee", {"client": ["read"]})
    registry.answers[PATH] = Answer(500, b"")
    for _ in range(4):
        callee.trust.refresh()
    assert registry.calls[POLICY] == 3, "the first, and two failures: then comes a pause"
    assert call("write"), "what was known holds"
    del registry.answers[PATH]
    clock.advance(60)
    callee.trust.refresh()
    assert code_of(lambda: call("write")) == "insufficient_scope"


def signed(registry: MemoryRegistry, document: PolicyDocument) -> Answer:
    return Answer(200, registry.sign(document).encode("ascii"))


def test_a_mirror_that_shows_an_older_policy_is_refused(registry: MemoryRegistry, callee: Identity, call: Call) -> None:
    older = signed(registry, registry.policy_document("callee"))
    registry.set_policy("callee", {"client": ["read"]})
    assert call("read")
    registry.set_policy("callee", {"client": ["write"]})
    registry.answers[PATH] = older
    callee.trust.refresh()
    assert call("read"), "what was known holds"
    assert code_of(lambda: call("write")) == "insufficient_scope"


@pytest.mark.parametrize("of", ["another service", "another signer", "nothing at all"])
def test_a_mirror_that_shows_another_policy_is_refused(registry: MemoryRegistry, call: Call, of: str) -> None:
    other = registry.policy_document("other")
    forged = sign_document(registry.policy_document("callee"), registry.root)
    answers = {"another service": signed(registry, other), "another signer": Answer(200, forged.encode())}
    registry.answers[PATH] = answers.get(of, Answer(200, b""))
    assert code_of(call) == "trust_unavailable"


# ---- restricted policies


def test_a_restricted_policy_is_asked_for_in_the_own_name(
    registry: MemoryRegistry, callee: Identity, call: Call
) -> None:
    registry.set_policy("callee", {"client": ["read"]}, restricted=True)
    assert call("read").scopes == {"read"}
    assert registry.calls[POLICY] == 2, "without a token first: most policies are told to everybody"
    registry.set_policy("callee", {"client": ["write"]}, restricted=True)
    callee.trust.refresh()
    assert call("write").scopes == {"write"}
    assert registry.calls[POLICY] == 3, "the second time with one at once"
    registry.set_policy("callee", None)
    callee.trust.refresh()
    assert call("write").scopes == {"read", "write"}


def test_a_restricted_policy_is_told_to_whom_it_names_and_nobody_else(
    registry: MemoryRegistry, callee: Identity, client: Identity
) -> None:
    registry.set_policy("callee", {"client": []}, restricted=True)
    stranger, nobody = registry.identity("stranger", limits=QUIET), registry.trust_store(limits=QUIET)
    for trust in (callee.trust, client.trust):
        assert trust.policy(CALLEE) == CallPolicy({"test.internal/client": frozenset()}, restricted=True)
    for trust in (stranger.trust, nobody):
        assert code_of(lambda trust=trust: trust.policy(CALLEE)) == "trust_unavailable"  # type: ignore[misc]


def test_the_ledger_does_not_say_what_a_restricted_policy_allows(registry: MemoryRegistry) -> None:
    registry.set_policy("callee", {"client": ["read"]}, restricted=True)
    assert registry.ledger.entries[-1].data == {"policy": {"restricted": True}}


# ---- the store


def test_a_service_of_another_domain_has_no_policy_here(registry: MemoryRegistry) -> None:
    trust: TrustStore = registry.trust_store(limits=QUIET)
    assert trust.policy("other.internal/callee") is None
    assert registry.calls[POLICY] == 0


def test_a_policy_signed_by_a_key_that_the_root_dropped_is_fetched_anew(
    registry: MemoryRegistry, callee: Identity, call: Call, clock: Clock
) -> None:
    """A thief of the key may have signed it, with a number that no true one reaches."""
    honest = registry.policy_document("callee")
    stolen = replace(honest, seq=honest.head, policy=CallPolicy({}))
    registry.answers[PATH] = signed(registry, stolen)
    assert code_of(call) == "caller_not_allowed"
    del registry.answers[PATH]
    registry.roll_signing_key()
    clock.advance(10)
    callee.trust.refresh()
    callee.trust.refresh()
    assert call("read")
