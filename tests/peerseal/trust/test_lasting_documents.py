"""A registry signs a document once for each change: what says that an older one is still true, and what does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peerseal import TrustLimits
from peerseal.errors import InvalidName, MalformedToken, RevokedKey, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.current import BLOCK, CurrentServices, block_of
from peerseal.protocol.documents.frame import read_document
from peerseal.protocol.names import make_kid, service_id
from peerseal.testing import Answer, Clock, MemoryRegistry
from peerseal.testing.registry import DOCUMENT_LIFETIME

JWK_SET = "/v1/services/client/jwks.jwt"
LIST = "/v1/current/0.jwt"
QUIET = TrustLimits(poll_interval=3600.0, refresh_interval=10 * 24 * 3600.0)
HOUR = 3600


@pytest.fixture
def registry(registry: MemoryRegistry) -> MemoryRegistry:
    registry.lasting = True
    return registry


@pytest.fixture
def old_kid(registry: MemoryRegistry, clock: Clock) -> str:
    """A key of the service ``client``, whose documents were signed five hours ago."""
    kid = registry.identity("client").credentials.key_id
    clock.advance(5 * HOUR)
    registry.calls.clear()
    registry.log.clear()
    return kid


def asked(registry: MemoryRegistry, path: str) -> list[str]:
    """The questions for that path, with their queries."""
    return [call.path for call in registry.log if call.path.partition("?")[0] == path]


def test_the_list_of_its_block_says_that_an_older_document_is_still_true(
    registry: MemoryRegistry, old_kid: str
) -> None:
    trust = registry.trust_store(limits=QUIET)
    assert trust.key(old_kid).kid == old_kid
    assert asked(registry, JWK_SET) == [JWK_SET]
    assert asked(registry, LIST) == [LIST]


def test_one_list_serves_all_services_that_changed_in_its_block(
    registry: MemoryRegistry, old_kid: str, clock: Clock
) -> None:
    other = registry.identity("other").credentials.key_id
    clock.advance(HOUR)
    trust = registry.trust_store(limits=QUIET)
    trust.key(old_kid)
    trust.key(other)
    assert asked(registry, LIST) == [LIST]


def test_a_document_that_was_signed_a_moment_ago_needs_no_list(registry: MemoryRegistry, clock: Clock) -> None:
    kid = registry.identity("client").credentials.key_id
    clock.advance(20)
    registry.log.clear()
    registry.trust_store(limits=QUIET).key(kid)
    assert asked(registry, LIST) == []


def test_a_belief_holds_for_the_offline_limit_after_the_signed_time_of_the_list(
    registry: MemoryRegistry, old_kid: str, clock: Clock
) -> None:
    trust = registry.trust_store(limits=QUIET)
    trust.key(old_kid)
    registry.down = True
    clock.advance(QUIET.offline_limit - 1)
    assert trust.key(old_kid).kid == old_kid
    clock.advance(1)
    with pytest.raises(TrustUnavailable):
        trust.key(old_kid)


def test_after_a_change_a_client_asks_for_the_entry_that_changed_the_service(
    registry: MemoryRegistry, old_kid: str
) -> None:
    trust = registry.trust_store(limits=QUIET)
    trust.key(old_kid)
    changed = registry.identity("client").credentials.key_id
    entry = len(registry.ledger.entries)
    for _ in range(3):
        registry.identity("another")
    registry.log.clear()
    trust.refresh()
    assert asked(registry, JWK_SET) == [f"{JWK_SET}?seq={entry}"]
    assert trust.key(changed).kid == changed


def test_after_a_change_the_registry_is_asked_for_what_came_after_its_list(
    registry: MemoryRegistry, old_kid: str
) -> None:
    """The document covers the change only: the list of changes says that it is true until the end of the list."""
    trust = registry.trust_store(limits=QUIET)
    trust.key(old_kid)
    registry.identity("client")
    for _ in range(3):
        registry.identity("another")
    trust.refresh()
    registry.log.clear()
    trust.refresh()
    assert asked(registry, "/v1/changes") == [f"/v1/changes?since={len(registry.ledger.entries)}"]


def test_while_a_changed_document_cannot_be_had_lists_are_not_read_again(
    registry: MemoryRegistry, old_kid: str, clock: Clock
) -> None:
    trust = registry.trust_store(limits=QUIET)
    trust.key(old_kid)
    registry.answers[JWK_SET] = Answer(503, b"")
    registry.identity("client")
    entry = len(registry.ledger.entries)
    trust.refresh()
    for _ in range(3):
        registry.identity("another")
    trust.refresh()
    end = len(registry.ledger.entries)
    registry.log.clear()
    del registry.answers[JWK_SET]
    clock.advance(QUIET.longest_pause)
    trust.refresh()
    assert asked(registry, "/v1/changes") == [f"/v1/changes?since={end}"]
    assert asked(registry, JWK_SET) == [f"{JWK_SET}?seq={entry}"]


def test_a_cache_that_answers_with_the_document_before_a_revocation_is_found_out_by_the_list(
    registry: MemoryRegistry, old_kid: str, clock: Clock
) -> None:
    serve_old(registry, JWK_SET, without="seq")
    registry.revoke(old_kid)
    clock.advance(HOUR)
    with pytest.raises(RevokedKey):
        registry.trust_store(limits=QUIET).key(old_kid)
    assert asked(registry, JWK_SET) == [JWK_SET, f"{JWK_SET}?seq=3"]


def test_a_cache_that_answers_with_a_young_old_document_is_found_out_by_the_changes(
    registry: MemoryRegistry, clock: Clock
) -> None:
    trust = registry.trust_store(limits=QUIET)
    trust.key(registry.identity("other").credentials.key_id)
    kid = registry.identity("client").credentials.key_id
    serve_old(registry, JWK_SET, without="seq")
    registry.revoke(kid)
    trust.refresh()
    with pytest.raises(RevokedKey):
        trust.key(kid)


def serve_old(registry: MemoryRegistry, path: str, *, without: str) -> None:
    """From now on a cache answers the questions for that path with the answer of this moment, unless they have that
    parameter."""
    old, answer = registry.call("GET", path), registry.endpoints.answer
    registry.log.clear()

    def cached(call: Any, plain: str) -> Answer:
        return old if plain == path and without not in call.path else answer(call, plain)

    registry.endpoints.answer = cached  # type: ignore[method-assign]


def test_an_old_list_is_no_evidence(registry: MemoryRegistry, old_kid: str, clock: Clock) -> None:
    registry.answers[LIST] = registry.call("GET", LIST)
    clock.advance(QUIET.offline_limit)
    with pytest.raises(TrustUnavailable):
        registry.trust_store(limits=QUIET).key(old_kid)


@pytest.mark.parametrize(
    "alter",
    [
        lambda found: replace(found, block=1, services={}),
        lambda found: replace(found, checkpoint=found.checkpoint.replace("\n", "\n\n", 1)),
        lambda found: replace(found, subject="other.internal"),
        lambda found: replace(found, seq=found.seq + 1),
    ],
    ids=["another block", "checkpoint", "another domain", "more entries than the checkpoint"],
)
def test_another_list_is_no_evidence(
    registry: MemoryRegistry, old_kid: str, alter: Callable[[CurrentServices], CurrentServices]
) -> None:
    jws = registry.sign(alter(registry.current_services(0)))
    registry.answers[LIST] = Answer(200, jws.encode("ascii"), {"content-type": "application/jwt"})
    with pytest.raises(TrustUnavailable):
        registry.trust_store(limits=QUIET).key(old_kid)


def test_a_registry_without_lists_signs_documents_that_are_young(registry: MemoryRegistry, old_kid: str) -> None:
    registry.answers[LIST] = Answer(404, b"")
    with pytest.raises(TrustUnavailable):
        registry.trust_store(limits=QUIET).key(old_kid)
    registry.lasting = False
    assert registry.trust_store(limits=QUIET).key(old_kid).kid == old_kid


def test_a_service_that_is_not_in_the_list_of_its_block_is_asked_for_again(
    registry: MemoryRegistry, old_kid: str
) -> None:
    lost = replace(registry.current_services(0), services={})
    registry.answers[LIST] = Answer(200, registry.sign(lost).encode("ascii"), {"content-type": "application/jwt"})
    with pytest.raises((TrustUnavailable, UnknownKey)):
        registry.trust_store(limits=QUIET).key(old_kid)
    assert asked(registry, JWK_SET) == [JWK_SET, f"{JWK_SET}?seq=3"]


def test_copies_and_the_list_on_disk_serve_a_start_while_the_registry_is_down(
    registry: MemoryRegistry, old_kid: str, clock: Clock, tmp_path: Path
) -> None:
    trust = registry.trust_store(limits=QUIET, cache_dir=tmp_path)
    trust.key(old_kid)
    trust.policy(service_id(registry.domain, "client"))
    trust.stop()
    registry.down = True
    clock.advance(HOUR // 2)
    restarted = registry.trust_store(limits=QUIET, cache_dir=tmp_path)
    assert restarted.key(old_kid).kid == old_kid
    restarted.stop()
    clock.advance(HOUR // 2)
    with pytest.raises(TrustUnavailable):
        registry.trust_store(limits=QUIET, cache_dir=tmp_path).key(old_kid)


def test_a_renewal_without_a_change_brings_a_newer_list_to_the_disk(
    registry: MemoryRegistry, old_kid: str, clock: Clock, tmp_path: Path
) -> None:
    limits = replace(QUIET, refresh_interval=300.0)
    trust = registry.trust_store(limits=limits, cache_dir=tmp_path)
    trust.key(old_kid)
    clock.advance(HOUR - 60)
    trust.refresh()
    trust.stop()
    registry.down = True
    clock.advance(HOUR - 60)
    assert registry.trust_store(limits=limits, cache_dir=tmp_path).key(old_kid).kid == old_kid


def test_processes_of_one_host_fetch_one_list(registry: MemoryRegistry, old_kid: str, tmp_path: Path) -> None:
    registry.trust_store(limits=QUIET, cache_dir=tmp_path).key(old_kid)
    registry.trust_store(limits=QUIET, cache_dir=tmp_path).key(old_kid)
    assert asked(registry, LIST) == [LIST]


@pytest.mark.parametrize(
    "services",
    [
        {"test.internal/client": 0},
        {"test.internal/client": BLOCK + 1},
        {"test.internal/client": 99},
        {"test.internal/client": "2"},
        {"test.internal/client": True},
        {"client": 2},
        ["test.internal/client"],
    ],
)
def test_a_list_with_other_members_is_malformed(registry: MemoryRegistry, services: Any) -> None:
    registry.identity("client")
    claims = registry.current_services(0).claims() | {"services": services}
    with pytest.raises((MalformedToken, InvalidName)):
        CurrentServices.from_claims(claims)


def test_a_list_says_what_its_claims_say(registry: MemoryRegistry, clock: Clock) -> None:
    registry.identity("client")
    made = registry.current_services(0)
    kid = make_kid(made.issuer, registry.signing_key.public.thumbprint)
    read = read_document(
        CurrentServices,
        registry.sign(made),
        {kid: registry.signing_key.public},
        now=clock(),
        domain=registry.domain,
    )
    assert read == made
    assert read.expires_at == read.issued_at + DOCUMENT_LIFETIME


def test_blocks_begin_with_the_first_entry() -> None:
    assert [block_of(seq) for seq in (1, BLOCK, BLOCK + 1, 2 * BLOCK)] == [0, 0, 1, 1]


def test_a_list_that_a_dropped_key_signed_is_no_evidence(registry: MemoryRegistry, old_kid: str, clock: Clock) -> None:
    trust = registry.trust_store(limits=QUIET)
    trust.key(old_kid)
    clock.advance(QUIET.cooldown)
    registry.log.clear()
    registry.roll_signing_key()
    trust.refresh()
    assert trust.key(old_kid).kid == old_kid
    assert asked(registry, LIST) == [LIST], "it is young, and yet fetched again"
