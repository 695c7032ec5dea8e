"""Foreign trust domains at a trust store: believed through their own registry, as the federation document says."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peerseal import TrustLimits, TrustStore, Verifier
from peerseal.errors import CallerNotAllowed, InsufficientScope, PeersealError, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.federation import FederatedDomain, Federation
from peerseal.testing import Answer, Clock, MemoryRegistry
from peerseal.verify.response import ResponseHead, ResponseVerifier
from tests.peerseal.served import Child
from tests.support.between import Between
from tests.support.misbehaving import hangs, misbehaving
from tests.support.two_domains import BILLING, QUIET, SHOP, TwoDomains, code_of, two_domains
from tests.support.waiting import until

FEDERATION = "/v1/federation.jwt"
CALLS = f"GET {FEDERATION}"
FOLLOWING = "GET /v1/changes/recent.jwt"
LIVELY = TrustLimits(wait=0.0, poll_interval=0.05, look_interval=0.01)
"""The background threads ask twenty times a second what changed."""


@pytest.fixture
def domains(clock: Clock) -> Iterator[TwoDomains]:
    with two_domains(clock) as domains:
        yield domains


# ---- what is believed


def test_services_of_two_domains_call_each_other(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    domains.partner.federate(domains.acme)
    peer = domains.call(domains.verifier())
    assert peer.id == BILLING
    assert peer.scopes == {"read", "write"}

    token = domains.shop.sign_request(BILLING, method="GET", target="/")
    callee = Verifier(domains.billing.trust, audience="billing", allow={SHOP: {"read"}}, clock=domains.clock)
    assert callee.verify(token, method="GET", target="/").id == SHOP


def test_the_short_name_of_a_foreign_service_is_its_id(domains: TwoDomains) -> None:
    """An application that compares the short name must not take the partner's billing for its own."""
    own = domains.acme.identity("billing", limits=QUIET)
    domains.acme.federate(domains.partner)
    verifier = domains.verifier({BILLING: {"read"}, "billing": {"read"}})
    assert domains.call(verifier).service == BILLING
    assert domains.call(verifier, own).service == "billing"


def test_nothing_is_asked_of_a_federation_without_a_foreign_service(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    own = domains.acme.identity("client", limits=QUIET)
    for allow in ({"client": {"read"}}, {"*": {"read"}}, {BILLING: {"read"}, "client": ()}):
        domains.call(domains.verifier(allow), own)
    domains.trust.refresh()
    assert domains.acme.calls[CALLS] == 0
    assert "GET /v1/services/billing/jwks.jwt" not in domains.partner.calls


def test_without_a_federation_a_foreign_service_is_unknown(domains: TwoDomains) -> None:
    assert code_of(lambda: domains.call(domains.verifier())) == "unknown_key"
    assert domains.partner.calls["GET /v1/services/billing/jwks.jwt"] == 0


def test_any_service_of_the_domain_is_no_foreign_one(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    domains.acme.set_policy("shop", {"*": ["read"], BILLING: ["read"]})
    domains.trust.refresh()
    assert code_of(lambda: domains.call(domains.verifier({"*": {"read"}}))) == "caller_not_allowed"
    assert domains.acme.calls[CALLS] == 0


def test_a_policy_narrows_what_a_foreign_service_may_do(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    verifier = domains.verifier()
    domains.acme.set_policy("shop", {BILLING: ["read"]})
    domains.trust.refresh()
    assert domains.call(verifier).scopes == {"read"}
    domains.acme.set_policy("shop", {"*": ["read", "write"]})
    domains.trust.refresh()
    with pytest.raises(CallerNotAllowed):
        domains.call(verifier)


def test_services_that_the_document_does_not_name_are_unknown(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner, services=["invoices"])
    assert code_of(lambda: domains.call(domains.verifier())) == "unknown_key"
    assert domains.partner.calls["GET /v1/services/billing/jwks.jwt"] == 0
    domains.federate(services=["invoices", "billing"])
    assert domains.call(domains.verifier()).id == BILLING


def test_scopes_are_those_of_code_and_document(domains: TwoDomains) -> None:
    verifier = domains.verifier()
    domains.acme.federate(domains.partner, scopes=["read", "admin"])
    assert domains.call(verifier).scopes == {"read"}
    with pytest.raises(InsufficientScope):
        domains.call(verifier, scope="write")
    with pytest.raises(InsufficientScope):
        domains.call(verifier, scope="admin")
    domains.federate(scopes=["write"])
    assert domains.call(verifier).scopes == {"write"}
    domains.federate(scopes=[])
    assert domains.call(verifier).scopes == frozenset()


def test_the_foreign_registry_itself_may_not_call(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    kid = f"partner.example/registry/{domains.partner.signing_key.public.thumbprint}"
    for look_up in (domains.trust.key, domains.trust.recorded_key):
        with pytest.raises(UnknownKey):
            look_up(kid)


# ---- what is taken away


def test_a_federation_that_is_taken_away_ends_with_the_list_of_changes(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    verifier = domains.verifier()
    domains.call(verifier)
    domains.acme.end_federation("partner.example")
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) == "unknown_key"
    assert domains.trust.known_key(domains.billing.credentials.key_id) is None


def test_a_federation_that_comes_back_is_believed_again(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    verifier = domains.verifier()
    domains.call(verifier)
    domains.acme.end_federation("partner.example")
    domains.trust.refresh()
    domains.federate()
    assert domains.call(verifier).id == BILLING


def test_taking_away_one_federation_leaves_the_others(domains: TwoDomains, clock: Clock) -> None:
    with MemoryRegistry("third.example", clock=clock) as third:
        other = third.identity("billing", limits=QUIET)
        domains.acme.federate(domains.partner)
        domains.acme.federate(third)
        verifier = domains.verifier({BILLING: {"read"}, "third.example/billing": {"read"}})
        domains.call(verifier)
        domains.call(verifier, other)
        domains.acme.end_federation("partner.example")
        domains.trust.refresh()
        assert code_of(lambda: domains.call(verifier)) == "unknown_key"
        third.down = True
        assert domains.call(verifier, other).id == "third.example/billing"


def test_no_foreign_key_is_believed_while_the_changed_document_cannot_be_had(domains: TwoDomains) -> None:
    """The change may be that the federation was taken away. Keys of the own domain are believed as before."""
    own = domains.acme.identity("client", limits=QUIET)
    domains.acme.federate(domains.partner)
    verifier = domains.verifier({BILLING: {"read"}, "client": {"read"}})
    domains.call(verifier)
    domains.call(verifier, own)
    domains.acme.end_federation("partner.example")
    domains.acme.answers[FEDERATION] = Answer(500, b"")
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) == "trust_unavailable"
    assert domains.call(verifier, own).service == "client"


def test_a_federation_is_taken_away_within_seconds_without_a_restart(clock: Clock) -> None:
    with two_domains(clock, LIVELY) as domains:
        domains.acme.federate(domains.partner)
        verifier = domains.verifier()
        domains.call(verifier)

        def is_refused() -> bool:
            try:
                domains.call(verifier)
            except UnknownKey:
                return True
            return False

        own = domains.acme.identity("client", limits=QUIET).credentials.key_id
        domains.trust.key(own)
        domains.acme.end_federation("partner.example")
        until(is_refused)
        followed, before = domains.partner.calls[FOLLOWING], domains.acme.calls[FOLLOWING]
        until(lambda: domains.acme.calls[FOLLOWING] > before + 5)
        assert domains.partner.calls[FOLLOWING] <= followed + 1, "the store of the partner is closed"


def test_a_revoked_foreign_key_is_refused_and_its_registry_says_so(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    verifier = domains.verifier()
    domains.call(verifier)
    domains.partner.revoke(domains.billing.credentials.key_id)
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) == "revoked_key"


# ---- registries that fail


def test_a_foreign_registry_that_is_down_takes_nothing_away_within_the_offline_limit(
    domains: TwoDomains, clock: Clock
) -> None:
    domains.acme.federate(domains.partner)
    own = domains.acme.identity("client", limits=QUIET)
    verifier = domains.verifier({BILLING: {"read"}, "client": {"read"}})
    domains.call(verifier)
    domains.call(verifier, own)
    domains.partner.down = True
    clock.advance(QUIET.offline_limit - 60)
    domains.trust.refresh()
    assert domains.call(verifier).id == BILLING
    clock.advance(120)
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) == "trust_unavailable"
    assert domains.call(verifier, own).service == "client"


def test_under_another_url_the_known_keys_of_a_registry_that_is_down_stay(domains: TwoDomains) -> None:
    """An operator adds a mirror because the registry is down."""
    domains.acme.federate(domains.partner)
    verifier = domains.verifier()
    domains.call(verifier)
    late = domains.partner.identity("late", limits=QUIET)
    [known] = domains.acme.federation_document().federation.domains
    asked: list[str] = []
    domains.acme.elsewhere["https://mirror.example"] = Between(domains.partner, asked.append)
    domains.partner.down = True
    domains.acme.set_federation(Federation((replace(known, urls=("https://mirror.example", *known.urls)),)))
    domains.trust.refresh()
    assert domains.call(verifier).id == BILLING
    domains.partner.down = False
    wider = domains.verifier({"partner.example/late": {"read"}})
    assert domains.call(wider, late).id == "partner.example/late"
    assert "/v1/services/late/jwks.jwt" in {path.partition("?")[0] for path in asked}, "the new URL is asked"


def test_a_url_that_was_given_up_is_asked_no_more(clock: Clock) -> None:
    with two_domains(clock, LIVELY) as domains:
        old, new = list[str](), list[str]()
        domains.acme.federate(domains.partner)
        domains.acme.elsewhere[domains.partner.url] = Between(domains.partner, old.append)
        domains.acme.elsewhere["https://new.example"] = Between(domains.partner, new.append)
        verifier = domains.verifier()
        domains.call(verifier)
        [known] = domains.acme.federation_document().federation.domains
        domains.acme.set_federation(Federation((replace(known, urls=("https://new.example",)),)))
        until(lambda: len(new) > 2)
        asked = len(old)
        until(lambda: len(new) > 5)
        assert len(old) <= asked + 1
        domains.call(verifier)


def test_the_own_registry_may_be_down_within_the_offline_limit(domains: TwoDomains, clock: Clock) -> None:
    domains.acme.federate(domains.partner)
    verifier = domains.verifier()
    domains.call(verifier)
    domains.acme.down = True
    clock.advance(QUIET.offline_limit - 60)
    domains.trust.refresh()
    assert domains.call(verifier).id == BILLING
    clock.advance(120)
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) == "trust_unavailable"


def test_a_registry_of_an_earlier_release_has_no_federation(domains: TwoDomains, clock: Clock) -> None:
    """Its 404 is remembered for a while, and then it is asked again: it may have been upgraded."""
    domains.acme.answers[FEDERATION] = Answer(404, b"")
    for _ in range(3):
        assert code_of(lambda: domains.call(domains.verifier())) == "unknown_key"
    assert domains.acme.calls[CALLS] == 1
    del domains.acme.answers[FEDERATION]
    domains.acme.federate(domains.partner)
    clock.advance(QUIET.negative_ttl + 1)
    assert domains.call(domains.verifier()).id == BILLING


def test_a_404_does_not_end_a_federation_that_was_signed(domains: TwoDomains) -> None:
    """Nor does it go on without the document that a change announced."""
    domains.acme.federate(domains.partner)
    verifier = domains.verifier()
    domains.call(verifier)
    domains.acme.answers[FEDERATION] = Answer(404, b"")
    domains.trust.refresh()
    assert domains.call(verifier).id == BILLING
    domains.acme.set_domain()
    domains.trust.refresh()
    assert code_of(lambda: domains.call(verifier)) == "trust_unavailable"


def hanging(domains: TwoDomains, url: str) -> None:
    """Let acme federate with a registry of the partner's that hangs."""
    domains.acme.set_federation(Federation((FederatedDomain("partner.example", (url,), domains.partner.pin),)))


def test_a_foreign_registry_that_hangs_is_given_up(clock: Clock) -> None:
    with two_domains(clock, replace(QUIET, patience=0.2)) as domains, misbehaving(hangs) as server:
        hanging(domains, server.url)
        for _ in range(3):
            assert code_of(lambda: domains.call(domains.verifier())) == "trust_unavailable"
        assert server.asked <= 2, "the second and third call do not wait for it again"


def test_a_foreign_registry_that_hangs_holds_up_only_the_first_of_its_callers(clock: Clock) -> None:
    """Neither a call of the own domain, nor a further one of the foreign domain, waits for it."""
    with two_domains(clock, replace(QUIET, patience=60.0, foreign_waits=1)) as domains, misbehaving(hangs) as server:
        hanging(domains, server.url)
        own = domains.acme.identity("client", limits=QUIET)
        verifier = domains.verifier({BILLING: {"read"}, "client": {"read"}})
        refused = threading.Event()

        def call() -> None:
            with pytest.raises(TrustUnavailable):
                domains.call(verifier)
            refused.set()

        threading.Thread(target=call, daemon=True).start()
        until(lambda: server.asked > 0)
        assert domains.call(verifier, own).service == "client", "whose key is fetched meanwhile"
        with pytest.raises(TrustUnavailable, match="wait already"):
            domains.call(verifier)
        assert not refused.is_set(), "the first caller still waits"


def test_invented_foreign_kids_cost_their_own_registry_one_question(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    own = domains.acme.identity("client", limits=QUIET)
    verifier = domains.verifier({BILLING: {"read"}, "client": {"read"}})
    domains.call(verifier)
    domains.acme.calls.clear()
    domains.partner.calls.clear()
    for number in range(50):
        with pytest.raises((UnknownKey, TrustUnavailable)):
            domains.trust.key(f"{BILLING}/{'A' * 40}{number:02d}A")
    assert domains.acme.calls.total() == 0
    assert domains.partner.calls.total() <= 2
    assert domains.call(verifier, own).service == "client"


# ---- two registries of one domain


def test_either_of_two_registries_vouches_while_the_partner_changes_its_root(domains: TwoDomains, clock: Clock) -> None:
    with MemoryRegistry("partner.example", clock=clock) as second:
        moved = second.identity("billing", limits=QUIET)
        domains.acme.federate(domains.partner)
        verifier = domains.verifier()
        domains.call(verifier)
        domains.acme.federate(second)
        domains.trust.refresh()
        assert domains.call(verifier).id == domains.call(verifier, moved).id == BILLING
        domains.acme.set_federation(Federation((FederatedDomain("partner.example", (second.url,), second.pin),)))
        domains.trust.refresh()
        assert domains.call(verifier, moved).id == BILLING
        assert code_of(lambda: domains.call(verifier)) == "unknown_key", "the first root is no longer believed"


def test_a_key_that_one_of_two_registries_revoked_is_refused(domains: TwoDomains, clock: Clock) -> None:
    with MemoryRegistry("partner.example", clock=clock) as second:
        pair = domains.billing.credentials
        key = domains.partner.found(pair.key_id)
        second.admit("billing", key.public, {"join_token": "moved"}, "proof")
        domains.acme.federate(domains.partner)
        domains.acme.federate(second)
        verifier = domains.verifier()
        assert domains.call(verifier).id == BILLING
        second.revoke(pair.key_id)
        domains.trust.refresh()
        assert code_of(lambda: domains.call(verifier)) == "revoked_key"
        domains.partner.down = True
        assert code_of(lambda: domains.call(verifier)) == "revoked_key"


# ---- folders


def test_a_cold_start_believes_foreign_keys_from_the_disk_while_their_registry_is_down(
    domains: TwoDomains, tmp_path: Path
) -> None:
    domains.acme.federate(domains.partner)
    kid = domains.billing.credentials.key_id
    domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)
    domains.partner.down = True
    again = domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path)
    assert again.key(kid).service_id == BILLING
    domains.acme.end_federation("partner.example")
    with pytest.raises(UnknownKey):
        domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)


def test_a_restart_does_not_believe_a_federation_that_was_taken_away_meanwhile(
    domains: TwoDomains, tmp_path: Path
) -> None:
    domains.acme.federate(domains.partner)
    kid = domains.billing.credentials.key_id
    domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)
    domains.acme.end_federation("partner.example")
    domains.acme.answers[FEDERATION] = Answer(500, b"")
    with pytest.raises(TrustUnavailable):
        domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)


def test_in_a_folder_that_all_users_share_each_user_has_a_part(domains: TwoDomains, tmp_path: Path) -> None:
    """As for the own registry: another user must not make the folder first."""
    tmp_path.chmod(0o1777)
    domains.acme.federate(domains.partner)
    kid = domains.billing.credentials.key_id
    domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)
    [own] = tmp_path.iterdir()
    assert foreign_folders(own, domains.acme) == {domains.partner.pin}


def foreign_folders(cache_dir: Path, own: MemoryRegistry) -> set[str]:
    """The roots that have a folder of their own."""
    return {folder.name for folder in (cache_dir / "foreign" / own.pin).iterdir()}


def test_the_folder_goes_with_the_federation_and_the_others_stay(
    domains: TwoDomains, tmp_path: Path, clock: Clock
) -> None:
    with MemoryRegistry("third.example", clock=clock) as third:
        other = third.identity("billing", limits=QUIET).credentials.key_id
        for registry in (domains.partner, third):
            domains.acme.federate(registry)
        trust = domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path)
        for kid in (domains.billing.credentials.key_id, other):
            trust.key(kid)
        assert foreign_folders(tmp_path, domains.acme) == {domains.partner.pin, third.pin}
        domains.acme.end_federation("partner.example")
        trust.refresh()
        with pytest.raises(UnknownKey):
            trust.key(domains.billing.credentials.key_id)
        until(lambda: foreign_folders(tmp_path, domains.acme) == {third.pin}, what="the folder to be removed")
        third.down = True
        assert (
            domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(other).service_id == "third.example/billing"
        )


def test_a_folder_of_a_federation_that_was_taken_away_meanwhile_goes_at_the_next_question(
    domains: TwoDomains, tmp_path: Path
) -> None:
    domains.acme.federate(domains.partner)
    kid = domains.billing.credentials.key_id
    domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)
    domains.acme.end_federation("partner.example")
    with pytest.raises(UnknownKey):
        domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)
    until(lambda: not foreign_folders(tmp_path, domains.acme), what="the folder to be removed")


def test_a_federation_that_is_not_known_removes_no_folder(domains: TwoDomains, tmp_path: Path) -> None:
    """After a lost ledger nothing is known; and an older node, or a lying mirror, has no such document."""
    domains.acme.federate(domains.partner)
    kid = domains.billing.credentials.key_id
    trust = domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path)
    trust.key(kid)
    domains.partner.down = True
    for cache in trust.reader.replaced_ledgers.caches:
        cache.on_new_ledger()
    assert trust.key(kid).service_id == BILLING
    shutil.rmtree(tmp_path / f"documents-{domains.acme.pin}")
    domains.acme.answers[FEDERATION] = Answer(404, b"")
    with pytest.raises(UnknownKey):
        domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)
    domains.acme.answers.clear()
    assert domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid).service_id == BILLING


def test_a_process_that_still_uses_the_folder_goes_on(domains: TwoDomains, tmp_path: Path) -> None:
    """Another process of the host has learned sooner that the federation was taken away."""
    domains.acme.federate(domains.partner)
    kid = domains.billing.credentials.key_id
    first, late = (domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path) for _ in range(2))
    for trust in (first, late):
        trust.key(kid)
    domains.acme.end_federation("partner.example")
    first.refresh()
    with pytest.raises(UnknownKey):
        first.key(kid)
    until(lambda: not foreign_folders(tmp_path, domains.acme), what="the folder to be removed")
    second = domains.partner.identity("billing", limits=QUIET).credentials.key_id
    assert late.key(kid).service_id == BILLING
    assert late.key(second).service_id == BILLING, "what is not in memory is fetched"
    late.refresh()
    with pytest.raises(UnknownKey):
        late.key(kid)
    until(lambda: not foreign_folders(tmp_path, domains.acme), what="the folder to be removed again")


def test_services_of_two_registries_may_share_a_cache_folder(domains: TwoDomains, tmp_path: Path, clock: Clock) -> None:
    with MemoryRegistry("third.example", clock=clock) as third:
        kid = domains.billing.credentials.key_id
        for own in (domains.acme, third):
            own.federate(domains.partner)
            own.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)
        domains.acme.end_federation("partner.example")
        with pytest.raises(UnknownKey):
            domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid)
        until(lambda: not foreign_folders(tmp_path, domains.acme), what="the folder to be removed")
        domains.partner.down = True
        assert third.trust_store(limits=QUIET, cache_dir=tmp_path).key(kid).service_id == BILLING


def test_a_cache_folder_that_cannot_be_made_costs_no_foreign_call(domains: TwoDomains, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    domains.acme.federate(domains.partner)
    trust = domains.acme.trust_store(limits=QUIET, cache_dir=tmp_path / "file" / "cache")
    assert outcome(trust, domains.billing.credentials.key_id) == "good"


def test_watching_a_foreign_service_fetches_its_keys_from_its_own_registry(domains: TwoDomains) -> None:
    domains.acme.federate(domains.partner)
    domains.trust.watch([BILLING, "third.example/billing"])
    domains.partner.down = True
    assert domains.trust.key(domains.billing.credentials.key_id).service_id == BILLING
    assert domains.acme.calls["GET /v1/services/billing/jwks.jwt"] == 0


# ---- what uses the keys


def test_a_known_foreign_key_is_verified_without_waiting(domains: TwoDomains) -> None:
    """As an asyncio program does: from memory alone."""
    domains.acme.federate(domains.partner, scopes=["read"])
    verifier = domains.verifier()
    request: dict[str, Any] = {"method": "GET", "target": "/"}
    unverified = verifier.read(domains.billing.sign_request(SHOP, **request))
    assert verifier.recall(unverified, {}) is None
    domains.call(verifier)
    source = verifier.recall(unverified, {})
    assert source is not None
    domains.acme.down = domains.partner.down = True
    assert verifier.claim(verifier.check(unverified, **request, source=source)).scopes == {"read"}
    domains.acme.down = False
    domains.acme.end_federation("partner.example")
    domains.trust.refresh()
    assert verifier.recall(verifier.read(domains.billing.sign_request(SHOP, **request)), {}) is None


def test_an_answer_of_a_foreign_service_is_verified_under_the_federation(domains: TwoDomains) -> None:
    request_token = domains.shop.sign_request(BILLING, method="GET", target="/")
    answer = domains.billing.sign_response(request_token, caller=SHOP, status=200, body=b"ok")
    head = ResponseHead.of(200, (("Peerseal-Response", answer),))
    verifier = ResponseVerifier(domains.trust, caller="shop", audience=BILLING, clock=domains.clock)
    assert code_of(lambda: verifier.verify(head, request_token=request_token, body=b"ok")) == "unknown_key"
    domains.federate()
    assert verifier.verify(head, request_token=request_token, body=b"ok").kid == domains.billing.credentials.key_id
    assert verifier.check_from_memory(head, request_token=request_token) is not None


def test_a_stopped_store_follows_no_foreign_registry(clock: Clock) -> None:
    with two_domains(clock, LIVELY) as domains:
        own = domains.acme.identity("client", limits=QUIET).credentials.key_id
        domains.acme.federate(domains.partner)
        trust = domains.acme.trust_store(limits=LIVELY)
        trust.key(domains.billing.credentials.key_id)
        until(lambda: domains.partner.calls[FOLLOWING] > 2)
        trust.stop()
        domains.trust.key(own)
        followed, before = domains.partner.calls[FOLLOWING], domains.acme.calls[FOLLOWING]
        until(lambda: domains.acme.calls[FOLLOWING] > before + 5)
        assert domains.partner.calls[FOLLOWING] <= followed + 1, "a call may have been under way"


@pytest.mark.usefixtures("quiet_collector")
def test_a_forked_child_follows_foreign_registries_by_itself(clock: Clock) -> None:
    with two_domains(clock, LIVELY) as domains:
        domains.acme.federate(domains.partner)
        kid = domains.billing.credentials.key_id
        domains.trust.key(kid)

        def sees_both_ends() -> tuple[str, str]:
            """In the child's copies of both registries."""
            second = domains.partner.identity("billing", limits=QUIET).credentials.key_id
            domains.partner.revoke(kid)
            until(lambda: outcome(domains.trust, kid) == "revoked_key")
            before = outcome(domains.trust, second)
            domains.acme.end_federation("partner.example")
            until(lambda: outcome(domains.trust, second) == "unknown_key")
            return before, outcome(domains.trust, second)

        assert Child(sees_both_ends).result() == ("good", "unknown_key")
        assert outcome(domains.trust, kid) == "good"


def test_the_processes_of_a_host_hear_together_that_a_federation_ended(clock: Clock, tmp_path: Path) -> None:
    with two_domains(clock) as domains:
        domains.acme.federate(domains.partner)
        kid = domains.billing.credentials.key_id
        processes = [domains.acme.trust_store(limits=LIVELY, cache_dir=tmp_path) for _ in range(3)]
        assert [outcome(trust, kid) for trust in processes] == ["good"] * 3
        assert domains.acme.calls[CALLS] == 1, "one asks for all"
        assert domains.partner.calls["GET /v1/services/billing/jwks.jwt"] == 1
        domains.acme.end_federation("partner.example")
        until(lambda: [outcome(trust, kid) for trust in processes] == ["unknown_key"] * 3)


def outcome(trust: TrustStore, kid: str) -> str:
    """Whether the key is good: ``good``, or the code of the refusal."""
    try:
        trust.key(kid)
    except PeersealError as error:
        return error.code
    return "good"
