"""What ``peerseal inspect`` says in sentences."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from peerseal.__main__ import main
from peerseal.commands.tokens import KINDS, inspect, lines_of
from peerseal.protocol.documents.federation import FederationDocument
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.ledger.checkpoint import parse_checkpoint
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, NoteKey, cosign
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.protocol.ledger.split_view import Evidence, Fork, Sighting, encode_cp
from peerseal.protocol.tokens.response import RESPONSE_TYP, ResponseToken, request_hash
from peerseal.testing import MemoryRegistry
from tests.support.federation import PARTNER, federation_document
from tests.support.two_histories import grow, second_view
from tests.vectors.test_vectors import protocol_types

WITNESS = Ed25519PrivateKey.from_private_bytes(bytes(32))


@pytest.fixture(scope="module")
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry("acme.internal") as registry:
        grow(registry, 2)
        yield registry


@pytest.fixture(scope="module")
def federated() -> Iterator[MemoryRegistry]:
    """A registry whose federation tests may change."""
    with MemoryRegistry("acme.internal") as registry:
        yield registry


def jws(typ: str, claims: object) -> str:
    return ".".join(
        map(b64url, (canonical_json({"alg": "ES256", "kid": "k", "typ": typ}), canonical_json(claims), b"s"))
    )


def shown(capsys: pytest.CaptureFixture[str], given: str | Path) -> list[str]:
    """What the command prints; its JSON has the same sentences."""
    argument = f"@{given}" if isinstance(given, Path) else given
    assert main(["inspect", argument]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert main(["inspect", "--json", argument]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verified"] is False
    assert lines[0] == f"{told['kind']}, NOT VERIFIED"
    assert "".join("".join(told["words"]).split()) in "".join("".join(lines).split())
    return lines


def answer(**changes: Any) -> dict[str, Any]:
    digest = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
    headers = {"content-type": "application/json"}
    of = request_hash("a.b.c")
    token = ResponseToken("acme.internal/billing", "acme.internal/shop", 1_800_000_000, of, 200, digest, headers)
    return token.claims() | changes


def test_every_type_of_the_protocol_has_a_name() -> None:
    assert protocol_types() <= KINDS.keys()


def test_a_response_token_says_who_answers_whom_and_with_what(
    registry: MemoryRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    cp = encode_cp(registry.ledger.checkpoint(), "acme.internal", [registry.ledger.jwk])
    lines = shown(capsys, jws(RESPONSE_TYP, answer(cp=cp)))
    assert lines[:3] == [
        "response token, NOT VERIFIED",
        "in words",
        "  acme.internal/billing answers acme.internal/shop with the status 200.",
    ]
    assert "  It has the header content-type: application/json" in lines
    assert "It has no content-encoding, content-range, location, etag or last-modified." in " ".join(
        map(str.strip, lines)
    )
    assert any(line.startswith("  The ledger of acme.internal with 3 entries has the root hash") for line in lines)


def test_a_request_token_says_which_checkpoint_its_sender_believes(
    registry: MemoryRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    cp = encode_cp(registry.ledger.checkpoint(), "acme.internal", [registry.ledger.jwk])
    assert "  The sender believes this checkpoint:" in shown(capsys, jws("peerseal-request+jwt", {"cp": cp}))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (PARTNER, "billing, with the scopes [orders:read] that policies and code allow; no transaction crosses."),
        (PARTNER | {"transactions": True}, "transactions and events may cross, with these scopes."),
        (
            {name: PARTNER[name] for name in ("domain", "root", "urls")} | {"transactions": True},
            "all its services, with all scopes that policies and code allow; transactions and events may cross, with "
            "no scope.",
        ),
        (PARTNER | {"services": [], "scopes": []}, "none of its services, with the scopes [] that"),
    ],
)
def test_a_federation_document_says_who_is_believed_and_how_far(
    federated: MemoryRegistry, capsys: pytest.CaptureFixture[str], entry: dict[str, Any], says: str
) -> None:
    lines = shown(capsys, federated.sign(federation_document(federated, entry)))
    assert "  Services of acme.internal believe 1 registry of other trust domains." in lines
    assert "  partner.example at https://registry.partner.example, with the root key" in lines
    assert says in " ".join(map(str.strip, lines))
    assert "  The registry signed it at this checkpoint:" in lines


def test_an_empty_federation_says_so(federated: MemoryRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, federated.sign(federation_document(federated)))
    assert "  Services of acme.internal believe no registry of other trust domains." in lines


@pytest.mark.parametrize(
    ("quorum", "says"),
    [
        ({}, "No witness has to cosign a checkpoint."),
        (
            Quorum.of([str(NoteKey.of("a.example", WITNESS_KEY, WITNESS.public_key()))], 1).members(),
            "Of the witnesses a.example, 1 must have cosigned what a client believes.",
        ),
    ],
)
def test_the_roots_document_says_its_keys_and_its_quorum(
    registry: MemoryRegistry, capsys: pytest.CaptureFixture[str], quorum: dict[str, Any], says: str
) -> None:
    lines = shown(capsys, jws(RegistryKeys.TYP, registry.registry_keys().claims() | quorum))
    assert f"  The pin of the root key is {registry.pin}." in lines
    assert "  1 key signs documents; checkpoints are signed by 1 key of the ledger." in lines
    assert f"  {says}" in lines


def test_a_checkpoint_says_who_signed_it_and_who_cosigned_it(
    registry: MemoryRegistry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    note = registry.ledger.checkpoint()
    text = note.partition("\n\n")[0] + "\n"
    times = (1_800_000_000, 2**63)
    file = tmp_path / "checkpoint"
    file.write_text(note + "".join(f"{cosign(text, f'w{at}', WITNESS, at)}\n" for at in times))
    lines = shown(capsys, file)
    assert lines[2] == "  The ledger of acme.internal with 3 entries has the root hash"
    assert lines[4].startswith("  acme.internal signed it (key id ")
    assert lines[5].startswith("  w1800000000 cosigned it at 2027-01-15 08:00:00Z (key id ")
    assert lines[6].startswith("  w9223372036854775808 cosigned it at 9223372036854775808 seconds after 1970")
    assert main(["inspect", "--json", f"@{file}"]) == 0
    claims = json.loads(capsys.readouterr().out)["claims"]
    assert [claims["origin"], claims["size"]] == ["acme.internal", 3]
    assert [one["time"] for one in claims["signatures"]] == [None, *times]


def test_a_checkpoint_as_an_argument_may_have_lost_its_last_line_feed(registry: MemoryRegistry) -> None:
    assert inspect(registry.ledger.checkpoint().strip()).kind == "checkpoint"


def evidence_of(registry: MemoryRegistry, **changes: Any) -> Evidence:
    other = second_view(registry)
    grow(other, 3)
    notes = registry.ledger.checkpoint(2), other.ledger.checkpoint(5)
    fork = Fork.of(2, parse_checkpoint(notes[1]), other.ledger.node)
    return Evidence("acme.internal", notes, (Sighting(1, "acme.internal/shop", 1_800_000_000),), fork, **changes)


def test_evidence_says_what_both_notes_tell_and_how_to_check_it(
    registry: MemoryRegistry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "split-view.json"
    file.write_bytes(evidence_of(registry).encode())
    lines = shown(capsys, file)
    assert lines[0] == "evidence of a split view, NOT VERIFIED"
    assert lines[2:5] == [
        "  The file says that the ledger of acme.internal has two histories.",
        "  Note 0:",
        "  The ledger of acme.internal with 2 entries has the root hash",
    ]
    assert "  acme.internal/shop told of it at 2027-01-15 08:00:00Z." in lines
    assert lines[-1] == "  To see what it proves: peerseal evidence verify FILE --ledger-key VKEY"
    file.write_bytes(evidence_of(registry, registry_keys="a.b.c", statements=("a.b.c",)).encode())
    lines = shown(capsys, file)
    assert "  The file has 1 statement about lost entries, by the root key." in lines
    assert lines[-1].endswith("--pin PIN")


@pytest.mark.parametrize(
    ("typ", "claims"),
    [
        (RESPONSE_TYP, {"iss": 1}),
        (RESPONSE_TYP, answer(status="200")),
        (FederationDocument.TYP, {"sub": "acme.internal", "domains": [[]]}),
        (FederationDocument.TYP, {"domains": {}}),
        (RegistryKeys.TYP, {"root": []}),
        ("peerseal-request+jwt", {"cp": 1}),
        ("peerseal-domain+jwt", {"checkpoint": ["a"]}),
    ],
)
def test_claims_that_are_not_of_the_kind_are_shown_with_the_reason(
    typ: str, claims: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(capsys, jws(typ, claims))
    assert any(line.startswith("  It cannot be read: ") for line in lines)
    assert "claims" in lines


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_claims_end_in_another_error(federated: MemoryRegistry, data: st.DataObject) -> None:
    document, keys = federation_document(federated, PARTNER), federated.registry_keys()
    good = {RESPONSE_TYP: answer(cp="AAAA"), FederationDocument.TYP: document.claims(), RegistryKeys.TYP: keys.claims()}
    typ = data.draw(st.sampled_from(sorted(good)))
    name = data.draw(st.sampled_from([*good[typ], "witnesses", "quorum", "checkpoint"]))
    found = inspect(jws(typ, good[typ] | {name: data.draw(JSON)}))
    assert max(map(len, lines_of(found, 0))) <= 80


@pytest.mark.parametrize("text", ["{", "{}", '{"domain": 1}', '{"a": ' + "[" * 9000, "a\n1\n— b", "a\n\n— b AAAA"])
def test_what_is_neither_is_refused_with_the_reason(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", text]) == 2
    expected = "this is JSON, and no evidence of a split view: " if text.startswith("{") else "and is none: "
    assert expected in capsys.readouterr().err


def test_what_a_file_says_forges_no_line(capsys: pytest.CaptureFixture[str], registry: MemoryRegistry) -> None:
    evidence = Evidence("a\n  PROVEN\x1b[2J", evidence_of(registry).notes)
    assert main(["inspect", evidence.encode().decode()]) == 0
    told = capsys.readouterr().out
    assert "  The file says that the ledger of a\\n  PROVEN\\x1b[2J has two histories.\n" in told


def test_evidence_is_not_verified_as_a_token_is(
    registry: MemoryRegistry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERSEAL_REGISTRY_URL", "http://127.0.0.1:1")
    assert main(["verify", evidence_of(registry).encode().decode()]) == 2
    assert "is checked by: peerseal evidence verify FILE" in capsys.readouterr().err
