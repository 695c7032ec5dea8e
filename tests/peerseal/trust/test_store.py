"""The trust store: what is fetched and when, what is believed and for how long."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from peerseal import TrustLimits, TrustStore
from peerseal.errors import (
    ConfigurationError,
    DocumentRefused,
    FetchError,
    PeersealError,
    RevokedKey,
    TrustUnavailable,
    UnknownKey,
)
from peerseal.identity.enrolment import Enrolment
from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.key_set import KeySetDocument
from peerseal.protocol.documents.key_set import RevokedKey as ListedRevokedKey
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from peerseal.testing import Answer, Clock, MemoryRegistry
from peerseal.transport import deadline
from tests.peerseal.served import Child
from tests.support.between import Between, Gate
from tests.support.waiting import until

ROOT = "GET /.well-known/peerseal-registry"
CHANGES = "GET /v1/changes"
JWK_SET = "GET /v1/services/client/jwks.jwt"
JWK_SET_PATH = "/v1/services/client/jwks.jwt"
CURRENT_PATH = "/v1/current/0.jwt"

QUIET = TrustLimits(poll_interval=3600.0, refresh_interval=10 * 24 * 3600.0)
"""The background thread sleeps through the test, which calls ``refresh`` itself; time alone makes nothing due."""


@pytest.fixture
def trust(registry: MemoryRegistry) -> TrustStore:
    return registry.trust_store(limits=QUIET)


def unknown(number: int = 0, service: str = "client") -> str:
    """A well-formed kid that is not registered."""
    return f"test.internal/{service}/{number:042d}A"


def refusal(trust: TrustStore, kid: str) -> str:
    """The code of the document for which the key cannot be had."""
    with pytest.raises(TrustUnavailable) as caught:
        trust.key(kid)
    assert isinstance(caught.value.__cause__, DocumentRefused)
    return caught.value.__cause__.code


class TestFetching:
    def test_the_cause_of_a_failure_is_named_in_the_cooldown_too(self, registry: MemoryRegistry) -> None:
        registry.answers[ROOT.removeprefix("GET ")] = Answer(404, b"")
        trust, said = registry.trust_store(limits=QUIET), list[str]()
        for _ in range(2):
            with pytest.raises(TrustUnavailable) as caught:
                trust.domain  # noqa: B018 -- the look-up is what is tested
            said.append(str(caught.value))
        assert registry.calls[ROOT] == 1
        assert "the registry answered 404" in said[0]
        assert said[1].endswith(said[0].removeprefix("the registry's keys: "))

    def test_nothing_is_fetched_before_the_first_question(self, registry: MemoryRegistry, trust: TrustStore) -> None:
        trust.refresh()
        assert registry.calls.total() - registry.calls[ROOT] == 0

    def test_a_key_costs_one_fetch_and_then_none(self, registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
        key = trust.key(kid)
        assert (key.kid, key.service_id) == (kid, "test.internal/client")
        for _ in range(10):
            assert trust.key(kid) is key
        assert registry.calls == {ROOT: 1, JWK_SET: 1}

    def test_twenty_threads_that_ask_at_once_make_one_fetch(self, registry: MemoryRegistry, kid: str) -> None:
        gate = Gate(JWK_SET_PATH)
        trust = registry.trust_store(limits=QUIET, fetcher=Between(registry, gate.hold))
        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(trust.key, kid) for _ in range(20)]
            gate.wait_until_reached()
            gate.open()
            assert {found.result().kid for found in asked} == {kid}
        assert registry.calls == {ROOT: 1, JWK_SET: 1}

    def test_twenty_threads_whose_one_fetch_fails_are_all_told_so(self, registry: MemoryRegistry, kid: str) -> None:
        trust = registry.trust_store(limits=QUIET)
        assert trust.domain == "test.internal"
        registry.down = True
        with ThreadPoolExecutor(20) as pool:
            errors = [asked.exception() for asked in [pool.submit(trust.key, kid) for _ in range(20)]]
        assert {type(error) for error in errors} == {TrustUnavailable}
        assert registry.calls[JWK_SET] == 1

    def test_one_service_that_hangs_does_not_keep_another_waiting(self, registry: MemoryRegistry, kid: str) -> None:
        other = registry.identity("other").credentials.key_id
        gate = Gate(JWK_SET_PATH)
        trust = registry.trust_store(limits=QUIET, fetcher=Between(registry, gate.hold))
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(trust.key, kid)
            gate.wait_until_reached()
            assert trust.key(other).kid == other
            assert not slow.done()
            gate.open()
            assert slow.result().kid == kid

    def test_watching_fetches_before_the_first_call(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        trust.watch(["test.internal/nobody", "test.internal/client"])
        registry.down = True
        assert trust.key(kid).kid == kid

    def test_watching_goes_on_after_a_failure(self, registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
        registry.answers["/v1/services/broken/jwks.jwt"] = Answer(500, b"")
        trust.watch(["test.internal/broken", "test.internal/client"])
        registry.down = True
        assert trust.key(kid).kid == kid

    @pytest.mark.parametrize("wrong", ["client", "", "a/b/c", None])
    def test_watching_goes_on_after_an_invalid_name(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str, wrong: str
    ) -> None:
        trust.watch([wrong, "test.internal/client"])
        registry.down = True
        assert trust.key(kid).kid == kid

    def test_watching_more_services_than_there_is_room_for_is_no_failure(self, registry: MemoryRegistry) -> None:
        kids = {name: registry.identity(name).credentials.key_id for name in ("one", "two")}
        trust = registry.trust_store(limits=replace(QUIET, max_services=1))
        trust.watch(["test.internal/one", "test.internal/two"])
        registry.down = True
        assert trust.key(kids["one"]).kid == kids["one"]

    @pytest.mark.parametrize(
        ("federation", "asked"), [(True, {ROOT: 1, "GET /v1/federation.jwt": 1}), (False, {ROOT: 1})]
    )
    def test_a_key_of_another_domain_is_unknown_without_a_federation(
        self, registry: MemoryRegistry, kid: str, federation: bool, asked: dict[str, int]
    ) -> None:
        trust = registry.trust_store(limits=QUIET, federation=federation)
        for _ in range(3):
            with pytest.raises(UnknownKey):
                trust.key(kid.replace("test.internal", "other.internal"))
        assert registry.calls == asked

    def test_the_cooldown_counts_from_before_the_fetch(self, registry: MemoryRegistry, clock: Clock, kid: str) -> None:
        def take_three_seconds(path: str) -> None:
            if path == JWK_SET_PATH:
                clock.advance(3)

        trust = registry.trust_store(limits=QUIET, fetcher=Between(registry, take_three_seconds))
        registry.answers[JWK_SET_PATH] = Answer(500, b"")
        with pytest.raises(TrustUnavailable):
            trust.key(kid)
        with pytest.raises(TrustUnavailable) as caught:
            trust.key(kid)
        assert caught.value.retry_after == 3
        assert registry.calls[JWK_SET] == 1
        clock.advance(QUIET.cooldown - 3)
        registry.answers.clear()
        assert trust.key(kid).kid == kid
        assert registry.calls[JWK_SET] == 2

    def test_the_registry_keys_too_are_asked_for_once_a_moment(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock
    ) -> None:
        registry.down = True
        for _ in range(5):
            with pytest.raises(TrustUnavailable):
                _ = trust.domain
        assert registry.calls == {ROOT: 1}
        registry.down = False
        clock.advance(1)
        assert trust.domain == "test.internal"


class TestUnknownKids:
    def test_an_unknown_kid_is_remembered(self, registry: MemoryRegistry, trust: TrustStore, clock: Clock) -> None:
        registry.identity("client")
        registry.calls.clear()
        for seconds in (0, 1, QUIET.cooldown, QUIET.negative_ttl - QUIET.cooldown - 2):
            clock.advance(seconds)
            with pytest.raises(UnknownKey):
                trust.key(unknown())
        assert registry.calls[JWK_SET] == 1
        clock.advance(1)
        with pytest.raises(UnknownKey):
            trust.key(unknown())
        assert registry.calls[JWK_SET] == 2

    def test_a_service_that_nobody_registered_is_unknown_too(self, registry: MemoryRegistry, trust: TrustStore) -> None:
        for _ in range(3):
            with pytest.raises(UnknownKey):
                trust.key(unknown())
        assert registry.calls[JWK_SET] == 1

    def test_a_second_unknown_kid_in_the_cooldown_may_be_a_good_one(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        with pytest.raises(UnknownKey):
            trust.key(unknown(1))
        with pytest.raises(TrustUnavailable) as caught:
            trust.key(unknown(2))
        assert 0 < caught.value.retry_after <= QUIET.cooldown + 1
        clock.advance(QUIET.cooldown)
        with pytest.raises(UnknownKey):
            trust.key(unknown(2))
        assert registry.calls[JWK_SET] == 2
        assert trust.key(kid).kid == kid

    def test_ten_thousand_unknown_kids_cost_one_fetch(self, registry: MemoryRegistry, trust: TrustStore) -> None:
        refused = []
        for number in range(10_000):
            with pytest.raises(PeersealError) as caught:
                trust.key(unknown(number))
            refused.append(caught.value.status)
        assert refused == [401] + [503] * 9_999
        assert registry.calls == {ROOT: 1, JWK_SET: 1}

    def test_the_memory_of_unknown_kids_is_bounded(self, registry: MemoryRegistry, clock: Clock) -> None:
        limits = TrustLimits(poll_interval=3600.0, max_negative=3, negative_ttl=10_000.0)
        trust = registry.trust_store(limits=limits)
        for number in range(4):
            with pytest.raises(UnknownKey):
                trust.key(unknown(number))
            clock.advance(limits.cooldown)
        with pytest.raises(UnknownKey):
            trust.key(unknown(3))
        assert registry.calls[JWK_SET] == 4
        with pytest.raises(UnknownKey):
            trust.key(unknown(0))  # forgotten with the others when the fourth came
        assert registry.calls[JWK_SET] == 5

    def test_a_kid_that_is_registered_after_all_is_known_with_the_next_list_of_changes(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        clock.advance(QUIET.cooldown)
        pair = KeyPair.generate("ES256")
        premature = f"test.internal/client/{pair.public.thumbprint}"
        with pytest.raises(UnknownKey):
            trust.key(premature)
        Enrolment("client", trust, clock).join(pair, JoinToken.parse(registry.join_token("client")))
        trust.refresh()
        assert trust.key(premature).public == pair.public


class TestFreshness:
    def test_a_failed_refresh_takes_nothing_away(self, registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
        key = trust.key(kid)
        registry.down = True
        for _ in range(3):
            trust.refresh()
        assert trust.key(kid) is key

    def test_belief_ends_at_the_offline_limit_and_not_before(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        registry.down = True
        clock.advance(QUIET.offline_limit - 1)
        trust.refresh()
        assert trust.key(kid).kid == kid
        clock.advance(1)
        trust.refresh()
        with pytest.raises(TrustUnavailable):
            trust.key(kid)

    def test_one_refresh_after_the_registry_is_back_restores_belief(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        registry.down = True
        clock.advance(QUIET.offline_limit + 100)
        with pytest.raises(TrustUnavailable):
            trust.key(kid)
        registry.down = False
        trust.refresh()
        registry.down = True
        assert trust.key(kid).kid == kid

    def test_without_any_refresh_the_next_question_after_the_limit_fetches_once(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        clock.advance(QUIET.offline_limit + 100)
        for _ in range(3):
            assert trust.key(kid).kid == kid
        assert registry.calls[JWK_SET] == 2

    def test_lists_of_changes_confirm_without_a_fetch_while_nothing_changes(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        for _ in range(20):
            clock.advance(QUIET.offline_limit / 2)
            trust.refresh()
            assert trust.key(kid).kid == kid
        assert registry.calls[JWK_SET] == 1

    def test_lists_of_changes_confirm_without_a_fetch_while_only_others_change(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        for number in range(4):
            registry.identity(f"other-{number}")
            clock.advance(QUIET.offline_limit / 2)
            trust.refresh()
            assert trust.key(kid).kid == kid
        assert registry.calls[JWK_SET] == 1

    def test_a_change_that_names_the_service_makes_one_renewal_that_no_cache_can_answer(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        trust.key(kid)
        registry.identity("client")
        registry.log.clear()
        for _ in range(3):
            trust.refresh()
        renewals = [call for call in registry.log if call.path.startswith(JWK_SET_PATH)]
        assert [call.path for call in renewals] == [f"{JWK_SET_PATH}?seq=3"]
        assert "if-none-match" not in renewals[0].headers

    @pytest.mark.parametrize("lists", [True, False])
    def test_after_a_reset_lists_say_what_is_still_true_or_everything_is_renewed(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str, lists: bool
    ) -> None:
        other = registry.identity("other").credentials.key_id
        trust.key(kid)
        trust.key(other)
        changes = replace(registry.changes(3), services=(), reset=True)
        registry.answers["/v1/changes"] = Answer(200, registry.sign(changes).encode())
        if not lists:
            registry.answers[CURRENT_PATH] = Answer(404, b"")
        trust.refresh()
        fetched = registry.calls[JWK_SET], registry.calls["GET /v1/services/other/jwks.jwt"]
        assert fetched == ((1, 1) if lists else (2, 2))

    def test_what_is_fetched_again_after_a_while_is_asked_for_conditionally(
        self, registry: MemoryRegistry, clock: Clock, kid: str
    ) -> None:
        limits = TrustLimits(poll_interval=3600.0)
        trust = registry.trust_store(limits=limits)
        trust.key(kid)
        tag = registry.call("GET", JWK_SET_PATH).headers["etag"]
        registry.log.clear()
        clock.advance(limits.refresh_interval + 1)
        trust.refresh()
        (call,) = [call for call in registry.log if call.path == JWK_SET_PATH]
        assert call.headers["if-none-match"] == tag
        assert trust.key(kid).kid == kid

    def test_an_unchanged_answer_past_the_offline_limit_does_not_leave_the_store_stuck(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        registry.answers |= dict.fromkeys(("/v1/changes", "/v1/changes/recent.jwt"), Answer(500, b""))
        clock.advance(QUIET.offline_limit + 1)
        trust.refresh()
        registry.log.clear()
        assert trust.key(kid).kid == kid
        [call] = [call for call in registry.log if call.path == JWK_SET_PATH]
        assert "if-none-match" not in call.headers

    def test_a_cache_that_insists_on_unchanged_is_no_confirmation(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        registry.answers[JWK_SET_PATH] = Answer(304, b"")
        clock.advance(QUIET.offline_limit + 1)
        with pytest.raises(TrustUnavailable):
            trust.key(kid)
        registry.answers.clear()
        clock.advance(QUIET.cooldown)
        assert trust.key(kid).kid == kid

    def test_a_document_is_fetched_whole_before_its_own_end(
        self, registry: MemoryRegistry, clock: Clock, kid: str
    ) -> None:
        """Else the last of many 304 would be followed by a gap, in which a registry that is down cannot be borne."""
        limits = TrustLimits(poll_interval=3600.0)
        trust = registry.trust_store(limits=limits)
        trust.key(kid)
        for _ in range(24 * 2 - 1):
            clock.advance(limits.offline_limit / 2)
            trust.refresh()
        registry.down = True
        clock.advance(limits.offline_limit - 1)
        assert trust.key(kid).kid == kid

    def test_an_old_document_from_a_mirror_says_nothing_about_any_kid_and_is_not_asked_for_at_every_question(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        registry.answers |= {path: registry.call("GET", path) for path in (JWK_SET_PATH, CURRENT_PATH)}
        registry.calls.clear()
        clock.advance(QUIET.offline_limit + 1)
        for asked in (unknown(), kid, unknown(), kid):
            with pytest.raises(TrustUnavailable):
                trust.key(asked)
        assert registry.calls[JWK_SET] == 1

    def test_a_revoked_key_is_refused_from_the_next_refresh_on(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        trust.key(kid)
        registry.revoke(kid)
        trust.refresh()
        with pytest.raises(RevokedKey):
            trust.key(kid)
        assert registry.calls[JWK_SET] == 2

    def test_a_key_that_was_revoked_before_anybody_asked_is_revoked_not_unknown(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        registry.revoke(kid)
        with pytest.raises(RevokedKey):
            trust.key(kid)

    def test_what_a_revoked_key_vouched_for_is_revoked_with_it(self, registry: MemoryRegistry) -> None:
        trust, client = registry.trust_store(limits=QUIET), registry.identity("client")
        first, second = client.credentials.key_id, client.rotate().key_id
        trust.key(second)
        registry.revoke(first)
        trust.refresh()
        with pytest.raises(RevokedKey):
            trust.key(second)

    def test_a_retired_key_keeps_its_window_for_requests_under_way(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        clock.advance(10)
        registry.retire(kid)
        trust.refresh()
        assert trust.key(kid).active_until == int(clock.now)

    def test_a_hidden_revocation_is_hidden_no_longer_than_the_offline_limit(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        old_keys = registry.call("GET", JWK_SET_PATH)
        old_changes = registry.call("GET", "/v1/changes?since=2")
        registry.revoke(kid)
        registry.answers |= {JWK_SET_PATH: old_keys, "/v1/changes": old_changes}
        clock.advance(QUIET.offline_limit - 1)
        trust.refresh()
        assert trust.key(kid).kid == kid
        clock.advance(1)
        trust.refresh()
        with pytest.raises(TrustUnavailable):
            trust.key(kid)

    def test_nor_does_a_restart_start_the_clock_anew(self, registry: MemoryRegistry, clock: Clock, kid: str) -> None:
        registry.answers |= {path: registry.call("GET", path) for path in (JWK_SET_PATH, CURRENT_PATH)}
        clock.advance(QUIET.offline_limit)
        with pytest.raises(TrustUnavailable):
            registry.trust_store(limits=QUIET).key(kid)


def other_subject(registry: MemoryRegistry, document: KeySetDocument) -> str:
    registry.identity("other")
    return registry.sign(registry.jwk_set("other"))


def bad_signature(registry: MemoryRegistry, document: KeySetDocument) -> str:
    head, payload, _ = registry.sign(document).split(".")
    return f"{head}.{payload}.{registry.sign(replace(document, head=99)).split('.')[2]}"


def other_signer(registry: MemoryRegistry, document: KeySetDocument) -> str:
    return sign_document(document, KeyPair.generate("ES256"))


def expired(registry: MemoryRegistry, document: KeySetDocument) -> str:
    return registry.sign(replace(document, expires_at=int(registry.clock()) - 30))


def from_the_future(registry: MemoryRegistry, document: KeySetDocument) -> str:
    return registry.sign(replace(document, issued_at=int(registry.clock()) + 31))


def rolled_back(registry: MemoryRegistry, document: KeySetDocument) -> str:
    return registry.sign(replace(document, seq=document.seq - 1))


def other_issuer(registry: MemoryRegistry, document: KeySetDocument) -> str:
    return MemoryRegistry.sign(registry, replace(document, issuer="other.internal/registry"))


def other_kind(registry: MemoryRegistry, document: KeySetDocument) -> str:
    return registry.sign(registry.changes(0))


def cut_short(registry: MemoryRegistry, document: KeySetDocument) -> str:
    return registry.sign(document)[:-200]


def no_jws(registry: MemoryRegistry, document: KeySetDocument) -> str:
    return "<html>Welcome to the hotel's network</html>"


Tamper = Callable[[MemoryRegistry, KeySetDocument], str]
REFUSED = [
    (other_subject, "document_wrong_subject"),
    (bad_signature, "document_bad_signature"),
    (other_signer, "document_unknown_signer"),
    (expired, "document_expired"),
    (from_the_future, "document_from_future"),
    (rolled_back, "document_rolled_back"),
    (other_issuer, "document_unknown_signer"),
    (other_kind, "document_wrong_type"),
    (cut_short, "document_malformed"),
    (no_jws, "document_malformed"),
]


@pytest.mark.parametrize(("tamper", "code"), REFUSED, ids=[tamper.__name__ for tamper, _ in REFUSED])
class TestRefusedDocuments:
    def test_it_is_refused_with_its_code_and_what_was_believed_before_stays(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str, tamper: Tamper, code: str
    ) -> None:
        key = trust.key(kid)
        clock.advance(QUIET.cooldown)
        served = tamper(registry, registry.jwk_set("client"))
        registry.answers[JWK_SET_PATH] = Answer(200, served.encode())
        assert refusal(trust, unknown()) == code
        assert trust.key(kid) is key

    def test_after_the_registry_is_itself_again_the_store_is_too(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str, tamper: Tamper, code: str
    ) -> None:
        trust.key(kid)
        clock.advance(QUIET.cooldown)
        served = tamper(registry, registry.jwk_set("client"))
        registry.answers[JWK_SET_PATH] = Answer(200, served.encode())
        refusal(trust, unknown())
        registry.answers.clear()
        clock.advance(QUIET.cooldown)
        with pytest.raises(UnknownKey):
            trust.key(unknown())


class TestRollBack:
    def test_a_document_that_hides_a_revocation_is_refused(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        before = registry.call("GET", JWK_SET_PATH)
        registry.revoke(kid)
        with pytest.raises(RevokedKey):
            trust.key(kid)
        clock.advance(QUIET.cooldown)
        registry.answers[JWK_SET_PATH] = before
        assert refusal(trust, unknown()) == "document_rolled_back"
        with pytest.raises(RevokedKey):
            trust.key(kid)

    def test_an_answer_to_a_renewal_that_covers_less_than_was_asked_for_is_refused(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        trust.key(kid)
        before = registry.call("GET", JWK_SET_PATH)
        registry.revoke(kid)
        registry.answers[JWK_SET_PATH] = before
        trust.refresh()
        registry.answers.clear()
        trust.refresh()  # the change is still outstanding
        with pytest.raises(RevokedKey):
            trust.key(kid)

    def test_a_list_of_changes_from_a_shorter_ledger_confirms_nothing(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        clock.advance(QUIET.offline_limit - 10)
        shorter = replace(registry.changes(2), seq=1)
        registry.answers["/v1/changes"] = Answer(200, registry.sign(shorter).encode())
        trust.refresh()
        clock.advance(10)
        registry.down = True
        with pytest.raises(TrustUnavailable):
            trust.key(kid)

    def test_the_changes_after_another_entry_confirm_nothing(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        registry.revoke(kid)
        later = Answer(200, registry.sign(registry.changes(3)).encode())  # nothing after entry 3
        registry.answers["/v1/changes"] = later
        clock.advance(QUIET.offline_limit - 10)
        trust.refresh()
        clock.advance(10)
        registry.down = True
        with pytest.raises(TrustUnavailable):
            trust.key(kid)


class TestRoot:
    def test_a_registry_with_another_root_than_the_pinned_one_is_not_believed(
        self, registry: MemoryRegistry, kid: str
    ) -> None:
        other = KeyPair.generate("ES256").public.thumbprint
        trust = registry.trust_store(pin=other)
        assert refusal(trust, kid) == "document_wrong_root"
        assert registry.calls == {ROOT: 1}

    def test_a_registry_off_loopback_needs_a_pin(self) -> None:
        for url in (
            "https://registry.example.com",
            ["http://127.0.0.1:1", "http://192.0.2.1"],
            "http://localhost.evil",
        ):
            with pytest.raises(ConfigurationError, match="pin"):
                TrustStore(url)

    def test_a_registry_on_loopback_needs_none(self) -> None:
        for url in ("http://localhost:8080", "http://127.0.0.1", "http://[::1]:8080"):
            TrustStore(url)

    def test_what_is_believed_on_first_use_is_held_to_from_then_on(
        self, registry: MemoryRegistry, clock: Clock, kid: str
    ) -> None:
        trust = registry.trust_store(pin=None)
        trust.key(kid)
        registry.root = KeyPair.generate("ES256")
        registry.roll_signing_key()
        clock.advance(3600)
        assert refusal(trust, unknown()) == "document_wrong_root"

    def test_a_new_signing_key_that_the_root_names_is_believed_at_once(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        clock.advance(QUIET.cooldown)
        registry.roll_signing_key()
        client = registry.identity("client")
        assert trust.key(client.credentials.key_id).service_id == client.id
        assert registry.calls[ROOT] == 1 + 1 + 1  # one of them the new identity's own

    def test_a_signing_key_that_the_root_dropped_is_believed_no_longer(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        stolen = registry.signing_key
        registry.roll_signing_key()
        clock.advance(QUIET.offline_limit)
        trust.refresh()
        registry.signing_key = stolen
        forged = registry.sign(registry.jwk_set("client")).encode()
        registry.roll_signing_key()
        registry.answers[JWK_SET_PATH] = Answer(200, forged)
        clock.advance(QUIET.cooldown)
        assert refusal(trust, unknown()) == "document_unknown_signer"

    def test_nothing_is_compared_with_what_a_dropped_key_signed_also_where_the_same_fetch_tells_of_the_drop(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        honest = registry.jwk_set("client")
        forged = replace(honest, keys=(), revoked=(ListedRevokedKey(kid, int(clock()), 1),))
        registry.answers[JWK_SET_PATH] = Answer(200, registry.sign(forged).encode())
        with pytest.raises(RevokedKey):
            trust.key(kid)
        del registry.answers[JWK_SET_PATH]
        clock.advance(QUIET.cooldown)
        registry.roll_signing_key()
        other = registry.identity("client").credentials.key_id
        assert [trust.key(each).kid for each in (other, kid)] == [other, kid]

    def test_an_older_version_of_the_root_document_is_refused(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        registry.version = 7
        trust.key(kid)
        clock.advance(QUIET.cooldown)
        registry.roll_signing_key()
        registry.version = 6
        registry.revoke(kid)
        assert refusal(trust, unknown()) == "document_rolled_back"


def comes_to_be_revoked(trust: TrustStore, kid: str) -> bool:
    """Whether the background thread hears of a revocation within some seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            trust.key(kid)
        except RevokedKey:
            return True
    return False


class TestBackground:
    def test_changes_are_followed_without_anybody_asking(self, registry: MemoryRegistry, kid: str) -> None:
        trust = registry.trust_store(limits=TrustLimits(poll_interval=0.005))
        trust.key(kid)
        registry.revoke(kid)
        assert comes_to_be_revoked(trust, kid)

    def test_a_surprise_in_one_round_does_not_end_the_thread(
        self, registry: MemoryRegistry, kid: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        surprises = iter([True])

        def surprise(path: str) -> None:
            if path.startswith("/v1/changes") and next(surprises, False):
                raise RuntimeError("nobody expected that")

        fetcher = Between(registry, surprise)
        trust = registry.trust_store(limits=TrustLimits(poll_interval=0.005), fetcher=fetcher)
        trust.key(kid)
        registry.revoke(kid)
        assert comes_to_be_revoked(trust, kid)
        assert "nobody expected that" in caplog.text

    def test_a_stopped_store_asks_no_more(self, registry: MemoryRegistry, kid: str) -> None:
        trust = registry.trust_store(limits=TrustLimits(poll_interval=0.005))
        trust.key(kid)
        trust.stop()
        asked = registry.calls[CHANGES]
        time.sleep(0.03)
        assert registry.calls[CHANGES] == asked

    @pytest.mark.usefixtures("quiet_collector")
    def test_a_forked_child_follows_with_a_thread_of_its_own(self, registry: MemoryRegistry, kid: str) -> None:
        trust = registry.trust_store(limits=TrustLimits(poll_interval=0.005))
        trust.key(kid)

        def sees_the_revocation() -> bool:
            registry.revoke(kid)  # in the child's copy
            return comes_to_be_revoked(trust, kid)

        assert Child(sees_the_revocation).result()
        assert trust.key(kid).kid == kid

    @pytest.mark.usefixtures("quiet_collector")
    def test_a_child_forked_during_a_fetch_does_not_wait_for_its_parents_thread(
        self, registry: MemoryRegistry, clock: Clock, kid: str
    ) -> None:
        gate, fetching, parent = threading.Event(), threading.Event(), os.getpid()

        def hold(path: str) -> None:
            if path == JWK_SET_PATH and os.getpid() == parent:
                fetching.set()
                assert gate.wait(10)

        trust = registry.trust_store(limits=QUIET, fetcher=Between(registry, hold))
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(trust.key, kid)
            assert fetching.wait(10)

            def ask() -> str:
                clock.advance(QUIET.cooldown)
                return trust.key(kid).kid

            child = Child(ask)
            try:
                assert child.result() == kid
            finally:
                gate.set()
            assert slow.result().kid == kid


class TestDeadline:
    """How long each call to the registry may take at most; two are made for a key, and then one for a policy."""

    SECONDS = 0.1
    """What a call takes."""

    @pytest.fixture
    def left(self) -> list[float]:
        return []

    @pytest.fixture
    def slow(self, registry: MemoryRegistry, left: list[float]) -> TrustStore:
        """A store whose registry takes its time, and that notes in ``left`` how much there is for each call."""

        def take_time(path: str) -> None:
            left.append(deadline.time_left())
            time.sleep(self.SECONDS)

        return registry.trust_store(limits=QUIET, fetcher=Between(registry, take_time))

    def test_questions_within_one_deadline_share_its_time(self, slow: TrustStore, left: list[float], kid: str) -> None:
        with slow.deadline():
            slow.key(kid)
            slow.policy("test.internal/client")
        assert len(left) == 3
        assert left[2] <= QUIET.patience - 2 * self.SECONDS

    def test_questions_outside_of_one_have_its_time_each(self, slow: TrustStore, left: list[float], kid: str) -> None:
        slow.key(kid)
        slow.policy("test.internal/client")
        assert len(left) == 3
        assert left[1] <= QUIET.patience - self.SECONDS
        assert QUIET.patience - 2 * self.SECONDS < left[2] <= QUIET.patience

    def test_once_its_time_is_over_memory_answers_and_no_call_has_any(
        self, slow: TrustStore, left: list[float], kid: str
    ) -> None:
        slow.key(kid)
        with deadline.Deadline(0.0), slow.deadline():
            assert slow.key(kid).kid == kid
            slow.policy("test.internal/client")
        assert left[2:] == [0.0]


def test_an_answer_that_is_no_text_is_a_failed_fetch(registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
    registry.answers[JWK_SET_PATH] = Answer(200, b"\xff\xfe")
    with pytest.raises(TrustUnavailable) as caught:
        trust.key(kid)
    assert isinstance(caught.value.__cause__, FetchError)


def test_invented_services_do_not_keep_out_an_honest_one(registry: MemoryRegistry, kid: str) -> None:
    trust = registry.trust_store(limits=replace(QUIET, max_services=10))
    for number in range(50):
        with pytest.raises(UnknownKey):
            trust.key(unknown(service=f"invented-{number}"))
    assert trust.key(kid).kid == kid


def test_what_was_forgotten_before_it_was_fetched_is_not_believed_beside_what_took_its_place(
    registry: MemoryRegistry, kid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists of changes would not reach it: its key would be good for an hour after it was revoked."""
    trust = registry.trust_store(limits=replace(QUIET, max_services=3))
    assert trust.domain == "test.internal"  # so that the next lock is that of the service
    others: list[threading.Thread] = []
    really = deadline.acquired_in_time

    def meanwhile(lock: threading.Lock) -> bool:
        """Strangers fill the shelf, so that it forgets; then another thread asks for the same service."""
        monkeypatch.setattr(deadline, "acquired_in_time", really)
        for number in range(3):
            with pytest.raises(UnknownKey):
                trust.key(unknown(service=f"invented-{number}"))
        others.append(threading.Thread(target=trust.key, args=(kid,)))
        others[0].start()
        others[0].join()
        return really(lock)

    monkeypatch.setattr(deadline, "acquired_in_time", meanwhile)
    with pytest.raises(TrustUnavailable, match="another thread"):
        trust.key(kid)
    assert trust.key(kid).kid == kid
    registry.revoke(kid)
    trust.refresh()
    with pytest.raises(RevokedKey):
        trust.key(kid)


class TestOneTroubleIsNotAnother:
    """What goes wrong in one place holds up nothing else."""

    def test_changes_are_followed_while_the_root_document_cannot_be_had(
        self, registry: MemoryRegistry, clock: Clock, kid: str
    ) -> None:
        trust = registry.trust_store(limits=replace(QUIET, refresh_interval=300.0))
        trust.key(kid)
        clock.advance(301)
        registry.answers["/.well-known/peerseal-registry"] = Answer(500, b"")
        registry.revoke(kid)
        trust.refresh()
        with pytest.raises(RevokedKey):
            trust.key(kid)

    def test_a_service_that_cannot_be_renewed_makes_nobody_else_be_fetched(
        self, registry: MemoryRegistry, trust: TrustStore
    ) -> None:
        kids = [registry.identity(f"service-{number}").credentials.key_id for number in range(5)]
        bad = registry.identity("bad").credentials.key_id
        for kid in [*kids, bad]:
            trust.key(kid)
        registry.answers["/v1/services/bad/jwks.jwt"] = Answer(500, b"")
        registry.retire(bad)
        trust.refresh()
        registry.calls.clear()
        for number in range(5):
            registry.identity(f"other-{number}")
            trust.refresh()
        fetched = [call for call in registry.calls if call.startswith("GET") and "jwks.jwt" in call]
        assert set(fetched) <= {"GET /v1/services/bad/jwks.jwt"}

    def test_renewals_that_fail_again_and_again_are_tried_less_and_less(
        self, registry: MemoryRegistry, clock: Clock, trust: TrustStore, kid: str
    ) -> None:
        trust.key(kid)
        registry.answers[JWK_SET_PATH] = Answer(500, b"")
        registry.revoke(kid)
        registry.calls.clear()
        for _ in range(60):
            trust.refresh()
            clock.advance(1)
        assert 4 <= registry.calls[JWK_SET] <= 7

    def test_two_threads_that_find_the_same_document_due_fetch_it_once(
        self, registry: MemoryRegistry, kid: str
    ) -> None:
        gate, held = Gate(JWK_SET_PATH), threading.Event()
        fetcher = Between(registry, lambda path: gate.hold(path.partition("?")[0]) if held.is_set() else None)
        trust = registry.trust_store(limits=QUIET, fetcher=fetcher)
        trust.key(kid)
        registry.calls.clear()
        registry.revoke(kid)
        held.set()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(trust.refresh)
            gate.wait_until_reached()
            second = pool.submit(trust.refresh)
            until(lambda: registry.calls["GET /v1/changes"] == 2)
            time.sleep(0.1)  # until the second waits for the first one's fetch
            gate.open()
            first.result()
            second.result()
        assert registry.calls[JWK_SET] == 1

    def test_strangers_have_a_budget_and_known_services_need_none(
        self, registry: MemoryRegistry, clock: Clock, kid: str
    ) -> None:
        trust = registry.trust_store(limits=replace(QUIET, stranger_fetches=10.0, stranger_rate=1.0))
        trust.key(kid)
        refused = 0
        for number in range(50):
            try:
                trust.key(unknown(service=f"invented-{number}"))
            except TrustUnavailable:
                refused += 1
            except UnknownKey:
                pass
        assert refused == 41
        trust.key(kid)
        clock.advance(1)
        with pytest.raises(UnknownKey):
            trust.key(unknown(service="after-a-second"))

    def test_a_stopped_store_starts_no_thread_again(self, registry: MemoryRegistry, kid: str) -> None:
        trust = registry.trust_store(limits=QUIET)
        trust.key(kid)
        trust.stop()
        before = threading.enumerate()
        assert trust.key(kid).kid == kid
        assert set(threading.enumerate()) <= set(before)


def test_unknown_kids_of_known_services_take_no_more_than_a_few_threads(registry: MemoryRegistry) -> None:
    """And only for a moment: the next unknown kid is fetched once those are done."""
    services = [f"service-{number}" for number in range(4)]
    gate, fetching = threading.Event(), threading.Semaphore(0)

    def hold(path: str) -> None:
        if "jwks.jwt" in path and not gate.is_set():
            fetching.release()
            assert gate.wait(10)

    gate.set()
    limits = replace(QUIET, doubtful_fetches=2)
    trust = registry.trust_store(limits=limits, fetcher=Between(registry, hold))
    for service in services:
        trust.key(registry.identity(service).credentials.key_id)
    gate.clear()
    registry.calls.clear()
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(trust.key, unknown(service=service)) for service in services[:2]]
        for _ in held:
            assert fetching.acquire(timeout=10)
        for service in services[2:]:
            with pytest.raises(TrustUnavailable):
                trust.key(unknown(service=service))
        gate.set()
        assert all(isinstance(future.exception(10), UnknownKey) for future in held)
    assert registry.calls.total() == 2
    with pytest.raises(UnknownKey):
        trust.key(unknown(service=services[2]))
