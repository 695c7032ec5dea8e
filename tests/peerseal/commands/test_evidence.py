"""``peerseal evidence verify``: the evidence of a split view, checked offline."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from peerseal.__main__ import main
from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.ledger.checkpoint import ledger_public_key, parse_checkpoint
from peerseal.protocol.ledger.cosignature import LOG_KEY, NoteKey
from peerseal.protocol.ledger.split_view import Evidence, Fork, Sighting
from peerseal.testing import MemoryRegistry
from tests.support.two_histories import grow, second_view


class Case:
    """A registry with two histories, and the file that shows them."""

    def __init__(self, folder: Path) -> None:
        self.registry = MemoryRegistry("acme.internal")
        grow(self.registry, 2)
        other = second_view(self.registry)
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
    assert "NOT PROVEN (document_malformed)" in capsys.readouterr().out
