"""The trust store and the ledger: what every document must show of it, and what is remembered of it."""

import errno
import fcntl
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal import TrustLimits, TrustStore
from peerseal.errors import DocumentRefused, FetchError, PeersealError, RevokedKey, TrustUnavailable
from peerseal.protocol.documents.key_set import RETIRED, KeySetDocument, ListedKey
from peerseal.protocol.documents.key_set import RevokedKey as ListedRevokedKey
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import Checkpoint, encode_proof, sign_checkpoint
from peerseal.protocol.names import make_kid
from peerseal.testing import Answer, Clock, MemoryLedger, MemoryRegistry
from peerseal.trust import seen_ledger
from tests.peerseal.served import in_children, served

ROOT = "GET /.well-known/peerseal-registry"
PROOF = "GET /ledger/proof"
CLIENT, OTHER = "/v1/services/client/jwks.jwt", "/v1/services/other/jwks.jwt"
QUIET = TrustLimits(poll_interval=3600.0, refresh_interval=10 * 24 * 3600.0, stranger_fetches=1000.0)


@pytest.fixture
def trust(registry: MemoryRegistry) -> TrustStore:
    return registry.trust_store(limits=QUIET)


def code_of(job: Callable[[], object]) -> str:
    """The code of the DocumentRefused that the job raises, or that its TrustUnavailable comes from."""
    with pytest.raises((DocumentRefused, TrustUnavailable)) as caught:
        job()
    error: BaseException | None = caught.value
    while not isinstance(error, DocumentRefused):
        assert error is not None, caught.value
        error = error.__cause__
    return error.code


def served_set(registry: MemoryRegistry, document: KeySetDocument) -> None:
    """The registry answers with this set about the client from now on."""
    registry.answers[CLIENT] = Answer(200, registry.sign(document).encode())


def rewrite(registry: MemoryRegistry, **other: Any) -> None:
    """The ledger's first entry is another one, and always was; its key signs that as well."""
    before, registry.ledger = registry.ledger, MemoryLedger(registry.domain)
    registry.ledger.key = before.key
    for entry in before.entries:
        registry.ledger.append(replace(entry, **(other or {"time": entry.time - 1})) if entry.seq == 1 else entry)


OWNER = "test.internal/client"


def path_of(kid: str) -> str:
    """The path of the key's statement, which each question fetches."""
    return f"/v1/services/client/keys/{kid.rpartition('/')[2]}.jwt"


def looked_up(trust: TrustStore, kid: str) -> KeyStatement:
    return trust.document(KeyStatement, path_of(kid), OWNER)


def unknown(number: int = 0) -> str:
    return f"test.internal/client/{number:042d}A"


class TestKeysInTheLedger:
    def test_a_key_that_is_in_the_ledger_is_believed_at_no_further_call(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        assert trust.key(kid).kid == kid
        assert registry.calls == {ROOT: 1, f"GET {CLIENT}": 1}

    @staticmethod
    def another_key(key: ListedKey) -> ListedKey:
        public = KeyPair.generate("ES256").public
        return replace(key, public=public, kid=make_kid("test.internal/client", public.thumbprint))

    ALTERED: Mapping[str, Callable[[ListedKey], ListedKey]] = {
        "another key": another_key,
        "another index": lambda key: replace(key, admission=replace(key.admission, index=0)),
        "an index past the end": lambda key: replace(key, admission=replace(key.admission, index=99)),
        "an earlier beginning": lambda key: replace(key, admission=replace(key.admission, active_from=1)),
        "a later end": lambda key: replace(
            key, active_until=key.active_until + 1, admission=replace(key.admission, expires_at=key.active_until + 1)
        ),
        "another right": lambda key: replace(key, admission=replace(key.admission, by={"operator": "somebody"})),
        "other evidence": lambda key: replace(key, admission=replace(key.admission, evidence=None)),
        "no proof": lambda key: replace(key, proof=()),
        "a longer proof": lambda key: replace(key, proof=(*key.proof, bytes(32))),
        "a proof with a bit changed": lambda key: replace(key, proof=(bytes(32), *key.proof[1:])),
        "a window past what was admitted": lambda key: replace(key, active_until=key.active_until + 1),
        "a retired one past what was admitted": lambda key: replace(
            key, state=RETIRED, active_until=key.active_until + 1
        ),
        "a shorter window with no retirement": lambda key: replace(key, active_until=key.active_until - 1),
    }

    @pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
    def test_a_key_that_the_ledger_does_not_hold_like_that_is_refused(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str, alter: Callable[[ListedKey], ListedKey]
    ) -> None:
        document = registry.jwk_set("client")
        served_set(registry, replace(document, keys=(alter(document.keys[0]),)))
        assert code_of(lambda: trust.key(kid)) == "document_not_in_ledger"

    def test_nor_is_a_statement_about_such_a_key_believed(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        statement = registry.statement(kid)
        assert trust.read_statement(registry.sign(statement)) == statement
        edited = replace(statement, admission=replace(statement.admission, active_from=1))
        assert code_of(lambda: trust.read_statement(registry.sign(edited))) == "document_not_in_ledger"

    def test_an_entry_that_nobody_could_have_written_is_malformed(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        statement = registry.statement(kid)
        edited = replace(statement, admission=replace(statement.admission, by={"a": "x" * 70_000}))
        assert code_of(lambda: trust.read_statement(registry.sign(edited))) == "document_malformed"

    def test_a_retired_key_is_in_the_ledger_too(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        clock.advance(10)
        registry.retire(kid)
        assert trust.key(kid).active_until == int(clock.now)


class TestCheckpoints:
    def forged(self, registry: MemoryRegistry, trust: TrustStore, note: str) -> str:
        served_set(registry, replace(registry.jwk_set("client"), checkpoint=note))
        return code_of(lambda: trust.key(unknown()))

    def test_a_checkpoint_by_another_key(self, registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
        head = Checkpoint(registry.domain, 2, bytes(32))
        note = sign_checkpoint(head, Ed25519PrivateKey.generate())
        assert self.forged(registry, trust, note) == "document_unknown_signer"

    def test_a_checkpoint_of_another_ledger(self, registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
        note = sign_checkpoint(Checkpoint("other.internal", 2, bytes(32)), registry.ledger.key)
        assert self.forged(registry, trust, note) == "document_bad_checkpoint"

    def test_a_checkpoint_of_another_size(self, registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
        note = registry.ledger.checkpoint()
        registry.identity("other")
        assert self.forged(registry, trust, note) == "document_malformed"

    def test_a_checkpoint_that_is_none(self, registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
        assert self.forged(registry, trust, "") == "document_bad_checkpoint"

    def test_a_change_after_the_end_of_the_ledger(self, registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
        served_set(registry, replace(registry.jwk_set("client"), seq=3))
        assert code_of(lambda: trust.key(unknown())) == "document_malformed"

    def test_of_another_root_than_its_entries_have(self, registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
        note = sign_checkpoint(Checkpoint(registry.domain, 2, bytes(32)), registry.ledger.key)
        assert self.forged(registry, trust, note) == "document_not_in_ledger"


class TestConsistency:
    def test_a_checkpoint_that_did_not_move_costs_nothing(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        trust.key(kid)
        for _ in range(5):
            trust.refresh()
        assert registry.calls[PROOF] == 0

    def test_one_that_moved_costs_one_proof(self, registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
        trust.key(kid)
        other = registry.identity("other").credentials.key_id
        registry.calls.clear()
        trust.key(other)
        trust.refresh()
        assert registry.calls[PROOF] == 1

    def test_whoever_follows_the_changes_gets_the_proof_along(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        trust.key(kid)
        for name in ("other", "third"):
            later = registry.identity(name).credentials.key_id
            registry.calls.clear()
            trust.refresh()
            trust.key(later)
            trust.refresh()
            assert registry.calls[PROOF] == 0

    @pytest.mark.parametrize("wrong", [(), (bytes(32),), (bytes(32),) * 3])
    def test_a_proof_that_came_along_is_checked_like_any_other(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str, wrong: tuple[bytes, ...]
    ) -> None:
        trust.key(kid)
        for name in ("other", "third", "fourth"):
            registry.identity(name)
        changes = replace(registry.changes(2), proof=wrong)
        registry.answers["/v1/changes"] = Answer(200, registry.sign(changes).encode())
        trust.refresh()
        assert trust.reader.seen() == 2
        del registry.answers["/v1/changes"]
        trust.refresh()
        assert trust.reader.seen() == len(registry.ledger.entries)

    def test_an_older_document_is_of_the_same_history(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        """A key statement that came with a registration may be overtaken on its way."""
        old = registry.sign(registry.statement(kid))
        other = registry.identity("other").credentials.key_id
        trust.key(other)
        assert trust.read_statement(old).kid == kid
        assert trust.read_statement(old).kid == kid
        assert registry.calls[PROOF] == 1

    def test_a_ledger_that_was_rewritten_is_found_out_by_its_size_alone(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        key = trust.key(kid)
        rewrite(registry)
        registry.calls.clear()
        assert code_of(lambda: looked_up(trust, kid)) == "document_inconsistent"
        assert registry.calls[PROOF] == 0
        assert "two histories" in caplog.text
        assert trust.key(kid) is key

    def test_a_ledger_that_was_rewritten_and_grew_has_no_proof(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        rewrite(registry)
        registry.revoke(kid)
        clock.advance(QUIET.cooldown)
        assert code_of(lambda: trust.key(unknown())) == "document_inconsistent"

    def test_a_list_of_changes_from_a_rewritten_ledger_confirms_nothing(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        rewrite(registry)
        registry.identity("other")
        clock.advance(QUIET.offline_limit - 10)
        trust.refresh()
        clock.advance(10)
        registry.answers[CLIENT] = Answer(500, b"")
        with pytest.raises(TrustUnavailable):
            trust.key(kid)

    @pytest.mark.parametrize("answering", [(), ("/v1/changes",), ("/v1/current/0.jwt",)])
    def test_a_shorter_ledger_is_rolled_back_unless_the_registry_says_what_came_after(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str, answering: tuple[str, ...]
    ) -> None:
        before = registry.call("GET", CLIENT)
        trust.key(registry.identity("other").credentials.key_id)
        silent = {"/v1/changes", "/v1/changes/recent.jwt", "/v1/current/0.jwt"} - set(answering)
        registry.answers |= dict.fromkeys(silent, Answer(503, b"")) | {CLIENT: before}
        if answering:
            assert trust.key(kid).kid == kid
        else:
            assert code_of(lambda: trust.key(kid)) == "document_rolled_back"

    def test_what_is_asked_for_names_no_number_of_entries(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        """All clients ask for the same, so that caches may answer."""
        other = registry.identity("other").credentials.key_id
        registry.log.clear()
        trust.key(other)
        trust.key(kid)
        trust.recorded_key(registry.identity("past").rotate().key_id)
        asked = [call.path for call in registry.log if call.path.startswith("/v1") and call.method == "GET"]
        assert not [path for path in asked if "seq=" in path]

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"", "document_malformed"),
            (b"<html>", "document_malformed"),
            (b"[]", "document_malformed"),
            (canonical_json({"from": 2, "to": 3}), "document_malformed"),
            (canonical_json({"from": 2, "to": 3, "proof": ["A"]}), "document_malformed"),
            (canonical_json({"from": 1, "to": 3, "proof": []}), "document_malformed"),
            (canonical_json({"from": 2, "to": 3.0, "proof": []}), "document_malformed"),
            (canonical_json({"from": 2, "to": 3, "proof": encode_proof((bytes(32),) * 65)}), "document_malformed"),
            (canonical_json({"from": 2, "to": 3, "proof": encode_proof((bytes(32),))}), "document_inconsistent"),
            (canonical_json({"from": 2, "to": 3, "proof": []}), "document_inconsistent"),
        ],
    )
    def test_answers_that_are_no_proof(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str, body: bytes, code: str
    ) -> None:
        trust.key(kid)
        other = registry.identity("other").credentials.key_id
        registry.answers["/ledger/proof"] = Answer(200, body)
        assert code_of(lambda: trust.key(other)) == code

    def test_a_proof_that_cannot_be_had_is_waited_for(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        other = registry.identity("other").credentials.key_id
        registry.answers["/ledger/proof"] = Answer(503, b"")
        with pytest.raises(TrustUnavailable) as caught:
            trust.key(other)
        assert isinstance(caught.value.__cause__, FetchError)
        registry.answers.clear()
        clock.advance(QUIET.cooldown)
        assert trust.key(other).kid == other


class TestRevived:
    @pytest.mark.parametrize("listed", [True, False])
    def test_a_revoked_key_never_comes_back(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str, listed: bool
    ) -> None:
        """Nor by way of a document that lists it as neither, which alone would be no news."""
        registry.revoke(kid)
        with pytest.raises(RevokedKey):
            trust.key(kid)
        if not listed:
            clock.advance(QUIET.cooldown)
            served_set(registry, replace(registry.jwk_set("client"), revoked=()))
            with pytest.raises(PeersealError):
                trust.key(unknown())
        registry.found(kid).revoked_at = None
        registry.identity("client")
        registry.answers.clear()
        clock.advance(QUIET.cooldown)
        assert code_of(lambda: trust.key(unknown(1))) == "document_revived_key"
        with pytest.raises(RevokedKey):
            trust.key(kid)


# ---- across restarts


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def started(registry: MemoryRegistry, cache: Path) -> Callable[[], TrustStore]:
    """Another start of the same program, which finds the checkpoint on disk, and no copies of documents."""

    def start() -> TrustStore:
        for copies in cache.glob("documents-*"):
            shutil.rmtree(copies)
        return registry.trust_store(limits=QUIET, cache_dir=cache)

    return start


def kept(cache: Path) -> int:
    """The size of the checkpoint on disk."""
    (file,) = cache.glob("*.checkpoint")
    return int(file.read_text().splitlines()[1])


@contextmanager
def growing(registry: MemoryRegistry) -> Iterator[None]:
    """The ledger grows all the time."""
    done = threading.Event()

    def grow() -> None:
        while not done.wait(0.01):
            registry.set_policy("other", None)

    thread = threading.Thread(target=grow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


Start = Callable[[], TrustStore]


class TestRestart:
    def test_the_newest_checkpoint_is_kept_for_its_owner_alone(
        self, registry: MemoryRegistry, started: Start, cache: Path, kid: str
    ) -> None:
        started().key(kid)
        (file,) = cache.glob("*.checkpoint")
        assert file.name == f"ledger-test.internal-{registry.pin}.checkpoint"
        assert file.read_text() == registry.ledger.checkpoint()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert not list(cache.glob(".ledger-*"))

    def test_a_document_from_before_the_restart_is_rolled_back(
        self, registry: MemoryRegistry, started: Start, clock: Clock, kid: str
    ) -> None:
        before = registry.call("GET", CLIENT)
        registry.revoke(kid)
        with pytest.raises(RevokedKey):
            started().key(kid)
        registry.answers[CLIENT] = before
        assert code_of(lambda: started().key(kid)) == "document_rolled_back"
        assert registry.trust_store(limits=QUIET).key(kid).kid == kid  # as it would be without a memory

    def test_a_ledger_that_was_rewritten_meanwhile_is_found_out(
        self, registry: MemoryRegistry, started: Start, kid: str
    ) -> None:
        started().key(kid)
        rewrite(registry)
        assert code_of(lambda: started().key(kid)) == "document_inconsistent"
        registry.revoke(kid)
        assert code_of(lambda: started().key(kid)) == "document_inconsistent"

    def test_two_clients_that_are_shown_two_histories_find_out_when_they_compare(
        self, registry: MemoryRegistry, started: Start, cache: Path, tmp_path: Path, kid: str
    ) -> None:
        """The second one finds the checkpoint of the first; each sees another history from its first call on."""
        one = started()
        one.key(kid)
        rewrite(registry)
        two = registry.trust_store(limits=QUIET, cache_dir=tmp_path / "other")
        two.key(kid)
        for file in cache.glob("ledger-*"):
            shutil.copy2(file, tmp_path / "other")
        registry.identity("other")
        assert code_of(lambda: looked_up(two, kid)) == "document_inconsistent"
        assert code_of(lambda: looked_up(one, kid)) == "document_inconsistent"

    def test_a_client_that_is_shown_the_others_history_finds_out(self, registry: MemoryRegistry, kid: str) -> None:
        one, two = (registry.trust_store(limits=QUIET) for _ in range(2))
        one.key(kid)
        first = registry.ledger
        rewrite(registry)
        two.key(kid)
        assert code_of(lambda: looked_up(one, kid)) == "document_inconsistent"
        registry.ledger = first
        assert code_of(lambda: looked_up(two, kid)) == "document_inconsistent"

    def test_it_only_ever_moves_to_a_larger_size(
        self, registry: MemoryRegistry, started: Start, cache: Path, kid: str
    ) -> None:
        behind = started()
        behind.key(kid)
        other = registry.identity("other").credentials.key_id
        started().key(other)
        assert kept(cache) == 3
        old = registry.sign(registry.statement(kid))
        registry.identity("third")
        started().key(other)
        behind.read_statement(old)
        assert kept(cache) == 4

    def test_a_restart_costs_no_call_where_nothing_moved(
        self, registry: MemoryRegistry, started: Start, kid: str
    ) -> None:
        started().key(kid)
        registry.calls.clear()
        started().key(kid)
        assert registry.calls == {ROOT: 1, f"GET {CLIENT}": 1}

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda note: "",
            lambda note: note[:-20],
            lambda note: note.replace("\n2\n", "\n9\n"),
            lambda note: "\0" * 100,
            lambda note: "x" * 100_000,
            lambda note: note.replace("test.internal", "other.internal"),
        ],
    )
    def test_a_file_that_does_not_verify_is_ignored_with_a_warning(
        self,
        started: Start,
        cache: Path,
        kid: str,
        spoil: Callable[[str], str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        started().key(kid)
        (file,) = cache.glob("*.checkpoint")
        note = file.read_text()
        file.write_text(spoil(note))
        assert started().key(kid).kid == kid
        assert "is ignored" in caplog.text
        assert file.read_text() == note

    def test_bytes_that_are_no_text_are_ignored_too(self, started: Start, cache: Path, kid: str) -> None:
        started().key(kid)
        (file,) = cache.glob("*.checkpoint")
        file.write_bytes(b"\xff\xfe\x00")
        assert started().key(kid).kid == kid
        assert kept(cache) == 2

    def test_a_full_disk_stops_nothing_and_is_said_once(
        self,
        registry: MemoryRegistry,
        started: Start,
        kid: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        trust = started()
        for _ in range(3):
            assert looked_up(trust, kid).kid == kid
            registry.set_policy("other", None)
        assert caplog.text.count("cannot be written") == 1

    def test_a_folder_of_another_user_is_not_written_to(
        self, started: Start, cache: Path, kid: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder to another user")
        cache.mkdir()
        os.chown(cache, 65534, 65534)
        assert started().key(kid).kid == kid
        assert "cannot be written" in caplog.text
        assert list(cache.iterdir()) == []

    def test_a_process_that_hangs_with_the_lock_holds_up_nobody_for_long(
        self, registry: MemoryRegistry, started: Start, cache: Path, kid: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(seen_ledger, "_LOCK_WAIT", 0.05)
        started().key(kid)
        other = registry.identity("other").credentials.key_id
        (lock,) = cache.glob("*.lock")
        with lock.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert started().key(other).kid == other
        assert kept(cache) == 2

    @pytest.mark.usefixtures("quiet_collector")
    def test_processes_that_share_it_leave_the_largest(
        self, registry: MemoryRegistry, clock: Clock, cache: Path, kid: str
    ) -> None:
        with served(registry) as url:

            def follow(_: int) -> int:
                trust = TrustStore(url, pin=registry.pin, limits=QUIET, clock=clock, cache_dir=cache)
                for _ in range(10):
                    assert looked_up(trust, kid)
                return trust.reader.seen()

            with growing(registry):
                sizes = in_children(4, follow)
        assert kept(cache) == max(sizes) > 2

    def test_an_identity_remembers_in_its_cache_folder_or_else_among_its_keys(
        self, registry: MemoryRegistry, cache: Path, tmp_path: Path
    ) -> None:
        registry.identity("client", cache_dir=cache)
        assert kept(cache) == 2
        registry.identity("other", key_dir=tmp_path / "keys")
        assert kept(tmp_path / "keys" / "other") == 3


# ---- keys of the registry that are rolled over


def issue_registry_keys(registry: MemoryRegistry) -> None:
    """The next version of the root's document, and an entry that tells of it."""
    registry.version += 1
    registry.set_policy("registry", None)


def of_registry(registry: MemoryRegistry, trust: TrustStore) -> tuple[int, int]:
    """How many signing keys and ledger keys the store believes in."""
    keys = trust.reader.registry_keys()
    return len(keys.signing_keys), len(keys.ledger_keys)


class TestRollOver:
    def test_a_change_that_names_the_registry_has_its_keys_looked_at_at_once(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        trust.key(kid)
        announced = KeyPair.generate("ES256").public
        registry.past_signing_keys = (announced,)
        issue_registry_keys(registry)
        registry.calls.clear()
        trust.refresh()
        trust.refresh()
        assert registry.calls[ROOT] == 1
        assert of_registry(registry, trust) == (2, 1)
        assert announced in trust.reader.registry_keys().signing_keys
        assert registry.calls[f"GET {CLIENT}"] == 0

    def test_a_new_signing_key_is_known_by_what_it_signs(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        registry.roll_signing_key(keep_old=True)
        clock.advance(QUIET.cooldown)
        registry.calls.clear()
        trust.refresh()
        assert of_registry(registry, trust) == (2, 1)
        assert registry.calls[f"GET {CLIENT}"] == 0

    def test_a_dropped_signing_key_is_refused_from_then_on(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        stolen = registry.signing_key
        registry.roll_signing_key(keep_old=True)
        clock.advance(QUIET.cooldown)
        trust.refresh()
        registry.drop_past_keys()
        trust.refresh()
        good, registry.signing_key = registry.signing_key, stolen
        registry.answers[path_of(kid)] = Answer(200, registry.sign(registry.statement(kid)).encode())
        registry.signing_key = good
        assert code_of(lambda: looked_up(trust, kid)) == "document_unknown_signer"
        assert trust.key(kid).kid == kid

    def test_what_a_dropped_key_may_have_signed_is_fetched_anew_whatever_it_said(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        """A thief may have called the key revoked, and have said so as of a later entry than any that names it."""
        registry.identity("other")
        honest = registry.jwk_set("client")
        gone = replace(honest, seq=3, keys=(), revoked=(ListedRevokedKey(kid, 1_800_000_000, 1),))
        served_set(registry, gone)
        with pytest.raises(RevokedKey):
            trust.key(kid)
        registry.answers.clear()
        clock.advance(QUIET.cooldown)
        assert code_of(lambda: trust.key(unknown())) == "document_rolled_back"
        registry.roll_signing_key()
        trust.refresh()
        assert trust.key(kid).kid == kid

    def test_a_root_document_that_cannot_be_had_is_asked_for_until_it_can(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        registry.past_signing_keys = (KeyPair.generate("ES256").public,)
        issue_registry_keys(registry)
        registry.answers["/.well-known/peerseal-registry"] = Answer(503, b"")
        trust.refresh()
        assert of_registry(registry, trust) == (1, 1)
        registry.answers.clear()
        clock.advance(QUIET.cooldown)
        trust.refresh()
        assert of_registry(registry, trust) == (2, 1)

    def test_a_new_ledger_key_is_followed(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        clock.advance(QUIET.cooldown)
        old = registry.sign(registry.statement(kid))
        registry.roll_ledger_key()
        trust.refresh()
        assert of_registry(registry, trust) == (1, 2)
        other = registry.identity("other").credentials.key_id
        assert trust.key(other).kid == other
        assert trust.read_statement(old).kid == kid

    def test_a_dropped_ledger_key_is_refused(
        self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
    ) -> None:
        trust.key(kid)
        clock.advance(QUIET.cooldown)
        old = registry.sign(registry.statement(kid))
        registry.roll_ledger_key()
        trust.refresh()
        clock.advance(QUIET.cooldown)
        registry.drop_past_keys()
        trust.refresh()
        assert code_of(lambda: trust.read_statement(old)) == "document_unknown_signer"
        assert looked_up(trust, kid)

    def test_what_is_remembered_outlives_the_key_that_signed_it(
        self, registry: MemoryRegistry, started: Start, cache: Path, kid: str
    ) -> None:
        """The newest checkpoint is kept as the new key signed it, though the ledger did not grow."""
        trust = started()
        trust.key(kid)
        registry.past_ledger_keys = (registry.ledger.jwk,)
        registry.ledger.key = Ed25519PrivateKey.generate()
        registry.version += 1
        trust.reader.load_registry_keys(at_once=True)
        assert looked_up(trust, kid)
        (file,) = cache.glob("*.checkpoint")
        assert file.read_text() == registry.ledger.checkpoint()

    def test_a_checkpoint_of_a_dropped_ledger_key_is_forgotten(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A stolen ledger key signs whatever history a thief likes; it must not stand in the way of the true one."""
        true = registry.ledger
        rewrite(registry)
        for _ in range(5):
            registry.set_policy("other", None)
        trust.key(kid)
        registry.ledger = true
        assert code_of(lambda: looked_up(trust, kid)) == "document_rolled_back"
        registry.roll_ledger_key(keep_old=False)
        trust.reader.load_registry_keys(at_once=True)
        assert looked_up(trust, kid)
        assert "is forgotten" in caplog.text
        assert trust.reader.seen() == len(true.entries)


class TestAnyDocument:
    def test_a_document_of_any_kind_is_read_with_all_checks(
        self, registry: MemoryRegistry, trust: TrustStore, kid: str
    ) -> None:
        path = path_of(kid)
        asked: list[str] = []

        def headers(path: str) -> dict[str, str]:
            asked.append(path)
            return {"X-Asked": path}

        trust.key(kid)
        assert trust.document(KeyStatement, path, OWNER, headers=headers).kid == kid
        assert asked == [f"{path}?seq=2"] == [registry.log[-1].headers["x-asked"]]
        assert code_of(lambda: trust.document(KeyStatement, path, "test.internal/other")) == "document_wrong_subject"
        assert code_of(lambda: trust.document(KeySetDocument, path, OWNER)) == "document_wrong_type"
        with pytest.raises(FetchError) as caught:
            trust.document(KeyStatement, path_of(unknown()), OWNER)
        assert caught.value.http_status == 404

    def test_a_document_has_an_age(self, registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str) -> None:
        path = path_of(kid)
        registry.answers[path] = registry.call("GET", path)
        clock.advance(59)
        assert trust.document(KeyStatement, path, OWNER, max_age=60)
        clock.advance(1)
        assert code_of(lambda: trust.document(KeyStatement, path, OWNER, max_age=60)) == "document_stale"
        assert trust.document(KeyStatement, path, OWNER)
