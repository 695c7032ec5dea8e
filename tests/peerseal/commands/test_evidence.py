"""``peerseal evidence verify``: the evidence of a split view, checked offline."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from peerseal.__main__ import main
from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.history_statement import Head, HistoryStatement, encode_statements, sign_history
from peerseal.protocol.ledger.checkpoint import Checkpoint, ledger_public_key, parse_checkpoint, sign_checkpoint
from peerseal.protocol.ledger.cosignature import LOG_KEY, NoteKey
from peerseal.protocol.ledger.split_view import Evidence, Fork, Sighting
from peerseal.testing import Answer, MemoryRegistry
from tests.peerseal.served import served
from tests.support.two_histories import grow, second_view


class Case:
    """A registry with two histories, and the file that shows them."""

    def __init__(self, folder: Path) -> None:
        self.registry = MemoryRegistry("acme.internal", clock=time.time)
        grow(self.registry, 2)
        self.common = len(self.registry.ledger.entries)
        other = self.other = second_view(self.registry)
        grow(self.registry, 3, caller="one")
        grow(other, 7, caller="two")
        notes = self.registry.ledger.checkpoint(), other.ledger.checkpoint()
        size, larger = len(self.registry.ledger.entries), parse_checkpoint(notes[1])
        seen = Sighting(0, "acme.internal/caller", 1_800_000_000), Sighting(1, "acme.internal/registry", 1_800_000_001)
        keys = sign_document(self.registry.registry_keys(), self.registry.root)
        self.evidence = Evidence("acme.internal", notes, seen, Fork.of(size, larger, other.ledger.node), keys)
        self.file = folder / "evidence.json"
        self.write(self.evidence)

    def write(self, evidence: Evidence) -> None:
        self.file.write_bytes(evidence.encode())

    def declare_lost(self) -> str:
        """The root's statement that the larger of the histories is lost, which the registry serves from now on."""

        def head(view: MemoryRegistry, size: int | None = None) -> Head:
            checkpoint = parse_checkpoint(view.ledger.checkpoint(size))
            return Head(checkpoint.size, checkpoint.root)

        heads = head(self.registry, self.common), head(self.other), head(self.registry)
        jws = sign_history(HistoryStatement("acme.internal", int(time.time()), *heads), self.registry.root)
        self.registry.answers["/v1/history"] = Answer(200, encode_statements([jws]))
        return jws

    @property
    def ledger_key(self) -> str:
        return str(NoteKey.of("acme.internal", LOG_KEY, ledger_public_key(self.registry.ledger.jwk)))

    def verified(self, *options: str) -> int:
        return main(["evidence", "verify", str(self.file), *options])


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_the_pin_or_the_ledgers_key_suffices(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--pin", case.registry.pin], ["--ledger-key", case.ledger_key]):
        assert case.verified(*options) == 0
        told = capsys.readouterr().out
        assert told.startswith("PROVEN (not_extended): at 6 entries the tree of 10 entries has the root ")
        assert "note 0 told by acme.internal/caller at 1800000000 (not signed)" in told


def test_the_pin_may_come_from_the_environment(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERSEAL_REGISTRY_PIN", case.registry.pin)
    assert case.verified() == 0


def test_as_json(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert case.verified("--pin", case.registry.pin, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["proven"], told["code"], told["domain"]) == (True, "not_extended", "acme.internal")
    assert told["seen"][0] == {"note": 0, "from": "acme.internal/caller", "at": 1_800_000_000}


def test_what_is_not_proven_has_another_exit_code(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.write(replace(case.evidence, fork=None))
    assert case.verified("--pin", case.registry.pin) == 1
    assert capsys.readouterr().out.startswith("NOT PROVEN (no_proof): the notes are of 6 and 10 entries")


def test_another_pin_or_key_proves_nothing(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = MemoryRegistry("acme.internal")
    other_key = str(NoteKey.of("acme.internal", LOG_KEY, ledger_public_key(stranger.ledger.jwk)))
    assert case.verified("--pin", stranger.pin) == 1
    assert "document_wrong_root" in capsys.readouterr().out
    assert case.verified("--ledger-key", other_key) == 1
    assert "document_unknown_signer" in capsys.readouterr().out


def test_no_key_at_all_is_wrong_usage(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert case.verified() == 2
    assert "neither --pin nor --ledger-key is given" in capsys.readouterr().err


def test_a_file_that_is_missing_is_named(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.file.unlink()
    assert case.verified("--pin", case.registry.pin) == 2
    assert "evidence.json: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b"[" * 10_000])
def test_a_file_that_is_no_evidence_proves_nothing(
    case: Case, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    case.file.write_bytes(content)
    assert case.verified("--pin", case.registry.pin) == 1
    told = capsys.readouterr().out
    assert told.startswith("NOT PROVEN (document_malformed): ")
    assert told.count("document_malformed") == 1


def test_a_ledger_key_of_another_domain_is_wrong_usage(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    key = str(NoteKey.of("other.internal", LOG_KEY, ledger_public_key(case.registry.ledger.jwk)))
    assert case.verified("--ledger-key", key) == 2
    assert "--ledger-key is of other.internal, the file is of acme.internal" in capsys.readouterr().err


def test_a_ledger_key_that_signed_nothing_is_named_as_the_cause(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = MemoryRegistry("acme.internal")
    assert (
        case.verified("--ledger-key", str(NoteKey.of("acme.internal", LOG_KEY, ledger_public_key(stranger.ledger.jwk))))
        == 1
    )
    assert "--ledger-key" in capsys.readouterr().out


class TestWhatTheVerdictRestsOn:
    """A file may leave out what explains it, or hold an old document of the root, and so accuse an honest registry."""

    @pytest.fixture
    def url(self, case: Case) -> Iterator[str]:
        with served(case.registry) as url:
            yield url

    def told(self, case: Case, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
        """The exit code, and what the command prints, in one line."""
        code = case.verified("--pin", case.registry.pin, *options)
        return code, " ".join(capsys.readouterr().out.split())

    def test_without_the_registry_it_says_what_is_not_known(
        self, case: Case, capsys: pytest.CaptureFixture[str]
    ) -> None:
        case.declare_lost()
        code, told = self.told(case, capsys)
        assert code == 0
        assert "It rests on the ledger's keys as of 20" in told
        assert "version 1, from the file; and on no statements of the root about lost entries in the file." in told
        assert "The registry was not asked: the root may have dropped that key since, or declared" in told
        assert self.told(case, capsys, "--json")[1].count('"registry": null') == 1

    def test_a_statement_that_the_file_leaves_out_counts(
        self, case: Case, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.told(case, capsys, "--registry", url)[0] == 0, "a true split view stays proven"
        statement = case.declare_lost()
        code, told = self.told(case, capsys, "--registry", url)
        assert code == 1
        assert told.startswith("NOT PROVEN (declared_loss)")
        assert "version 1, from the registry;" in told
        assert "on 1 statement of the root about lost entries in the file and in the registry's answer." in told
        case.registry.answers.clear()
        case.write(replace(case.evidence, statements=(statement,)))
        assert self.told(case, capsys, "--registry", url)[0] == 1, "one that the registry serves no longer"
        case.registry.answers["/v1/history"] = Answer(200, encode_statements([statement]))
        assert "on 1 statement of the root" in self.told(case, capsys, "--registry", url)[1], "the same one in both"

    def test_a_key_that_the_root_has_dropped_since_proves_nothing(
        self, case: Case, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old, key = sign_document(case.registry.registry_keys(), case.registry.root), case.ledger_key
        case.registry.roll_ledger_key(keep_old=False)
        assert self.told(case, capsys)[0] == 0
        code, told = self.told(case, capsys, "--registry", url, "--json")
        assert code == 1
        verdict = json.loads(told)
        assert verdict["code"] == "dropped_key"
        assert verdict["rests_on"]["registry_keys"]["from"] == "registry"
        assert verdict["rests_on"]["registry_keys"]["version"] == 2
        assert "its version 2 of" in verdict["detail"]
        assert "dropped_key" in self.told(case, capsys, "--registry", url, "--ledger-key", key)[1]
        assert self.told(case, capsys, "--ledger-key", key)[0] == 0
        case.write(replace(case.evidence, registry_keys=None))
        assert "document_unknown_signer" in self.told(case, capsys, "--registry", url)[1]
        new = sign_document(case.registry.registry_keys(), case.registry.root)
        case.write(replace(case.evidence, registry_keys=new))
        case.registry.answers["/.well-known/peerseal-registry"] = Answer(200, old.encode())
        assert self.told(case, capsys, "--registry", url)[0] == 1, "a registry that shows an older document"

    def test_a_key_that_the_file_does_not_know_yet(
        self, case: Case, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        case.registry.roll_ledger_key()
        first, second = (
            sign_checkpoint(Checkpoint("acme.internal", 9, bytes([at]) * 32), case.registry.ledger.key) for at in (1, 2)
        )
        case.write(replace(case.evidence, notes=(first, second), fork=None))
        assert "document_unknown_signer" in self.told(case, capsys)[1]
        assert self.told(case, capsys, "--registry", url)[0] == 0

    def test_its_answers_may_come_from_files(
        self, case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        keys, history = tmp_path / "keys.jwt", tmp_path / "history.json"
        keys.write_text(sign_document(case.registry.registry_keys(), case.registry.root) + "\n")
        history.write_bytes(b"")
        files = "--registry-files", str(keys), str(history)
        assert self.told(case, capsys, *files)[0] == 0
        history.write_bytes(encode_statements([case.declare_lost()]))
        assert self.told(case, capsys, *files)[0] == 1
        history.write_bytes(b"{")
        assert case.verified("--pin", case.registry.pin, *files) == 2
        assert "--registry-files do not count (document_malformed)" in capsys.readouterr().err
        history.unlink()
        assert case.verified("--pin", case.registry.pin, *files) == 2
        assert "history.json: there is no such file" in capsys.readouterr().err

    def test_a_registry_that_cannot_be_reached_or_of_another_root(
        self, case: Case, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.told(case, capsys, "--registry", "http://127.0.0.1:9")[0] == 3
        with served(MemoryRegistry("acme.internal", clock=time.time)) as other:
            assert case.verified("--pin", case.registry.pin, "--registry", other) == 3
        refused = capsys.readouterr()
        assert "the registry's answer to /.well-known/peerseal-registry does not count" in refused.err
        assert "document_wrong_root" in refused.err
        assert "PROVEN" not in refused.out, "the answer is refused, and not the file"
        with served(case.registry) as url:
            case.registry.answers["/v1/history"] = Answer(503, b"")
            assert self.told(case, capsys, "--registry", url)[0] == 3

    def test_the_registrys_documents_need_the_pin(self, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
        assert case.verified("--ledger-key", case.ledger_key, "--registry", "http://127.0.0.1:9") == 2
        assert "--pin is not given" in capsys.readouterr().err
