"""A trust store that asks for the cosignatures of witnesses: what it believes, how long, and what it goes on with."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal import TrustLimits, TrustStore
from peerseal.errors import ConfigurationError, DocumentRefused, RevokedKey, TrustUnavailable
from peerseal.identity.environment import options_in
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, Note, NoteKey, cosign
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.testing import Answer, Clock, MemoryLedger, MemoryRegistry

PATH = "/ledger/checkpoint.cosigned"
ASKED = f"GET {PATH}"
DELAY = 300.0
QUIET = TrustLimits(poll_interval=3600.0, refresh_interval=10 * 24 * 3600.0, stranger_fetches=1000.0, cooldown=0.0)
NAMES = ("a.example", "b.example", "c.example")


def signer_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32))


def vkey(name: str) -> str:
    return str(NoteKey.of(name, WITNESS_KEY, signer_of(name).public_key()))


VKEYS = tuple(map(vkey, NAMES))
TWO_OF_THREE: dict[str, Any] = {"witnesses": VKEYS, "quorum": 2}


def cosigned(registry: MemoryRegistry, *names: str, note: str | None = None) -> str:
    """The ledger's newest checkpoint, cosigned now."""
    note = note or registry.ledger.checkpoint()
    text, now = Note.parse(note).text, int(registry.clock())
    return note + "".join(f"{cosign(text, name, signer_of(name), now)}\n" for name in names)


def serve_cosigned(registry: MemoryRegistry, *names: str, note: str | None = None) -> None:
    """The registry serves it from now on."""
    registry.answers[PATH] = Answer(200, cosigned(registry, *names, note=note).encode())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Iterator[MemoryRegistry]:
    with MemoryRegistry(clock=clock) as registry:
        registry.lasting = True
        yield registry


def admitted(registry: MemoryRegistry, service: str = "client") -> str:
    """The kid of a new key of that service."""
    key = KeyPair.generate("ES256").public
    registry.admit(service, key, {"join_token": "t"}, "p")
    return f"{registry.domain}/{service}/{key.thumbprint}"


def knows(trust: TrustStore, kid: str) -> bool:
    """Whether the store believes the key; a store that cannot say so names the witnesses."""
    try:
        return trust.key(kid).kid == kid
    except TrustUnavailable as error:
        cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DocumentRefused):
        cause = cause.__cause__
    assert cause is None or cause.code == "document_unwitnessed"
    return False


def test_without_witnesses_nothing_is_asked_for(registry: MemoryRegistry) -> None:
    trust = registry.trust_store(limits=QUIET)
    assert knows(trust, admitted(registry))
    trust.refresh()
    assert not registry.calls[ASKED]
    assert "witness" not in trust.status(start=False).metrics()


def test_what_a_quorum_has_cosigned_is_believed(registry: MemoryRegistry) -> None:
    kid = admitted(registry)
    serve_cosigned(registry, "a.example", "c.example")
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert knows(trust, kid)
    assert registry.calls[ASKED] == 1


@pytest.mark.parametrize("names", [(), ("a.example",), ("a.example", "stranger.example"), ("a.example", "a.example")])
def test_a_store_that_begins_without_a_quorum_believes_nothing(registry: MemoryRegistry, names: tuple[str]) -> None:
    kid = admitted(registry)
    serve_cosigned(registry, *names)
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    with pytest.raises(TrustUnavailable, match="cosigned by 2 of 3 witnesses") as caught:
        trust.key(kid)
    assert isinstance(caught.value.__cause__, DocumentRefused)
    assert caught.value.__cause__.code == "document_unwitnessed"
    serve_cosigned(registry, *NAMES)
    assert knows(trust, kid), "as soon as it is cosigned"


def test_what_is_newer_is_believed_for_the_delay_and_then_refused(registry: MemoryRegistry, clock: Clock) -> None:
    old = admitted(registry)
    serve_cosigned(registry, *NAMES)
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert knows(trust, old)
    new, newer = admitted(registry, "shop"), admitted(registry, "stock")
    assert knows(trust, new), "a slow witness stops nothing"
    clock.advance(DELAY - 1)
    assert knows(trust, new)
    clock.advance(1)
    assert not knows(trust, new), "what was believed for the delay only"
    assert not knows(trust, newer), "what was not known before"
    assert knows(trust, old), "what is cosigned goes on"
    serve_cosigned(registry, "b.example", "c.example")
    assert knows(trust, new)
    assert knows(trust, newer)


def test_a_refusal_says_which_witnesses_are_missing(registry: MemoryRegistry) -> None:
    kid = admitted(registry)
    serve_cosigned(registry, "b.example")
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    with pytest.raises(TrustUnavailable, match=r"1 of 2 needed witnesses cosigned it, without a.example, c.example"):
        trust.key(kid)


def test_a_key_that_was_cosigned_in_time_is_believed_on(registry: MemoryRegistry, clock: Clock) -> None:
    admitted(registry)
    serve_cosigned(registry, *NAMES)
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert knows(trust, admitted(registry))
    new = admitted(registry, "shop")
    assert knows(trust, new)
    serve_cosigned(registry, *NAMES)
    clock.advance(DELAY / 2)
    trust.refresh()
    registry.down = True
    clock.advance(DELAY)
    assert knows(trust, new)


def test_revocations_count_without_witnesses(registry: MemoryRegistry, clock: Clock) -> None:
    kids = admitted(registry), admitted(registry, "shop")
    serve_cosigned(registry, *NAMES)
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert all(knows(trust, kid) for kid in kids)
    admitted(registry, "stock")
    trust.refresh()
    clock.advance(10 * DELAY)
    registry.revoke(kids[0])
    trust.refresh()
    with pytest.raises(RevokedKey):
        trust.key(kids[0])
    assert knows(trust, kids[1])


def test_a_list_of_changes_waits_for_no_answer_about_witnesses(registry: MemoryRegistry, clock: Clock) -> None:
    kid = admitted(registry)
    serve_cosigned(registry, *NAMES)
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert knows(trust, kid)
    admitted(registry, "shop")
    trust.refresh()
    clock.advance(2 * DELAY)
    before = registry.calls[ASKED]
    changes = trust.document(Changes, "/v1/changes?since=0", registry.domain)
    assert changes.issued_at == int(clock()) - DELAY, "it says nothing about the time after the delay"
    assert registry.calls[ASKED] == before


def test_a_narrower_policy_waits_for_no_witness(registry: MemoryRegistry, clock: Clock) -> None:
    kid, shop = admitted(registry), f"{registry.domain}/shop"
    registry.set_policy("shop", {"client": {"read", "write"}})
    serve_cosigned(registry, *NAMES)
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert knows(trust, kid)
    assert trust.policy(shop) == registry.policy(shop)
    registry.set_policy("shop", {"client": {"read"}})
    trust.refresh()
    assert trust.policy(shop) == registry.policy(shop)
    clock.advance(DELAY + 60)
    registry.set_policy("shop", {})
    trust.refresh()
    assert trust.policy(shop) == registry.policy(shop)
    assert knows(trust, kid)


def test_lists_without_witnesses_confirm_nothing_for_ever(registry: MemoryRegistry, clock: Clock) -> None:
    kid = admitted(registry)
    serve_cosigned(registry, *NAMES)
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert knows(trust, kid)
    admitted(registry, "shop")
    for _ in range(int((DELAY + QUIET.offline_limit) / 100) - 1):
        trust.refresh()
        clock.advance(100)
        assert knows(trust, kid)
    clock.advance(200)
    trust.refresh()
    assert not knows(trust, kid), "a history without witnesses may hide a revocation no longer than an outage may"


def test_a_ledger_that_grows_past_its_witnesses_gains_no_time(registry: MemoryRegistry, clock: Clock) -> None:
    first = admitted(registry)
    serve_cosigned(registry, *NAMES)
    frozen = registry.ledger.checkpoint()
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert knows(trust, first)
    for number in range(10):
        serve_cosigned(registry, *NAMES, note=frozen)  # at a later time, and never a larger tree
        believed = knows(trust, admitted(registry, f"service-{number}"))
        assert believed == (number * DELAY / 5 < DELAY), number
        clock.advance(DELAY / 5)


def test_a_restart_gives_no_further_time(registry: MemoryRegistry, clock: Clock, tmp_path: Path) -> None:
    old = admitted(registry)
    serve_cosigned(registry, *NAMES)
    options = {"limits": QUIET, "cache_dir": tmp_path, **TWO_OF_THREE}
    first = registry.trust_store(**options)
    assert knows(first, old)
    new = admitted(registry, "shop")
    assert knows(first, new)
    first.stop()
    clock.advance(DELAY)
    second = registry.trust_store(**options)
    assert not knows(second, new)
    assert knows(second, old)


@pytest.mark.parametrize("first_read", ["the new key", "the old key", "settings", "a policy", "changes"])
@pytest.mark.parametrize("kept", [False, True])
def test_no_order_of_questions_after_a_restart_gives_further_time(
    registry: MemoryRegistry, clock: Clock, tmp_path: Path, first_read: str, *, kept: bool
) -> None:
    old = admitted(registry)
    registry.set_policy("client", {"shop": {"read"}})
    settings = registry.call("GET", "/v1/domain.jwt")
    serve_cosigned(registry, *NAMES)
    clock.advance(2 * DELAY)
    new = admitted(registry, "shop")
    registry.answers["/v1/domain.jwt"] = settings  # the documents of before are the same while nothing changes them
    for _ in range(3):
        trust = registry.trust_store(limits=QUIET, cache_dir=tmp_path if kept else None, **TWO_OF_THREE)
        if first_read == "the old key":
            assert knows(trust, old)
        elif first_read == "settings":
            trust.settings()
        elif first_read == "a policy":
            trust.policy(f"{registry.domain}/client")
        elif first_read == "changes":
            trust.refresh()
        assert not knows(trust, new)
        assert knows(trust, old), "what is cosigned goes on"
        trust.stop()
        clock.advance(DELAY - 10)
    serve_cosigned(registry, *NAMES)
    assert knows(registry.trust_store(limits=QUIET, **TWO_OF_THREE), new)


@pytest.mark.parametrize("damaged", [None, b"", b"x", b"1 2 3", b"\xff " * 99])
def test_an_earlier_tree_that_is_cosigned_again_gives_no_time_to_a_host_that_restarts(
    registry: MemoryRegistry, clock: Clock, tmp_path: Path, damaged: bytes | None
) -> None:
    old, earlier = admitted(registry), registry.ledger.checkpoint()
    options = {"limits": QUIET, "cache_dir": tmp_path, **TWO_OF_THREE}
    serve_cosigned(registry, *NAMES)
    trust = registry.trust_store(**options)
    assert knows(trust, old)
    new = admitted(registry, "shop")  # which the witnesses never see
    believed = []
    for _ in range(6):
        believed.append((knows(trust, old), knows(trust, new)))
        clock.advance(60)
        serve_cosigned(registry, *NAMES, note=earlier)
        trust.refresh()
        trust.stop()
        for file in tmp_path.rglob("uncosigned") if damaged is not None else ():
            file.write_bytes(damaged)
        clock.advance(60)
        trust = registry.trust_store(**options)
    assert all(of_old for of_old, _ in believed), "what is cosigned goes on"
    if damaged is None:
        assert [of_new for _, of_new in believed] == [True, True, True, False, False, False]
    serve_cosigned(registry, *NAMES)
    assert knows(trust, new)
    newer = admitted(registry, "stock")
    assert knows(trust, newer), "the delay is over for what is cosigned now, and not for later entries"


def test_an_idle_ledger_stays_usable_although_its_last_cosignature_is_old(
    registry: MemoryRegistry, clock: Clock
) -> None:
    kid = admitted(registry)
    registry.set_policy("client", {"shop": {"read"}})
    serve_cosigned(registry, *NAMES)
    clock.advance(2 * 3600.0)
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    for _ in range(3):
        trust.refresh()
        assert knows(trust, kid), "all of it is cosigned"
        assert trust.policy(f"{registry.domain}/client") == registry.policy(f"{registry.domain}/client")
        clock.advance(QUIET.offline_limit - 60)
    new = admitted(registry, "shop")
    assert not knows(trust, new), "it may have been kept from the witnesses since the last cosignature"
    serve_cosigned(registry, *NAMES)
    assert knows(trust, new)
    clock.advance(2 * DELAY)
    assert knows(trust, admitted(registry, "stock")), "the store has seen by itself that it had caught up"


def test_an_old_document_of_the_root_that_names_other_witnesses_gives_no_time(
    registry: MemoryRegistry, clock: Clock
) -> None:
    root = "/.well-known/peerseal-registry"
    registry.name_witnesses(Quorum.of(VKEYS, 3))
    old = admitted(registry)
    serve_cosigned(registry, *NAMES)
    before = registry.call("GET", root)
    registry.name_witnesses(Quorum.of(VKEYS, 2))
    clock.advance(2 * DELAY)
    new = admitted(registry, "shop")
    registry.answers[root] = before
    trust = registry.trust_store(limits=QUIET)
    assert knows(trust, old)
    del registry.answers[root]
    trust.refresh()
    trust.refresh()
    assert not knows(trust, new)
    assert knows(trust, old)


@pytest.mark.parametrize("kept", [False, True])
def test_an_old_document_of_the_root_that_names_no_witnesses_is_found_out(
    registry: MemoryRegistry, tmp_path: Path, *, kept: bool
) -> None:
    root = "/.well-known/peerseal-registry"
    before = registry.call("GET", root)
    registry.name_witnesses(Quorum.of(VKEYS, 2))
    old = admitted(registry)
    serve_cosigned(registry, *NAMES)
    options: dict[str, Any] = {"limits": QUIET} | ({"cache_dir": tmp_path} if kept else TWO_OF_THREE)
    assert knows(registry.trust_store(**options), old)
    new = admitted(registry, "shop")
    registry.clock.advance(2 * DELAY)
    registry.answers[root] = before
    trust = registry.trust_store(**options)
    assert not knows(trust, new), "by the cache folder, or by the settings"
    assert knows(trust, old)


def test_copies_that_were_cosigned_decide_while_the_registry_is_down(registry: MemoryRegistry, tmp_path: Path) -> None:
    kid = admitted(registry)
    serve_cosigned(registry, *NAMES)
    options = {"limits": QUIET, "cache_dir": tmp_path, **TWO_OF_THREE}
    first = registry.trust_store(**options)
    assert knows(first, kid)
    first.stop()
    registry.down = True
    assert knows(registry.trust_store(**options), kid)


def test_processes_of_a_host_ask_once(registry: MemoryRegistry, tmp_path: Path) -> None:
    kid = admitted(registry)
    serve_cosigned(registry, *NAMES)
    options = {"limits": QUIET, "cache_dir": tmp_path, **TWO_OF_THREE}
    assert knows(registry.trust_store(**options), kid)
    assert knows(registry.trust_store(**options), kid)
    assert registry.calls[ASKED] == 1


def test_an_old_cosigned_checkpoint_that_is_replayed_is_no_newer_one(registry: MemoryRegistry, clock: Clock) -> None:
    admitted(registry)
    old = cosigned(registry, *NAMES)
    kid = admitted(registry, "shop")
    registry.answers[PATH] = Answer(200, old.encode())
    clock.advance(DELAY)
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert not knows(trust, kid)
    serve_cosigned(registry, *NAMES)
    assert knows(trust, kid)
    registry.answers[PATH] = Answer(200, old.encode())
    clock.advance(DELAY)
    trust.refresh()
    assert knows(trust, kid)


def forked(registry: MemoryRegistry) -> MemoryLedger:
    """A ledger of the same key whose first entry is another one."""
    fork = MemoryLedger(registry.domain)
    fork.key = registry.ledger.key
    for entry in registry.ledger.entries:
        fork.append(replace(entry, time=entry.time - 1) if entry.seq == 1 else entry)
    return fork


@pytest.mark.parametrize(("grown", "said"), [(False, "two histories"), (True, "document_rolled_back")])
def test_another_history_that_witnesses_cosigned_covers_nothing(
    registry: MemoryRegistry, caplog: pytest.LogCaptureFixture, *, grown: bool, said: str
) -> None:
    kid = admitted(registry)
    fork = forked(registry)
    if grown:
        fork.append(replace(fork.entries[-1], seq=len(fork.entries) + 1))
    serve_cosigned(registry, *NAMES, note=fork.checkpoint())
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert not knows(trust, kid)
    assert said in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 100, b"no note", b"test.internal\n1\n\n", b"a" * 100_000, "— a AAAA\n".encode() * 65],
    ids=["empty", "no UTF-8", "no note", "half a note", "a flood", "too many lines"],
)
def test_what_is_no_cosigned_checkpoint_covers_nothing(registry: MemoryRegistry, content: bytes) -> None:
    kid = admitted(registry)
    registry.answers[PATH] = Answer(200, content)
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert not knows(trust, kid)


def test_a_checkpoint_that_only_witnesses_signed_covers_nothing(registry: MemoryRegistry) -> None:
    kid = admitted(registry)
    text, _, lines = cosigned(registry, *NAMES).partition("\n\n")
    registry.answers[PATH] = Answer(200, f"{text}\n\n{lines.partition(chr(10))[2]}".encode())
    assert not knows(registry.trust_store(limits=QUIET, **TWO_OF_THREE), kid)


def test_the_roots_quorum_counts_without_a_setting(registry: MemoryRegistry) -> None:
    registry.name_witnesses(Quorum.of(VKEYS, 2))
    kid = admitted(registry)
    serve_cosigned(registry, "a.example")
    trust = registry.trust_store(limits=QUIET)
    assert not knows(trust, kid)
    serve_cosigned(registry, "a.example", "b.example")
    assert knows(trust, kid)


def test_of_the_roots_quorum_and_the_clients_the_stricter_counts(registry: MemoryRegistry) -> None:
    registry.name_witnesses(Quorum.of(VKEYS, 2))
    kid = admitted(registry)
    own = vkey("own.example")
    trust = registry.trust_store(limits=QUIET, witnesses=[own], quorum=1)
    for names in (NAMES, ("own.example",), ("own.example", "a.example")):
        serve_cosigned(registry, *names)
        assert not knows(trust, kid), names
    serve_cosigned(registry, "own.example", "a.example", "b.example")
    assert knows(trust, kid)


def test_a_running_store_gives_new_witnesses_of_the_root_the_delay(registry: MemoryRegistry, clock: Clock) -> None:
    kid = admitted(registry)
    trust = registry.trust_store(limits=QUIET)
    assert knows(trust, kid)
    registry.name_witnesses(Quorum.of(VKEYS, 2))
    trust.refresh()
    new = admitted(registry, "shop")
    assert knows(trust, new)
    clock.advance(DELAY)
    trust.refresh()
    assert not knows(trust, admitted(registry, "stock"))
    assert not knows(trust, new)
    registry.name_witnesses(None)
    trust.refresh()
    assert knows(trust, new), "the root asks for none any more"


def test_a_dropped_witness_does_not_count_any_more(registry: MemoryRegistry, clock: Clock) -> None:
    registry.name_witnesses(Quorum.of(VKEYS, 2))
    kid = admitted(registry)
    serve_cosigned(registry, "a.example", "b.example")
    trust = registry.trust_store(limits=QUIET)
    assert knows(trust, kid)
    registry.name_witnesses(Quorum.of(VKEYS[1:], 2))
    trust.refresh()
    trust.refresh()
    assert knows(trust, kid), "the new witnesses may need time"
    clock.advance(DELAY)
    trust.refresh()
    assert not knows(trust, kid)


def test_a_service_registers_and_rotates_while_no_witness_answers(registry: MemoryRegistry) -> None:
    registry.name_witnesses(Quorum.of(VKEYS, 2))
    identity = registry.identity("billing", limits=QUIET)
    identity.rotate()
    assert identity.credentials.key_id


def test_the_settings_of_an_identity_reach_its_store(registry: MemoryRegistry) -> None:
    kid = admitted(registry)
    identity = registry.identity("billing", limits=QUIET, **TWO_OF_THREE)
    assert not knows(identity.trust, kid)
    serve_cosigned(registry, *NAMES)
    assert knows(identity.trust, kid)


def test_metrics_say_how_far_the_ledger_is_cosigned(registry: MemoryRegistry, clock: Clock) -> None:
    kid = admitted(registry)
    serve_cosigned(registry, *NAMES)
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    assert knows(trust, kid)
    status = trust.status(start=False)
    assert (status.cosigned_entries, status.uncosigned_for) == (len(registry.ledger.entries), 0.0)
    admitted(registry)
    trust.refresh()
    clock.advance(7)
    assert trust.status(start=False).uncosigned_for == 7.0
    assert "peerseal_trust_uncosigned_seconds 7" in trust.status(start=False).metrics()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"witnesses": VKEYS}, "belong together"),
        ({"quorum": 1}, "belong together"),
        ({"witnesses": VKEYS, "quorum": 4}, "a quorum of 4, expected 1 to 3"),
        ({"witnesses": VKEYS, "quorum": "2"}, "a quorum of '2'"),
        ({"witnesses": ["a.example"], "quorum": 1}, "expected NAME[+]ID[+]KEY"),
        ({"witnesses": [VKEYS[0], VKEYS[0]], "quorum": 1}, "the same name"),
        ({"witnesses": 7, "quorum": 1}, "witnesses"),
        ({"witnesses": [7], "quorum": 1}, "witnesses"),
    ],
)
def test_witnesses_that_cannot_be_asked_for(registry: MemoryRegistry, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        registry.trust_store(**options)


@pytest.mark.parametrize("delay", [float("inf"), float("nan"), 7 * 24 * 3600.0 + 1, -1.0, "300", True])
def test_a_delay_that_never_ends_is_refused(delay: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"TrustLimits.witness_delay.*expected a number, 0 to 604800"):
        TrustLimits(witness_delay=delay)


def test_no_mutation_of_a_cosigned_checkpoint_covers_more(registry: MemoryRegistry) -> None:
    kid = admitted(registry)
    good = cosigned(registry, "a.example", "b.example").encode()
    trust = registry.trust_store(limits=QUIET, **TWO_OF_THREE)
    for place in range(0, len(good), 3):
        for changed in (good[:place] + b"A" + good[place + 1 :], good[:place] + good[place + 1 :], good[:place]):
            if changed == good:
                continue
            registry.answers[PATH] = Answer(200, changed)
            assert not knows(trust, kid), place


def test_the_environment_names_them(registry: MemoryRegistry) -> None:
    base = {"PEERSEAL_SERVICE": "billing", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1"}
    assert options_in(base)["quorum"] is None
    asked = {"PEERSEAL_WITNESSES": ", ".join(VKEYS), "PEERSEAL_WITNESS_QUORUM": "2", "PEERSEAL_WITNESS_DELAY": "10m"}
    options = options_in({**base, **asked})
    assert (options["witnesses"], options["quorum"], options["limits"].witness_delay) == (VKEYS, 2, 600.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"PEERSEAL_WITNESS_QUORUM": ""}, "set both, or neither"),
        ({"PEERSEAL_WITNESSES": ""}, "set both, or neither"),
        ({"PEERSEAL_WITNESS_QUORUM": "4"}, "PEERSEAL_WITNESSES: a quorum of 4"),
        ({"PEERSEAL_WITNESS_QUORUM": "0"}, "PEERSEAL_WITNESS_QUORUM='0': expected a whole number from 1 to 16"),
        ({"PEERSEAL_WITNESSES": "a.example"}, "PEERSEAL_WITNESSES: 'a.example' is no verifier key"),
        ({"PEERSEAL_WITNESS_DELAY": "0"}, "PEERSEAL_WITNESS_DELAY='0': expected 1"),
    ],
)
def test_an_environment_that_names_them_wrongly_ends_the_start(changes: dict[str, str], said: str) -> None:
    base = {"PEERSEAL_SERVICE": "billing", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1"}
    asked = {"PEERSEAL_WITNESSES": ",".join(VKEYS), "PEERSEAL_WITNESS_QUORUM": "2"}
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        options_in({**base, **asked, **changes})
