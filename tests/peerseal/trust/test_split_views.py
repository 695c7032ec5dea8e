"""A split view that was found: what is refused, where the limits say so, and what ends that."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from peerseal import EventVerifier, TrustLimits, TrustStore, Verifier
from peerseal.errors import ConfigurationError, PeersealError, SplitViewFound, TrustUnavailable
from peerseal.identity.environment import options_in
from peerseal.messaging import EventConsumer, Message
from peerseal.protocol.documents.history_statement import Head, HistoryStatement, encode_statements, sign_history
from peerseal.protocol.encoding import b64url
from peerseal.protocol.ledger.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from peerseal.protocol.ledger.split_view import Evidence
from peerseal.testing import Answer, MemoryRegistry
from peerseal.trust.split_views import MOST_FILES
from tests.support.two_histories import grow, second_view
from tests.support.waiting import until

LIMITS = TrustLimits(poll_interval=3600.0, refresh_interval=10 * 24 * 3600.0, cooldown=0.0, longest_pause=0.01)
REFUSING = replace(LIMITS, refuse_split_view=True)
HISTORY = "/v1/history"
SWITCH = "PEERSEAL_REFUSE_SPLIT_VIEW"


class Domain:
    """A registry with two histories: of the caller, and of the service that it calls."""

    def __init__(self, registry: MemoryRegistry, other: MemoryRegistry, common: int, kid: str, folder: Path) -> None:
        self.registry, self.other, self.common, self.kid, self.folder = registry, other, common, kid, folder

    def store(self, limits: TrustLimits = REFUSING) -> TrustStore:
        """A process of the service that is called."""
        trust = self.registry.trust_store(cache_dir=self.folder, limits=limits)
        trust.follow_ledger()
        return trust

    def deceived(self, limits: TrustLimits = REFUSING) -> TrustStore:
        """The same, which has found the split view."""
        trust = self.store(limits)
        trust.key(self.kid)
        trust.heard(b64url(self.other.ledger.checkpoint().encode()), f"test.internal/caller/{b64url(bytes(32))}")
        until(lambda: bool(self.files), what="the evidence")
        return trust

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("split-views/split-view-*.json"))

    def explain(self) -> None:
        """The root declares the other history lost."""

        def head(view: MemoryRegistry, size: int | None = None) -> Head:
            checkpoint = parse_checkpoint(view.ledger.checkpoint(size))
            return Head(checkpoint.size, checkpoint.root)

        heads = head(self.registry, self.common), head(self.other), head(self.registry)
        statement = HistoryStatement(self.registry.domain, int(self.registry.clock()), *heads)
        self.registry.answers[HISTORY] = Answer(200, encode_statements([sign_history(statement, self.registry.root)]))


@pytest.fixture
def domain(registry: MemoryRegistry, tmp_path: Path) -> Iterator[Domain]:
    caller = registry.identity("caller", key_dir=tmp_path / "keys")
    caller.stop()
    grow(registry)
    with second_view(registry) as other:
        common = len(registry.ledger.entries)
        grow(registry, caller="us")
        grow(other, caller="them")
        yield Domain(registry, other, common, caller.credentials.key_id, tmp_path / "cache")


def accepts(trust: TrustStore, kid: str) -> bool:
    try:
        return bool(trust.key(kid)) and trust.known_key(kid) is not None
    except SplitViewFound:
        assert trust.known_key(kid) is None
        assert trust.recall(kid, "test.internal/callee") is None
        return False


def test_by_default_calls_go_on(domain: Domain) -> None:
    trust = domain.deceived(LIMITS)
    assert accepts(trust, domain.kid)
    assert accepts(domain.store(LIMITS), domain.kid)


def test_where_the_limits_say_so_all_requests_are_refused_after_the_one_that_brought_it(
    domain: Domain, tmp_path: Path
) -> None:
    caller = domain.other.identity("caller", key_dir=tmp_path / "keys", share_checkpoints=True)
    verifier = Verifier(domain.store(), audience="callee", allow={"caller": ["read"]}, clock=domain.registry.clock)

    def called() -> str:
        token = caller.sign_request("callee", method="GET", target="/")
        return verifier.verify(token, method="GET", target="/").service

    assert called() == "caller"
    until(lambda: bool(domain.files), what="the evidence")
    with pytest.raises(SplitViewFound, match=r"test\.internal/caller told of one of them") as refused:
        called()
    assert (refused.value.code, refused.value.status, refused.value.step) == ("split_view", 503, 3)
    assert refused.value.retry_after


SCOPE, TOPIC, AUDIENCE = "trigger_invoicing", "OrderCreated", "jobs.example.com"


def signed_event(domain: Domain) -> Message:
    """One that was published before anything was found."""
    publisher = domain.registry.identity("publisher")
    headers = publisher.sign_event(
        b"{}", topic=TOPIC, audience=AUDIENCE, scope=SCOPE, event_id="e-1", transaction_id="t-1"
    )
    return Message(
        TOPIC, b"{}", tuple((name, value.encode()) for name, value in headers.items()), None, "OrderCreated/0@1"
    )


def verifier_of_events(trust: TrustStore, domain: Domain) -> EventVerifier:
    allow, age = {"publisher": [SCOPE]}, timedelta(days=1)
    return EventVerifier(trust, audience=AUDIENCE, allow=allow, max_age=age, clock=domain.registry.clock)


def test_by_default_events_are_taken(domain: Domain) -> None:
    event = signed_event(domain)
    verifier = verifier_of_events(domain.deceived(LIMITS), domain)
    assert verifier.verify(event.payload, event.headers, topic=TOPIC).id == "e-1"


def test_where_requests_are_refused_events_are_too_and_can_be_delivered_again(domain: Domain) -> None:
    event = signed_event(domain)
    verifier = verifier_of_events(domain.store(), domain)
    assert verifier.verify(event.payload, event.headers, topic=TOPIC).id == "e-1"
    trust = domain.deceived()
    until(lambda: not accepts(trust, domain.kid), what="the refusal")
    for refusing in (verifier_of_events(trust, domain), verifier_of_events(domain.store(), domain)):
        with pytest.raises(TrustUnavailable) as refused:
            refusing.verify(event.payload, event.headers, topic=TOPIC)
        assert (refused.value.code, refused.value.step) == ("split_view", 3)


class OneMessage:
    """An inlet with one message. Meanwhile, after the second attempt, the root explains the split view."""

    def __init__(self, message: Message, domain: Domain) -> None:
        self.message, self.domain, self.attempts, self.acknowledged = message, domain, 0, False

    def receive(self, timeout: float) -> Message | None:
        return self.message

    def done(self, message: Message) -> None:
        self.acknowledged = True

    def hold(self, message: Message, seconds: float) -> bool:
        self.attempts += 1
        if self.attempts == 2:
            self.domain.explain()
        threading.Event().wait(seconds)
        return True

    def close(self) -> None:
        pass


class NoDeadLetters:
    """An outlet that nothing is sent to."""

    def send(self, topic: str, payload: bytes, headers: object, key: bytes | None = None) -> None:
        raise AssertionError("a dead letter")

    def flush(self, timeout: float) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_consumer_keeps_the_message_until_the_root_has_explained_it(domain: Domain) -> None:
    inlet = OneMessage(signed_event(domain), domain)
    trust = domain.deceived()
    until(lambda: not accepts(trust, domain.kid), what="the refusal")
    identity = domain.registry.identity("invoicing")
    consumer = EventConsumer(identity, verifier_of_events(trust, domain), inlet, NoDeadLetters(), pauses=(0.01,))
    seen: list[str] = []
    consumer.run_once(lambda event: seen.append(event.id))
    assert (seen, inlet.acknowledged) == (["e-1"], True)
    assert consumer.counts.refused == {}
    assert consumer.counts.retried["split_view"] >= 2


def test_a_restarted_process_and_others_of_the_host_refuse_too(domain: Domain) -> None:
    neighbour = domain.store()
    assert accepts(neighbour, domain.kid)
    domain.deceived().stop()
    neighbour.refresh()
    assert not accepts(neighbour, domain.kid)
    assert not accepts(domain.store(), domain.kid)


def test_a_statement_of_the_root_ends_it(domain: Domain) -> None:
    trust = domain.deceived()
    until(lambda: not accepts(trust, domain.kid), what="the refusal")
    domain.explain()
    until(lambda: accepts(trust, domain.kid), what="the end")
    kept = Evidence.decode(domain.files[0].read_bytes())
    assert kept.statements
    assert kept.keys_under(domain.registry.pin).ledger_keys
    domain.registry.answers[HISTORY] = Answer(503, b"")
    assert accepts(domain.store(), domain.kid), "the file tells a restarted process"


def test_dropping_the_ledgers_key_ends_it(domain: Domain) -> None:
    trust = domain.deceived()
    until(lambda: not accepts(trust, domain.kid), what="the refusal")
    domain.registry.roll_ledger_key(keep_old=False)
    trust.reader.load_registry_keys(at_once=True)
    until(lambda: accepts(trust, domain.kid), what="the end")
    assert accepts(domain.store(), domain.kid)


def test_a_registry_without_an_answer_ends_nothing(domain: Domain) -> None:
    trust = domain.deceived()
    until(lambda: not accepts(trust, domain.kid), what="the refusal")
    asked = domain.registry.calls[f"GET {HISTORY}"]
    domain.registry.answers[HISTORY] = Answer(503, b"")
    until(lambda: domain.registry.calls[f"GET {HISTORY}"] > asked + 1, what="another look")
    assert not accepts(trust, domain.kid)


def test_without_the_roots_document_the_files_cannot_be_judged(domain: Domain) -> None:
    domain.deceived().stop()
    domain.registry.down = True
    with pytest.raises(TrustUnavailable):
        domain.registry.trust_store(cache_dir=domain.folder / "split-views", limits=REFUSING).key(domain.kid)


def test_files_that_prove_nothing_refuse_nothing(domain: Domain) -> None:
    domain.deceived(LIMITS).stop()
    good = Evidence.decode(domain.files[0].read_bytes())
    stranger = MemoryRegistry("test.internal")
    grow(stranger, 8)
    bad = {
        "none": b"",
        "cut": good.encode()[:-1],
        "same": replace(good, notes=(good.notes[0], good.notes[0])).encode(),
        "elsewhere": replace(good, domain="elsewhere.internal").encode(),
        "unsigned": replace(good, notes=(good.notes[0], stranger.ledger.checkpoint())).encode(),
    }
    domain.files[0].unlink()
    for name, content in bad.items():
        (domain.folder / f"split-views/split-view-{name}.json").write_bytes(content)
    assert accepts(domain.store(), domain.kid)


def test_the_switch_is_true_or_false() -> None:
    with pytest.raises(ConfigurationError, match="refuse_split_view"):
        TrustLimits(refuse_split_view=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "refuses"), [(None, False), ("off", False), ("on", True), ("1", True)])
def test_an_operator_may_turn_it_on(text: str | None, refuses: bool) -> None:
    environ = {"PEERSEAL_SERVICE": "callee", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1"}
    limits = options_in(environ | ({} if text is None else {SWITCH: text}))["limits"]
    assert limits == TrustLimits(refuse_split_view=refuses)


def test_a_switch_that_is_neither_on_nor_off_ends_the_start() -> None:
    environ = {"PEERSEAL_SERVICE": "callee", "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1", SWITCH: "strict"}
    with pytest.raises(ConfigurationError, match=f"{SWITCH}='strict': expected one of 1, true"):
        options_in(environ)


class TestAFullFolder:
    """Of 16 files, more than which are not kept."""

    def fill(self, domain: Domain, content: Callable[[int], bytes]) -> None:
        folder = domain.folder / "split-views"
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        for number in range(MOST_FILES):
            (folder / f"split-view-test.internal-{number}.json").write_bytes(content(number))

    def stolen(self, domain: Domain, number: int) -> Evidence:
        """Evidence that the ledger's present key signed two histories."""
        size, key = len(domain.registry.ledger.entries), domain.registry.ledger.key
        notes = [sign_checkpoint(Checkpoint("test.internal", size, bytes([at, number]) * 16), key) for at in (1, 2)]
        return Evidence("test.internal", (notes[0], notes[1]))

    def test_what_holds_no_evidence_does_not_count(self, domain: Domain) -> None:
        self.fill(domain, lambda _: b"{}")
        self.found(domain).stop()
        assert len(domain.files) == MOST_FILES + 1
        assert not accepts(domain.store(), domain.kid), "a restarted process"

    def test_what_the_root_explains_gives_way(self, domain: Domain) -> None:
        self.fill(domain, lambda number: self.stolen(domain, number).encode())
        domain.registry.roll_ledger_key(keep_old=False)
        domain.other.ledger.key = domain.registry.ledger.key
        self.found(domain).stop()
        assert len(domain.files) == MOST_FILES
        assert not accepts(domain.store(), domain.kid)

    def test_the_newest_is_kept_where_none_is_explained(self, domain: Domain) -> None:
        self.fill(domain, lambda number: self.stolen(domain, number).encode())
        trust = domain.store(LIMITS)
        trust.heard(b64url(domain.other.ledger.checkpoint().encode()), f"test.internal/caller/{b64url(bytes(32))}")
        until(lambda: domain.other.ledger.checkpoint() in self.kept(domain), what="the file")
        assert len(domain.files) == MOST_FILES

    def test_evidence_of_another_domain_neither_counts_nor_gives_way(self, domain: Domain) -> None:
        elsewhere = MemoryRegistry("elsewhere.internal")
        note = elsewhere.ledger.checkpoint()
        self.fill(domain, lambda _: Evidence("elsewhere.internal", (note, note)).encode())
        self.found(domain).stop()
        assert len(domain.files) == MOST_FILES + 1

    def test_one_that_could_not_be_written_refuses_and_is_written_once_it_can_be(
        self, domain: Domain, caplog: pytest.LogCaptureFixture
    ) -> None:
        trust = domain.store()
        assert accepts(trust, domain.kid)
        in_the_way = domain.folder / "split-views"
        in_the_way.write_text("in the way")
        trust.heard(b64url(domain.other.ledger.checkpoint().encode()), f"test.internal/caller/{b64url(bytes(32))}")
        until(lambda: "cannot be written" in caplog.text, what="the alarm")
        assert "split-views: a file, not a folder" in caplog.text, "the cause"
        assert not accepts(trust, domain.kid)
        in_the_way.unlink()
        until(lambda: bool(domain.files), what="the file")
        assert not accepts(domain.store(), domain.kid)

    def test_files_that_cannot_be_read_refuse_all_requests(self, domain: Domain) -> None:
        domain.folder.mkdir(mode=0o700)
        (domain.folder / "split-views").write_text("in the way")
        with pytest.raises(TrustUnavailable, match="whether a split view stands is not known"):
            domain.store().key(domain.kid)
        (domain.folder / "split-views").unlink()
        assert accepts(domain.store(), domain.kid)

    def test_one_more_than_a_process_reports_refuses_too(self, domain: Domain) -> None:
        trust = domain.store()
        assert accepts(trust, domain.kid)
        for number in range(MOST_FILES + 1):
            told = self.stolen(domain, number).notes[0]
            trust.heard(b64url(told.encode()), f"test.internal/caller/{b64url(bytes([number]) * 32)}")
            until(lambda note=told: note in self.kept(domain), what="the file")  # type: ignore[misc]
        domain.registry.roll_ledger_key(keep_old=False)
        domain.other.ledger.key = domain.registry.ledger.key
        trust.reader.load_registry_keys(at_once=True)
        until(lambda: accepts(trust, domain.kid), what="the end")
        grow(domain.registry, caller="us")
        trust.refresh()
        until(lambda: trust.reader.ledger.newest is not None, what="a checkpoint by the new key")
        trust.heard(b64url(domain.other.ledger.checkpoint().encode()), f"test.internal/caller/{b64url(bytes(32))}")
        until(lambda: not accepts(trust, domain.kid), what="the refusal")

    def found(self, domain: Domain) -> TrustStore:
        """A process that has found the split view."""
        trust = domain.store()
        assert accepts(trust, domain.kid)
        trust.heard(b64url(domain.other.ledger.checkpoint().encode()), f"test.internal/caller/{b64url(bytes(32))}")
        until(lambda: not accepts(trust, domain.kid), what="the refusal")
        until(lambda: domain.other.ledger.checkpoint() in self.kept(domain), what="the file")
        return trust

    def kept(self, domain: Domain) -> set[str]:
        """The notes in all files."""
        found = set[str]()
        for file in domain.files:
            with suppress(PeersealError, FileNotFoundError):
                found.update(Evidence.decode(file.read_bytes()).notes)
        return found
