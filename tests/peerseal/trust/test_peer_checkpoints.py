"""Peers as witnesses: what a service tells its callees of the ledger, and what it makes of what it is told."""

import json
import logging
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from peerseal import TrustLimits, TrustStore
from peerseal.protocol.documents.history_statement import Head, HistoryStatement, encode_statements, sign_history
from peerseal.protocol.encoding import b64url
from peerseal.protocol.ledger.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from peerseal.protocol.ledger.split_view import MAX_CP, Evidence, decode_cp
from peerseal.testing import Answer, Clock, MemoryRegistry
from peerseal.transport.fetch import HttpFetcher
from peerseal.trust.peer_checkpoints import MOST_REPORTS, SplitView
from tests.peerseal.served import in_children, served
from tests.support.two_histories import grow, second_view
from tests.support.waiting import until

LIMITS = TrustLimits(poll_interval=3600.0, refresh_interval=10 * 24 * 3600.0, cooldown=0.0)
PEER, OTHER = "test.internal/peer", "test.internal/other"
HISTORY = "/v1/history"


class Service:
    """A service's trust store that follows the ledger of one view, and the split views that it found."""

    def __init__(self, registry: MemoryRegistry, folder: Path | None = None, **options: Any) -> None:
        self.found: list[SplitView] = []
        self.registry = registry
        options = {"limits": LIMITS, **options}
        self.trust = registry.trust_store(cache_dir=folder, on_split_view=self.found.append, **options)
        self.trust.follow_ledger()

    def follow(self) -> None:
        """See the newest checkpoint now."""
        self.trust.refresh()
        self.trust.refresh()  # what the first round found changed

    def cp(self, peer: str = PEER) -> str:
        cp = self.trust.checkpoint_for(peer)
        assert cp is not None
        return cp

    def heard(self, result: str) -> float:
        """How many checkpoints had that result."""
        return next(iter(of(self.trust, "peerseal_checkpoints_heard_total", result=result)), 0.0)

    def hears(self, cp: str, peer: str = PEER, result: str = "agreed") -> None:
        """Hear this, until it has that result once more."""
        before = self.heard(result)
        self.trust.heard(cp, kid_of(peer))
        until(lambda: self.heard(result) > before, what=f"the result {result}")


def of(trust: TrustStore, name: str, **labels: str) -> list[float]:
    samples = [sample for metric in trust.collect_checkpoints() if metric.name == name for sample in metric.samples]
    return [value for found, value in samples if labels.items() <= found.items()]


def kid_of(service: str, number: int = 0) -> str:
    """The kid of a key of that service: another number is another key."""
    return f"{service}/{b64url(bytes([number]) * 32)}"


def cp_of(note: str) -> str:
    return b64url(note.encode())


@pytest.fixture
def other(registry: MemoryRegistry) -> Iterator[MemoryRegistry]:
    """The other view of the same registry."""
    grow(registry, 3)
    with second_view(registry) as view:
        yield view


class TestWhatIsTold:
    def test_each_peer_is_told_once_after_each_change(self, registry: MemoryRegistry) -> None:
        service = Service(registry)
        assert service.trust.checkpoint_for(PEER) == service.cp(OTHER)
        assert service.trust.checkpoint_for(PEER) is None
        grow(registry)
        service.follow()
        assert parse_checkpoint(decode_cp(service.cp())).size == len(registry.ledger.entries)
        assert service.trust.checkpoint_for(PEER) is None
        assert of(service.trust, "peerseal_checkpoints_sent_total") == [3.0]

    def test_a_process_that_has_seen_nothing_tells_nothing(self, registry: MemoryRegistry) -> None:
        assert registry.trust_store(limits=LIMITS).checkpoint_for(PEER) is None

    def test_neither_the_registry_nor_a_foreign_service_is_told(self, registry: MemoryRegistry) -> None:
        trust = Service(registry).trust
        assert trust.checkpoint_for("test.internal/registry") is None
        assert trust.checkpoint_for("elsewhere.internal/peer") is None
        assert trust.checkpoint_for("no service id") is None

    def test_only_the_logs_own_signature_is_told(self, registry: MemoryRegistry) -> None:
        plain, cosigned = registry.ledger.checkpoint(), "— witness.example " + "AAAA" * 25 + "\n"
        registry.ledger.checkpoint = lambda size=None: plain + cosigned * 20  # type: ignore[method-assign]
        told = Service(registry).cp()
        assert decode_cp(told) == plain
        assert len(told) <= MAX_CP

    def test_a_domain_whose_note_is_too_long_tells_nothing(self) -> None:
        long = ".".join(["a" * 60] * 3)
        with MemoryRegistry(long) as registry:
            assert Service(registry).trust.checkpoint_for(f"{long}/peer") is None

    def test_what_was_told_is_remembered_of_so_many_peers(self, registry: MemoryRegistry) -> None:
        trust = Service(registry).trust
        for number in range(1_001):
            assert trust.checkpoint_for(f"test.internal/peer-{number}")
        assert trust.checkpoint_for("test.internal/peer-1000") is None
        assert trust.checkpoint_for("test.internal/peer-0"), "the oldest is forgotten, and told again"

    def test_threads_tell_each_peer_once(self, registry: MemoryRegistry) -> None:
        trust, told = Service(registry).trust, list[str | None]()
        begin = threading.Barrier(8)

        def tell() -> None:
            begin.wait(20)
            told.append(trust.checkpoint_for(PEER))

        threads = [threading.Thread(target=tell) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(told) - told.count(None) == 1

    def test_a_forked_child_goes_on(self, registry: MemoryRegistry) -> None:
        service = Service(registry)

        def in_child(_: int) -> str:
            service.hears(service.cp(OTHER))
            return "agreed"

        assert in_children(2, in_child) == ["agreed", "agreed"]


class TestOneHistory:
    def test_the_same_checkpoint_agrees_without_a_call(self, registry: MemoryRegistry) -> None:
        teller, hearer = Service(registry), Service(registry)
        registry.calls.clear()
        hearer.hears(teller.cp())
        assert not any("/ledger/" in path for path in registry.calls)

    def test_an_earlier_one_costs_one_proof_and_is_known_from_then_on(self, registry: MemoryRegistry) -> None:
        cp = Service(registry).cp()
        grow(registry, 5)
        hearer = Service(registry)
        registry.calls.clear()
        for peer in (PEER, OTHER, PEER):
            hearer.hears(cp, peer)
        assert registry.calls["GET /ledger/proof"] == 1
        assert not hearer.found

    def test_a_mirror_without_proofs_is_read_by_its_tiles(self, registry: MemoryRegistry) -> None:
        cp = Service(registry).cp()
        grow(registry, 5)
        hearer = Service(registry)
        registry.answers["/ledger/proof"] = Answer(404, b"")
        hearer.hears(cp)

    def test_a_later_one_waits_until_this_service_has_seen_as_much(self, registry: MemoryRegistry) -> None:
        hearer = Service(registry)
        grow(registry, 2)
        cp = Service(registry).cp()
        hearer.hears(cp, result="waiting")
        assert of(hearer.trust, "peerseal_checkpoint_waits_seconds")[0] >= 0
        grow(registry)
        hearer.follow()
        until(lambda: hearer.heard("agreed") == 1, what="the comparison")
        assert of(hearer.trust, "peerseal_checkpoint_waits_seconds") == [0.0]

    def test_a_ledger_key_that_was_rolled_over_raises_no_alarm(self, registry: MemoryRegistry) -> None:
        old = Service(registry)
        before = old.cp()
        registry.roll_ledger_key()
        new = Service(registry)
        grow(registry)
        new.follow()
        new.hears(before)
        old.hears(new.cp(), result="unknown_signer")
        old.trust.reader.load_registry_keys(at_once=True)
        old.follow()
        until(lambda: old.heard("agreed") == 1, what="the comparison under the new key")
        assert not old.found + new.found

    def test_a_note_by_a_ledger_key_that_was_dropped_is_no_evidence(self, registry: MemoryRegistry) -> None:
        stolen = registry.ledger.key
        registry.roll_ledger_key(keep_old=False)
        hearer = Service(registry)
        size = len(registry.ledger.entries)
        hearer.hears(
            cp_of(sign_checkpoint(Checkpoint(registry.domain, size, bytes(32)), stolen)), result="unknown_signer"
        )
        assert not hearer.found

    def test_a_registry_that_gives_no_proof_decides_nothing(self, registry: MemoryRegistry) -> None:
        cp = Service(registry).cp()
        grow(registry, 5)
        hearer = Service(registry)
        registry.answers["/ledger/proof"] = registry.answers["/ledger/checkpoint"] = Answer(503, b"")
        hearer.hears(cp, result="undecided")
        registry.answers.clear()
        until(lambda: hearer.heard("agreed") == 1, what="the comparison, once there is a proof")

    def test_damaged_tiles_are_no_evidence(self, registry: MemoryRegistry) -> None:
        cp = Service(registry).cp()
        grow(registry, 5)
        hearer = Service(registry)
        registry.answers["/ledger/proof"] = Answer(404, b"")
        width = len(registry.ledger.entries)
        registry.answers[f"/ledger/tile/0/000.p/{width}"] = Answer(200, os.urandom(32 * width))
        hearer.hears(cp, result="undecided")
        assert not hearer.found


class TestASplitView:
    def alarm(self, service: Service, number: int = 1) -> SplitView:
        until(lambda: len(service.found) >= number, what="the alarm")
        return service.found[number - 1]

    def proven(self, found: SplitView, registry: MemoryRegistry) -> str:
        evidence = Evidence.decode(found.evidence.encode())
        under_pin = evidence.keys_under(registry.pin)
        verdict = evidence.verdict([registry.ledger.jwk])
        assert verdict.proven
        assert evidence.verdict(under_pin.ledger_keys, under_pin) == verdict
        return verdict.code

    def test_equal_sizes_with_two_roots(self, registry: MemoryRegistry, other: MemoryRegistry, tmp_path: Path) -> None:
        grow(registry, caller="us")
        grow(other, caller="them")
        hearer = Service(registry, tmp_path)
        hearer.hears(Service(other).cp(), result="contradicted")
        found = self.alarm(hearer)
        assert self.proven(found, registry) == "two_roots"
        assert of(hearer.trust, "peerseal_split_views_total") == [1.0]
        assert [(one.note, one.source) for one in found.evidence.seen] == [(0, PEER), (1, "test.internal/registry")]

    def test_a_smaller_tree_that_is_no_beginning(self, registry: MemoryRegistry, other: MemoryRegistry) -> None:
        grow(registry, 6, caller="us")
        grow(other, 2, caller="them")
        hearer = Service(registry)
        hearer.hears(Service(other).cp(), result="contradicted")
        assert self.proven(self.alarm(hearer), registry) == "not_extended"

    def test_a_larger_tree_once_this_side_has_grown(self, registry: MemoryRegistry, other: MemoryRegistry) -> None:
        grow(registry, caller="us")
        grow(other, 3, caller="them")
        hearer = Service(registry)
        hearer.hears(Service(other).cp(), result="waiting")
        grow(registry, 5, caller="us")
        hearer.follow()
        assert self.proven(self.alarm(hearer), registry) == "not_extended"

    def test_a_larger_tree_although_the_peer_tells_of_still_larger_ones(
        self, registry: MemoryRegistry, other: MemoryRegistry
    ) -> None:
        """Else a registry that shows the peer a little more, always, would not be found."""
        teller, hearer = Service(other), Service(registry)
        for _ in range(3):
            grow(other, 2, caller="them")
            teller.follow()
            hearer.hears(teller.cp(), result="waiting")
        grow(registry, 3, caller="us")
        hearer.follow()
        assert self.proven(self.alarm(hearer), registry) == "not_extended"

    def test_too_many_of_them_at_once_are_reported_later(self, registry: MemoryRegistry, other: MemoryRegistry) -> None:
        hearer = Service(registry, limits=replace(LIMITS, longest_pause=0.1))
        size, key, number = len(registry.ledger.entries), registry.ledger.key, 20
        registry.answers[HISTORY] = Answer(503, b"")
        for each in range(number):
            note = sign_checkpoint(Checkpoint(registry.domain, size, bytes([each]) * 32), key)
            hearer.trust.heard(cp_of(note), kid_of(f"{PEER}-{each}"))
        until(lambda: registry.calls[f"GET {HISTORY}"] > 2 * number, what="longer than 20 looks take")
        assert not hearer.found
        registry.answers.clear()
        until(lambda: of(hearer.trust, "peerseal_split_views_total") == [float(number)], what="all of them")

    def test_the_evidence_is_a_file_of_this_user_alone(
        self, registry: MemoryRegistry, other: MemoryRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        grow(registry, caller="us")
        grow(other, caller="them")
        hearer = Service(registry, tmp_path)
        with caplog.at_level(logging.ERROR):
            hearer.hears(Service(other).cp(), result="contradicted")
            found = self.alarm(hearer)
        assert found.file is not None
        assert found.file.parent.parent == tmp_path
        assert stat.S_IMODE(found.file.stat().st_mode) == 0o600
        assert Evidence.decode(found.file.read_bytes()) == found.evidence
        members = json.loads(found.file.read_bytes())
        assert members["domain"] == "test.internal"
        assert len(members["notes"]) == 2
        assert f"peerseal evidence verify {found.file}" in caplog.text

    def test_many_of_them_leave_a_bounded_number_of_files(
        self, registry: MemoryRegistry, other: MemoryRegistry, tmp_path: Path
    ) -> None:
        grow(registry, caller="us")
        hearer = Service(registry, tmp_path)
        size, key = len(registry.ledger.entries), registry.ledger.key
        for number in range(MOST_REPORTS + 4):
            note = sign_checkpoint(Checkpoint(registry.domain, size, bytes([number]) * 32), key)
            hearer.hears(cp_of(note), f"{PEER}-{number}", "contradicted")
            until(lambda expected=number + 1: of(hearer.trust, "peerseal_split_views_total") == [float(expected)])  # type: ignore[misc]
        until(lambda: len(hearer.found) == MOST_REPORTS)
        assert len(list(tmp_path.glob("split-views/split-view-*"))) == MOST_REPORTS

    def test_a_folder_that_cannot_be_written_still_gives_an_alarm(
        self, registry: MemoryRegistry, other: MemoryRegistry, tmp_path: Path
    ) -> None:
        grow(registry, caller="us")
        grow(other, caller="them")
        hearer = Service(registry, tmp_path)
        (tmp_path / "split-views").write_text("in the way")
        hearer.hears(Service(other).cp(), result="contradicted")
        assert self.alarm(hearer).file is None

    def test_an_alarm_does_not_wait_for_the_registry_for_ever(
        self, registry: MemoryRegistry, other: MemoryRegistry
    ) -> None:
        grow(registry, caller="us")
        grow(other, caller="them")
        hearer = Service(registry, limits=replace(LIMITS, offline_limit=1.5))
        registry.answers[HISTORY] = Answer(503, b"")
        hearer.hears(Service(other).cp(), result="contradicted")
        assert not hearer.found
        self.alarm(hearer)


class TestADeclaredLoss:
    """The registry lost entries for good, and its root said so: some peers know it already, others do not."""

    def declared(self, registry: MemoryRegistry, lost: MemoryRegistry, common: int, clock: Clock) -> None:
        def head(view: MemoryRegistry, size: int | None = None) -> Head:
            checkpoint = parse_checkpoint(view.ledger.checkpoint(size))
            return Head(checkpoint.size, checkpoint.root)

        statement = HistoryStatement(
            registry.domain, int(clock()), head(registry, common), head(lost), head(registry, common + 1)
        )
        jws = sign_history(statement, registry.root)
        for view in (registry, lost):
            view.answers[HISTORY] = Answer(200, encode_statements([jws]))

    @pytest.mark.parametrize("hearer_is_ahead", [True, False])
    def test_it_raises_no_alarm(
        self, registry: MemoryRegistry, other: MemoryRegistry, clock: Clock, hearer_is_ahead: bool
    ) -> None:
        common = len(registry.ledger.entries)
        grow(other, 2, caller="lost")
        before = Service(other)
        grow(registry, 4, caller="new")
        self.declared(registry, other, common, clock)
        after = Service(registry)
        clock.advance(7 * 24 * 3600)  # a peer that slept for a week still tells what was lost
        hearer, teller = (after, before) if hearer_is_ahead else (before, after)
        if hearer_is_ahead:
            hearer.hears(teller.cp(), result="declared_loss")
        else:
            hearer.hears(teller.cp(), result="waiting")
        assert not hearer.found

    def test_a_statement_of_another_key_excuses_nothing(
        self, registry: MemoryRegistry, other: MemoryRegistry, clock: Clock
    ) -> None:
        common, root = len(registry.ledger.entries), registry.root
        grow(other, caller="lost")
        grow(registry, 4, caller="new")
        registry.root = registry.signing_key
        self.declared(registry, other, common, clock)
        registry.root = root
        hearer = Service(registry)
        hearer.hears(Service(other).cp(), result="contradicted")
        until(lambda: bool(hearer.found), what="the alarm")

    @pytest.mark.parametrize("knows_an_earlier_one", [True, False])
    def test_a_late_mirror_does_not_say_that_there_is_no_statement(
        self, registry: MemoryRegistry, other: MemoryRegistry, clock: Clock, knows_an_earlier_one: bool
    ) -> None:
        common = len(registry.ledger.entries)
        grow(other, 2, caller="lost")
        told = Service(other).cp()
        grow(registry, 4, caller="new")
        late = [sign_history(self.earlier(registry), registry.root)] if knows_an_earlier_one else []
        registry.answers[HISTORY] = Answer(200, encode_statements(late))
        with served(registry) as mirror:
            hearer = Service(registry, fetcher=HttpFetcher(["http://127.0.0.1:1", mirror]))
            hearer.hears(told, result="contradicted")
            until(lambda: registry.calls[f"GET {HISTORY}"] > 1, what="a third look")
            assert not hearer.found
            self.declared(registry, other, common, clock)
            until(lambda: hearer.heard("declared_loss") == 1, what="the mirror's next copy")
            hearer.trust.stop()

    def earlier(self, registry: MemoryRegistry) -> HistoryStatement:
        heads = [Head(size, bytes([size]) * 32) for size in (1, 2, 2)]
        return HistoryStatement(registry.domain, 1, heads[0], heads[1], Head(3, heads[2].root))

    def test_a_key_that_the_root_drops_meanwhile_proves_nothing(
        self, registry: MemoryRegistry, other: MemoryRegistry
    ) -> None:
        grow(registry, caller="us")
        grow(other, caller="them")
        hearer = Service(registry)
        registry.answers[HISTORY] = Answer(503, b"")
        hearer.hears(Service(other).cp(), result="contradicted")
        registry.roll_ledger_key(keep_old=False)
        hearer.trust.reader.load_registry_keys(at_once=True)
        registry.answers.clear()
        until(lambda: hearer.heard("unknown_signer") == 1, what="the second look")
        assert not hearer.found


class TestAWaitThatIsOver:
    """What waits for entries that will never come is judged again, so that no honest registry is accused for ever."""

    def waits(self, service: Service) -> float:
        return of(service.trust, "peerseal_checkpoint_waits_seconds")[0]

    def test_once_the_root_declares_those_entries_lost(
        self, registry: MemoryRegistry, other: MemoryRegistry, clock: Clock
    ) -> None:
        common = len(registry.ledger.entries)
        grow(other, 40, caller="lost")
        grow(registry, 2, caller="new")
        hearer = Service(registry, limits=replace(LIMITS, longest_pause=0.05))
        registry.answers[HISTORY] = Answer(503, b"")
        hearer.hears(Service(other).cp(), result="waiting")
        until(lambda: registry.calls[f"GET {HISTORY}"] > 1, what="the question about lost entries")
        clock.advance(60)
        assert self.waits(hearer) >= 60
        TestADeclaredLoss().declared(registry, other, common, clock)
        until(lambda: hearer.heard("declared_loss") == 1, what="another look")
        assert self.waits(hearer) == 0
        assert hearer.heard("waiting") == 1, "counted once"
        asked = registry.calls[f"GET {HISTORY}"]
        hearer.hears(Service(registry).cp(OTHER), OTHER)
        assert registry.calls[f"GET {HISTORY}"] == asked, "nothing waits"

    def test_once_the_root_drops_the_key_that_signed_it(self, registry: MemoryRegistry, clock: Clock) -> None:
        hearer = Service(registry, limits=replace(LIMITS, longest_pause=0.05))
        invented = sign_checkpoint(Checkpoint(registry.domain, 10**17, bytes(32)), registry.ledger.key)
        hearer.hears(cp_of(invented), result="waiting")
        clock.advance(60)
        assert self.waits(hearer) >= 60
        registry.roll_ledger_key(keep_old=False)
        hearer.trust.reader.load_registry_keys(at_once=True)
        hearer.follow()
        until(lambda: hearer.heard("unknown_signer") == 1, what="another look")
        assert self.waits(hearer) == 0

    def test_without_a_word_of_the_root_it_goes_on(self, registry: MemoryRegistry, clock: Clock) -> None:
        hearer = Service(registry, limits=replace(LIMITS, longest_pause=0.05))
        grow(registry, 2)
        hearer.hears(Service(registry).cp(), result="waiting")
        until(lambda: registry.calls[f"GET {HISTORY}"] > 2, what="questions about lost entries")
        clock.advance(60)
        assert self.waits(hearer) >= 60


class TestFalseReports:
    """What a peer invents makes no alarm and no calls, and is counted."""

    def reports(self, registry: MemoryRegistry) -> dict[str, tuple[str, str]]:
        size = len(registry.ledger.entries)
        forger, key = Ed25519PrivateKey.generate(), registry.ledger.key
        good = registry.ledger.checkpoint()
        bent = good[:-8] + ("A" if good[-8] != "A" else "B") + good[-7:]
        return {
            "by another key": (
                cp_of(sign_checkpoint(Checkpoint(registry.domain, size, bytes(32)), forger)),
                "unknown_signer",
            ),
            "a bent signature": (cp_of(bent), "bad_signature"),
            "another domain": (
                cp_of(sign_checkpoint(Checkpoint("elsewhere.internal", size, bytes(32)), key)),
                "other_domain",
            ),
            "6 KiB": ("A" * 6144, "no_note"),
            "empty": ("", "no_note"),
            "no base64url": ("?" * 100, "no_note"),
            "no UTF-8": (b64url(b"\xff" * 90), "no_note"),
            "no note": (b64url(b"x" * 90), "no_note"),
            "a future size by another key": (
                cp_of(sign_checkpoint(Checkpoint(registry.domain, 10**17, bytes(32)), forger)),
                "unknown_signer",
            ),
        }

    def test_they_are_counted_and_cost_no_call(self, registry: MemoryRegistry) -> None:
        hearer = Service(registry)
        registry.calls.clear()
        for number, (cp, result) in enumerate(self.reports(registry).values()):
            hearer.hears(cp, f"{PEER}-{number}", result)
        assert not registry.calls
        assert not hearer.found

    def test_a_report_of_a_foreign_service_is_of_another_domain(self, registry: MemoryRegistry) -> None:
        hearer = Service(registry)
        hearer.hears(registry.ledger.checkpoint().encode().hex(), "elsewhere.internal/peer", "no_note")
        for stranger in ("elsewhere.internal/peer", "test.internal/registry", "no service id", ""):
            hearer.hears(cp_of(registry.ledger.checkpoint()), stranger, "other_domain")

    def test_a_peer_that_tells_much_has_one_place(self, registry: MemoryRegistry) -> None:
        """Its next report replaces the one before."""
        hearer = Service(registry)
        grow(registry, 40)
        for size in range(10, 40):
            hearer.trust.heard(cp_of(registry.ledger.checkpoint(size)), kid_of(PEER))
        until(lambda: hearer.heard("waiting") >= 1)
        hearer.follow()
        until(lambda: hearer.heard("agreed") >= 1, what="the comparison of the last one")

    def test_a_peer_that_tells_something_with_each_request_is_heard_once_in_a_cooldown(
        self, registry: MemoryRegistry
    ) -> None:
        hearer = Service(registry, limits=replace(LIMITS, cooldown=3_600.0))
        size, forger = len(registry.ledger.entries), Ed25519PrivateKey.generate()
        flood = [
            cp_of(sign_checkpoint(Checkpoint(registry.domain, size, bytes([at]) * 32), forger)) for at in range(100)
        ]
        hearer.hears(flood[0], PEER, "unknown_signer")
        for cp in flood:
            hearer.trust.heard(cp, kid_of(PEER))
        hearer.hears(flood[0], OTHER, "unknown_signer")
        assert hearer.heard("unknown_signer") == 2

    def test_one_that_fails_does_not_keep_others_from_being_compared(
        self, registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = Service(registry).cp()
        grow(registry, 5)
        hearer, ask = Service(registry), registry.ask

        def broken(path: str, *given: Any, **options: Any) -> Any:
            if path.startswith("/ledger/proof"):
                raise RuntimeError("a defect")
            return ask(path, *given, **options)

        monkeypatch.setattr(registry, "ask", broken)
        hearer.hears(told, PEER, "undecided")
        hearer.hears(Service(registry).cp(), OTHER)

    def test_proofs_are_fetched_within_a_budget(self, registry: MemoryRegistry) -> None:
        grow(registry, 60)
        hearer = Service(registry)
        registry.calls.clear()
        for size in range(3, 50):
            hearer.trust.heard(cp_of(registry.ledger.checkpoint(size)), kid_of(f"{PEER}-{size}"))
        until(lambda: hearer.heard("agreed") >= 10, what="the first ten comparisons")
        assert registry.calls["GET /ledger/proof"] < 47

    def test_no_text_ends_the_comparison(self, registry: MemoryRegistry) -> None:
        hearer = Service(registry)

        @given(st.text() | st.binary(max_size=600).map(b64url))
        @settings(max_examples=200, deadline=None)
        def hears(cp: str) -> None:
            hearer.hears(cp, result="no_note")

        hears()
        hearer.hears(cp_of(registry.ledger.checkpoint()))

    def test_no_mutated_note_raises_an_alarm(self, registry: MemoryRegistry) -> None:
        hearer, note = Service(registry), registry.ledger.checkpoint()
        bad = ("no_note", "bad_signature", "unknown_signer", "other_domain")

        @given(st.integers(0, len(note) - 2), st.characters(codec="utf-8"))
        @settings(max_examples=200, deadline=None)
        def hears(at: int, character: str) -> None:
            mutated = note[:at] + character + note[at + 1 :]
            before = sum(map(hearer.heard, (*bad, "agreed", "contradicted")))
            hearer.trust.heard(cp_of(mutated), kid_of(PEER))
            until(lambda: sum(map(hearer.heard, (*bad, "agreed", "contradicted"))) > before)

        hears()
        assert not hearer.heard("contradicted")
