"""Key sets that name parts: what a trust store fetches, keeps and refuses."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from peerseal import TrustLimits, TrustStore
from peerseal.errors import PeersealError, RevokedKey, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.frame import DOCUMENT_LIFETIME
from peerseal.protocol.documents.key_set import PARTS, KeySetPart, ListedKey, part_of
from peerseal.protocol.encoding import b64url
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, service_id, split_kid
from peerseal.testing import Answer, Clock, MemoryRegistry
from peerseal.trust.shelves import KeyShelf
from tests.support.between import Between

JWK_SET = "GET /v1/services/client/jwks.jwt"
JWK_SET_PATH = "/v1/services/client/jwks.jwt"
QUIET = TrustLimits(poll_interval=3600.0, refresh_interval=10 * 24 * 3600.0)
Tamper = Callable[[MemoryRegistry, KeySetPart], str]


def admitted(registry: MemoryRegistry, service: str = "client") -> str:
    """The kid of a new key."""
    public = KeyPair.generate("ES256").public
    registry.admit(service, public, {"join_token": "t"}, "proof")
    return make_kid(service_id(registry.domain, service), public.thumbprint)


def path_of(kid: str) -> str:
    """The path of the part with that key."""
    return f"/v1/services/client/jwks/{number_of(kid)}.jwt"


def number_of(kid: str) -> int:
    return part_of(split_kid(kid)[1])


def parts_asked(registry: MemoryRegistry) -> int:
    """How often parts were asked for."""
    return sum(count for call, count in registry.calls.items() if "/jwks/" in call)


def invented(registry: MemoryRegistry, number: int) -> str:
    """A kid of ``client`` that no key has; the numbers from 0 to 63 are those of its parts."""
    return make_kid(service_id(registry.domain, "client"), b64url((number << 250).to_bytes(33)[1:]))


@pytest.fixture
def registry(registry: MemoryRegistry) -> MemoryRegistry:
    registry.lasting, registry.keys_in_set = True, 1
    return registry


@pytest.fixture
def kids(registry: MemoryRegistry) -> tuple[str, str]:
    """Two keys in different parts."""
    one = other = admitted(registry)
    while number_of(other) == number_of(one):
        other = admitted(registry)
    registry.calls.clear()
    return one, other


@pytest.fixture
def trust(registry: MemoryRegistry) -> TrustStore:
    return registry.trust_store(limits=QUIET)


# what is fetched, and when


def test_a_key_is_found_in_its_part_and_no_other_part_is_fetched(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]
) -> None:
    assert trust.key(kids[0]).kid == kids[0]
    assert (registry.calls[JWK_SET], parts_asked(registry)) == (1, 1)
    assert trust.key(kids[1]).kid == kids[1]
    assert (registry.calls[JWK_SET], parts_asked(registry)) == (1, 2)
    for kid in kids:
        trust.key(kid)
    assert parts_asked(registry) == 2


def test_a_change_fetches_the_part_that_changed_and_keeps_the_other(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]
) -> None:
    for kid in kids:
        trust.key(kid)
    registry.calls.clear()
    registry.retire(kids[0])
    trust.refresh()
    assert registry.calls[f"GET {path_of(kids[0])}"] == parts_asked(registry) == 1
    registry.down = True
    assert trust.key(kids[0]).active_until == int(registry.clock())
    assert trust.key(kids[1]).kid == kids[1]


def test_a_change_of_a_part_that_is_not_held_fetches_the_set_alone(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]
) -> None:
    trust.key(kids[0])
    registry.calls.clear()
    registry.retire(kids[1])
    trust.refresh()
    assert (registry.calls[JWK_SET], parts_asked(registry)) == (1, 0)


def test_a_part_is_asked_for_by_the_entry_that_changed_it_as_all_clients_do(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]
) -> None:
    registry.identity("other")
    trust.key(kids[0])
    entry = registry.jwk_set("client").parts[number_of(kids[0])]
    assert entry is not None
    assert f"{path_of(kids[0])}?seq={entry.seq}" in [call.path for call in registry.log]


def test_a_thousand_invented_kids_fetch_each_part_once_at_most(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]
) -> None:
    trust.key(kids[0])
    registry.calls.clear()
    for number in range(1_000):
        with pytest.raises((UnknownKey, TrustUnavailable)):
            trust.key(invented(registry, number))
    named = [part for part in registry.jwk_set("client").parts if part is not None]
    assert parts_asked(registry) <= len(named) - 1
    assert registry.calls[JWK_SET] == 1
    assert trust.key(kids[1]).kid == kids[1], "a key is found during the cooldown that invented kids began"


def test_an_invented_kid_in_a_part_that_is_held_fetches_no_part(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]
) -> None:
    trust.key(kids[0])
    registry.calls.clear()
    with pytest.raises(UnknownKey):
        trust.key(invented(registry, number_of(kids[0])))
    assert (registry.calls[JWK_SET], parts_asked(registry)) == (1, 0)


def test_a_key_that_was_admitted_a_moment_ago_is_found(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]
) -> None:
    trust.key(kids[0])
    assert trust.key(new := admitted(registry)).kid == new


class Cache(Between):
    """A cache on the way that still has the older key set, where the question names no entry."""

    def __init__(self, registry: MemoryRegistry) -> None:
        super().__init__(registry, lambda _: None)
        self.older: Answer | None = registry.call("GET", JWK_SET_PATH)

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        older = self.older if path == JWK_SET_PATH else None
        return older or super().call(method, path, body=body, headers=headers)


@pytest.mark.parametrize("held", [True, False])
def test_a_part_that_is_newer_than_a_set_in_a_cache_leads_to_the_newer_set(
    registry: MemoryRegistry, kids: tuple[str, str], held: bool
) -> None:
    cache = Cache(registry)
    trust = registry.trust_store(limits=QUIET, fetcher=cache)
    if held:
        trust.key(kids[0])
    registry.retire(kids[1])
    assert trust.key(kids[1]).active_until == int(registry.clock())
    assert trust.key(kids[0]).kid == kids[0]


class Mirror(Cache):
    """Files: the query of a document's URL changes nothing."""

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        if path.startswith("/v1/changes?"):
            return Answer(404, b"")
        document = path.partition("?")[0] if "/services/" in path else path
        return super().call(method, document, body=body, headers=headers)


def test_a_mirror_that_has_a_new_part_before_its_set_is_believed_again_a_moment_later(
    registry: MemoryRegistry, kids: tuple[str, str], clock: Clock
) -> None:
    """Although the client knows of later entries about other services, which no document of a mirror covers."""
    one, other = kids
    mirror = Mirror(registry)
    mirror.older = None
    trust = registry.trust_store(limits=QUIET, fetcher=mirror)
    trust.key(one)
    mirror.older = registry.call("GET", JWK_SET_PATH)
    registry.retire(other)
    admitted(registry, "unrelated")
    trust.refresh()
    with pytest.raises(TrustUnavailable):
        trust.key(other)
    mirror.older = None
    clock.advance(600)
    trust.refresh()
    assert trust.key(other).active_until <= clock()
    assert trust.key(one).kid == one


def test_a_renewal_that_fails_at_one_part_goes_on_from_there(
    registry: MemoryRegistry, trust: TrustStore, clock: Clock, kids: tuple[str, str]
) -> None:
    for kid in kids:
        trust.key(kid)
        registry.retire(kid)
    first, last = sorted(kids, key=number_of)
    registry.answers[path_of(last)] = Answer(503, b"")
    registry.calls.clear()
    trust.refresh()
    assert trust.key(first).active_until > clock(), "the older belief stays until all parts are there"
    del registry.answers[path_of(last)]
    clock.advance(QUIET.cooldown)
    trust.refresh()
    assert {trust.key(kid).active_until for kid in kids} == {int(clock() - QUIET.cooldown)}
    assert registry.calls[f"GET {path_of(first)}"] == 1


def test_a_registry_that_answers_for_no_part_is_asked_for_three_and_next_for_the_others(
    registry: MemoryRegistry, trust: TrustStore, clock: Clock
) -> None:
    kids = {number_of(kid): kid for kid in (admitted(registry) for _ in range(30))}
    chosen = [kids[number] for number in sorted(kids)[:5]]
    for kid in chosen:
        trust.key(kid)
        registry.retire(kid)
        registry.answers[path_of(kid)] = Answer(503, b"")
    registry.calls.clear()
    trust.refresh()
    assert parts_asked(registry) == 3
    clock.advance(QUIET.cooldown)
    trust.refresh()
    assert {registry.calls[f"GET {path_of(kid)}"] for kid in chosen[3:]} == {1}


# parts that are in use

USE = 1000.0
IN_USE = replace(QUIET, unused_part=USE, offline_limit=10 * USE)


def changed(registry: MemoryRegistry, trust: TrustStore) -> Counter[str]:
    """What the trust store fetches after each part of ``client`` has changed: by path."""
    for kid in {number_of(key.kid): key.kid for key in all_keys(registry)}.values():
        admitted_next_to(registry, kid)
    registry.calls.clear()
    trust.refresh()
    return registry.calls


def all_keys(registry: MemoryRegistry) -> list[ListedKey]:
    parts = registry.jwk_set("client").parts
    return [key for number, name in enumerate(parts) if name for key in registry.key_set_part("client", number).keys]


def admitted_next_to(registry: MemoryRegistry, kid: str) -> None:
    """A new key in the same part."""
    while part_of((public := KeyPair.generate("ES256").public).thumbprint) != number_of(kid):
        pass
    registry.admit("client", public, {"join_token": "t"}, "proof")


def test_a_part_of_which_no_key_was_asked_for_in_long_is_renewed_no_longer_and_fetched_when_one_is(
    registry: MemoryRegistry, clock: Clock, kids: tuple[str, str]
) -> None:
    trust = registry.trust_store(limits=IN_USE)
    used, unused = kids
    for kid in kids:
        trust.key(kid)
    for _ in range(3):  # the first period begins with the first change
        clock.advance(USE)
        calls = changed(registry, trust)
        assert calls[f"GET {path_of(used)}"] == 1
        trust.key(used)
    assert calls[f"GET {path_of(unused)}"] == 0
    assert trust.key(unused).kid == unused
    assert registry.calls[f"GET {path_of(unused)}"] == 1
    assert changed(registry, trust)[f"GET {path_of(unused)}"] == 1, "it is renewed again"


def test_parts_whose_keys_are_asked_for_are_renewed_for_ever(
    registry: MemoryRegistry, clock: Clock, kids: tuple[str, str]
) -> None:
    trust = registry.trust_store(limits=IN_USE)
    for _ in range(6):
        for kid in kids:
            assert trust.key(kid).kid == kid
        clock.advance(0.7 * USE)
        calls = changed(registry, trust)
        assert {calls[f"GET {path_of(kid)}"] for kid in kids} == {1}


def test_a_part_that_was_asked_for_before_a_long_silence_of_the_registry_is_kept(
    registry: MemoryRegistry, clock: Clock, kids: tuple[str, str]
) -> None:
    """Without changes nothing was measured: the part is not dropped at the first change."""
    trust = registry.trust_store(limits=IN_USE)
    for kid in kids:
        trust.key(kid)
    changed(registry, trust)
    clock.advance(5 * USE)
    calls = changed(registry, trust)
    assert {calls[f"GET {path_of(kid)}"] for kid in kids} == {1}


def test_memory_alone_answers_for_a_part_that_is_measured(
    registry: MemoryRegistry, clock: Clock, kids: tuple[str, str]
) -> None:
    trust = registry.trust_store(limits=IN_USE)
    callee = service_id(registry.domain, "callee")
    registry.set_policy("callee", {"client": ["read"]})
    trust.policy(callee)
    for kid in kids:
        trust.key(kid)
    changed(registry, trust)
    clock.advance(USE)
    changed(registry, trust)
    registry.calls.clear()
    for kid in kids:
        assert trust.recall(kid, callee) is not None
        assert trust.recall(invented(registry, number_of(kid)), callee) is None
    assert not registry.calls


def test_a_key_that_is_revoked_while_its_part_is_measured_is_refused(
    registry: MemoryRegistry, clock: Clock, kids: tuple[str, str]
) -> None:
    trust = registry.trust_store(limits=IN_USE)
    for kid in kids:
        trust.key(kid)
    changed(registry, trust)
    clock.advance(USE)
    changed(registry, trust)
    registry.answers[JWK_SET_PATH] = registry.call("GET", JWK_SET_PATH)
    registry.revoke(kids[0])
    trust.refresh()
    with pytest.raises(RevokedKey):
        trust.key(kids[0])
    assert trust.key(kids[1]).kid == kids[1]


def test_a_key_of_a_dropped_part_that_was_revoked_is_refused_also_with_the_older_part_of_a_mirror(
    registry: MemoryRegistry, clock: Clock, kids: tuple[str, str]
) -> None:
    trust = registry.trust_store(limits=IN_USE)
    for kid in kids:
        trust.key(kid)
    for _ in range(3):
        clock.advance(USE)
        calls = changed(registry, trust)
        trust.key(kids[0])
    assert calls[f"GET {path_of(kids[1])}"] == 0
    registry.answers[path_of(kids[1])] = registry.call("GET", path_of(kids[1]))
    registry.revoke(kids[1])
    trust.refresh()
    with pytest.raises((RevokedKey, TrustUnavailable)):
        trust.key(kids[1])
    registry.answers.clear()
    clock.advance(IN_USE.cooldown)
    with pytest.raises(RevokedKey):
        trust.key(kids[1])


# across the limit


def test_a_set_that_grows_large_and_small_again_stays_known(
    registry: MemoryRegistry, trust: TrustStore, clock: Clock, kids: tuple[str, str]
) -> None:
    registry.keys_in_set = 1_000
    for kid in kids:
        trust.key(kid)
    registry.calls.clear()
    registry.keys_in_set = 1
    new = admitted(registry)
    trust.refresh()
    assert parts_asked(registry) == 2, "the parts of the keys that were known"
    registry.down = True
    assert {trust.key(kid).kid for kid in kids} == set(kids)
    registry.down, registry.keys_in_set = False, 1_000
    registry.revoke(new)
    trust.refresh()
    registry.down = True
    assert {trust.key(kid).kid for kid in kids} == set(kids)
    with pytest.raises(RevokedKey):
        trust.key(new)


# revoked keys


def test_a_revoked_key_is_refused_by_the_list_of_changes_while_its_part_is_withheld(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]
) -> None:
    for kid in kids:
        trust.key(kid)
    registry.answers[path_of(kids[0])] = registry.call("GET", path_of(kids[0]))
    registry.revoke(kids[0])
    trust.refresh()
    with pytest.raises(RevokedKey):
        trust.key(kids[0])
    assert trust.key(kids[1]).kid == kids[1]


def test_a_revoked_key_in_a_part_that_is_not_held_is_refused_before_any_fetch(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]
) -> None:
    """A mirror that has the older set and the older part would bring it otherwise."""
    trust.key(kids[0])
    for path in (JWK_SET_PATH, path_of(kids[1])):
        registry.answers[path] = registry.call("GET", path)
    registry.revoke(kids[1])
    trust.refresh()
    registry.calls.clear()
    with pytest.raises(RevokedKey):
        trust.key(kids[1])
    assert parts_asked(registry) == 0


class EarlierRelease(Between):
    """A registry whose lists of changes name no revoked keys."""

    def __init__(self, registry: MemoryRegistry) -> None:
        super().__init__(registry, lambda _: None)

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        if not path.startswith("/v1/changes?"):
            return super().call(method, path, body=body, headers=headers)
        [since] = parse_qs(urlsplit(path).query)["since"]
        changes = replace(self._registry.changes(int(since)), revoked=())
        return Answer(200, self._registry.sign(changes).encode())


@pytest.mark.parametrize("withheld", [0, 1])
def test_a_revocation_in_a_part_that_was_fetched_is_in_force_while_another_part_cannot_be_had(
    registry: MemoryRegistry, clock: Clock, kids: tuple[str, str], withheld: int
) -> None:
    trust = registry.trust_store(limits=QUIET, fetcher=EarlierRelease(registry))
    lacked, revoked = kids[withheld], kids[1 - withheld]
    for kid in kids:
        trust.key(kid)
    registry.retire(lacked)
    registry.revoke(revoked)
    registry.answers[path_of(lacked)] = Answer(503, b"")
    trust.refresh()
    with pytest.raises(RevokedKey):
        trust.key(revoked)
    assert trust.key(lacked).active_until > clock(), "the newer set is not believed without all of its parts"
    registry.answers.clear()
    clock.advance(QUIET.cooldown)
    trust.refresh()
    assert trust.key(lacked).active_until <= clock()
    with pytest.raises(RevokedKey):
        trust.key(revoked)


def refused_by(trust: TrustStore) -> list[str]:
    """The keys that are refused although the believed key set does not say so."""
    [shelf] = [cache for cache in trust.reader.replaced_ledgers.caches if isinstance(cache, KeyShelf)]
    return list(shelf.refused)


def test_a_refusal_is_forgotten_once_the_believed_set_says_so(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]
) -> None:
    for kid in kids:
        trust.key(kid)
    older = registry.call("GET", JWK_SET_PATH)
    registry.answers[JWK_SET_PATH] = older
    registry.revoke(kids[0])
    trust.refresh()
    assert refused_by(trust) == [kids[0]]
    registry.answers.clear()
    trust.refresh()
    assert refused_by(trust) == []
    registry.answers[JWK_SET_PATH] = older
    for _ in range(2):
        trust.refresh()
        with pytest.raises(RevokedKey):
            trust.key(kids[0])


def test_a_refusal_of_a_key_whose_part_is_not_held_stays_and_no_older_part_brings_it_back(
    registry: MemoryRegistry, trust: TrustStore, clock: Clock, kids: tuple[str, str]
) -> None:
    trust.key(kids[0])
    older = {path: registry.call("GET", path) for path in (JWK_SET_PATH, path_of(kids[1]))}
    registry.answers |= older
    registry.revoke(kids[1])
    trust.refresh()
    assert refused_by(trust) == [kids[1]]
    del registry.answers[JWK_SET_PATH]
    trust.refresh()
    assert refused_by(trust) == [kids[1]], "a part that is not held lists it: the root may declare it lost"
    for answers in (older, {}):
        registry.answers.clear()
        registry.answers |= answers
        clock.advance(QUIET.cooldown)
        with pytest.raises(RevokedKey):
            trust.key(kids[1])


def test_no_part_brings_a_revoked_key_back(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    trust.key(kids[0])
    registry.revoke(kids[0])
    trust.refresh()
    key = registry.found(kids[0])
    key.revoked_at, key.active_until = None, int(registry.clock())
    registry.set_policy("client", None)
    admitted(registry)
    with caplog.at_level(logging.WARNING):
        trust.refresh()
    assert "was revoked before" in caplog.text
    with pytest.raises(RevokedKey):
        trust.key(kids[0])


# copies on disk


def test_a_cold_start_reads_set_and_part_from_disk_while_the_registry_is_down(
    registry: MemoryRegistry, kids: tuple[str, str], tmp_path: Path
) -> None:
    registry.trust_store(limits=QUIET, cache_dir=tmp_path).key(kids[0])
    registry.down = True
    trust = registry.trust_store(limits=QUIET, cache_dir=tmp_path)
    assert trust.key(kids[0]).kid == kids[0]
    with pytest.raises(TrustUnavailable):
        trust.key(kids[1])


def test_a_second_process_of_the_host_takes_the_part_from_disk(
    registry: MemoryRegistry, kids: tuple[str, str], tmp_path: Path
) -> None:
    for _ in range(2):
        registry.trust_store(limits=QUIET, cache_dir=tmp_path).key(kids[0])
    assert parts_asked(registry) == 1


def test_an_older_part_on_disk_is_passed_over(registry: MemoryRegistry, kids: tuple[str, str], tmp_path: Path) -> None:
    trust = registry.trust_store(limits=QUIET, cache_dir=tmp_path)
    trust.key(kids[0])
    [copy] = tmp_path.rglob(f"part-{number_of(kids[0])}-client.jwt")
    older = copy.read_bytes()
    registry.retire(kids[0])
    trust.refresh()
    copy.write_bytes(older)
    other = registry.trust_store(limits=QUIET, cache_dir=tmp_path)
    assert other.key(kids[0]).active_until == int(registry.clock())


def test_an_unchanged_part_is_fetched_again_before_its_copy_expires(
    registry: MemoryRegistry, kids: tuple[str, str], clock: Clock, tmp_path: Path
) -> None:
    trust = registry.trust_store(limits=replace(QUIET, refresh_interval=DOCUMENT_LIFETIME / 2), cache_dir=tmp_path)
    trust.key(kids[0])
    registry.lasting = False  # signed as of now
    clock.advance(DOCUMENT_LIFETIME - QUIET.offline_limit)
    trust.refresh()
    registry.down = True
    clock.advance(QUIET.offline_limit / 2)
    assert registry.trust_store(limits=QUIET, cache_dir=tmp_path).key(kids[0]).kid == kids[0]


def test_a_long_offline_limit_does_not_have_unchanged_parts_fetched(
    registry: MemoryRegistry, kids: tuple[str, str]
) -> None:
    trust = registry.trust_store(limits=replace(QUIET, offline_limit=2.0 * DOCUMENT_LIFETIME))
    for kid in kids:
        trust.key(kid)
    registry.calls.clear()
    registry.retire(kids[0])
    trust.refresh()
    assert registry.calls[f"GET {path_of(kids[0])}"] == parts_asked(registry) == 1


# what mirrors serve in place of a part


def part_of_another_service(registry: MemoryRegistry, part: KeySetPart) -> str:
    registry.keys_in_set = 0
    return registry.sign(replace(part, subject=service_id(registry.domain, "other"), keys=(), revoked=()))


def another_number(registry: MemoryRegistry, part: KeySetPart) -> str:
    other = next(n for n, name in enumerate(registry.jwk_set("client").parts) if name and n != part.part)
    return registry.sign(registry.key_set_part("client", other))


def another_content(registry: MemoryRegistry, part: KeySetPart) -> str:
    return registry.sign(replace(part, keys=()))


def the_set_itself(registry: MemoryRegistry, part: KeySetPart) -> str:
    return registry.sign(registry.jwk_set("client"))


def cut_short(registry: MemoryRegistry, part: KeySetPart) -> str:
    return registry.sign(part)[:-41]  # a length that no base64 has


@pytest.mark.parametrize(
    ("tamper", "code"),
    [
        (part_of_another_service, "document_wrong_subject"),
        (another_number, "document_wrong_part"),
        (another_content, "document_wrong_part"),
        (the_set_itself, "document_wrong_type"),
        (cut_short, "document_malformed"),
    ],
)
def test_another_part_is_refused_by_its_code(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str], tamper: Tamper, code: str
) -> None:
    registry.lasting = False
    jws = tamper(registry, registry.key_set_part("client", number_of(kids[0])))
    registry.answers[path_of(kids[0])] = Answer(200, jws.encode())
    with pytest.raises(TrustUnavailable):
        trust.key(kids[0])
    assert trust.reader.refused[code]
    registry.calls.clear()
    with pytest.raises(PeersealError):
        trust.key(kids[0])
    assert parts_asked(registry) == 0, "no second time in a cooldown"


def test_an_older_part_is_refused(registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]) -> None:
    older = registry.call("GET", path_of(kids[0]))
    registry.retire(kids[0])
    registry.answers[path_of(kids[0])] = older
    with pytest.raises(TrustUnavailable):
        trust.key(kids[0])
    assert trust.reader.refused["document_rolled_back"]


def test_a_part_in_place_of_the_set_is_refused(
    registry: MemoryRegistry, trust: TrustStore, kids: tuple[str, str]
) -> None:
    registry.answers[JWK_SET_PATH] = registry.call("GET", path_of(kids[0]))
    with pytest.raises(TrustUnavailable):
        trust.key(kids[0])
    assert trust.reader.refused["document_wrong_type"]


def test_there_are_64_parts() -> None:
    assert PARTS == 64
