"""docs/protocol.md is complete to the member, and its worked example holds.

Every member that the code writes or reads stands in the page's tables. The example is checked with the standard library
and ``cryptography`` alone, by the steps and the bytes on the page.
"""

import base64
import binascii
import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from peerseal.protocol.documents import (
    changes,
    domain,
    federation,
    history_statement,
    key_set,
    policy,
    registry_keys,
    statement,
)
from peerseal.protocol.documents.federation import FederationEntry
from peerseal.protocol.ledger import entries
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.tokens.assertion import AccessTokenClaims, assertion_claims
from peerseal.protocol.tokens.event import EventToken
from peerseal.protocol.tokens.proof import sign_proof
from peerseal.protocol.tokens.request import RequestToken
from peerseal.protocol.tokens.transaction import TransactionToken
from tests.attacks.forge import CALLER, ec_key
from tests.registry.driver import Driver, entries_of
from tests.support import protocol_example
from tests.support.federation import PARTNER

PAGE = (Path(__file__).parent.parent.parent / "docs/protocol.md").read_text()


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def tables(heading: str) -> list[str]:
    return re.findall(r"(?:^ *\|.*\n)+", section(heading), re.MULTILINE)


def members(table: str) -> set[str]:
    """The names in the first column."""
    rows = [line.strip().split("|")[1] for line in table.strip().split("\n")[2:]]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


FRAME, PLACE, KINDS = tables("Signed documents")
IN_FRAME = members(FRAME)
IN_PLACE = members(PLACE)


def test_each_kind_of_document_stands_with_its_type_its_size_and_its_lifetime() -> None:
    kinds: dict[Any, str] = {
        registry_keys.RegistryKeys: "365 days",
        key_set.KeySetDocument: "24 h",
        key_set.KeySetPart: "24 h",
        statement.KeyStatement: "24 h",
        changes.Changes: "60 s",
        policy.PolicyDocument: "24 h",
        domain.DomainDocument: "24 h",
        federation.FederationDocument: "24 h",
        history_statement.HistoryStatement: "for ever",
    }
    for kind, lives in kinds.items():
        size = f"{kind.MAX_SIZE >> 20} MiB" if kind.MAX_SIZE >= 1 << 20 else f"{kind.MAX_SIZE >> 10} KiB"
        rows = [row for row in KINDS.split("\n") if f"`{kind.TYP}`" in row]
        assert len(rows) == 1, kind
        assert rows[0].endswith(f"| {lives} | {size} |")


def in_table_of(heading: str) -> set[str]:
    """The members of a kind: the frame's, the ledger's where the section says so, and its own."""
    place = IN_PLACE if "The members `seq`, `head`, `checkpoint`, and:" in section(heading) else set()
    return IN_FRAME | place | members(tables(heading)[0])


def test_every_member_of_every_document_that_a_registry_signs_stands_in_its_table(registry: Driver) -> None:
    key, gone = ec_key("page"), ec_key("gone")
    registry.joined(key, "billing")
    registry.joined(gone, "billing")
    registry.operator_ends(gone, "billing")
    root = payload(registry.got("/.well-known/peerseal-registry"))
    keys, stated = registry.key_set("billing").claims(), registry.statement("billing", key).claims()
    assert root.keys() | {"witnesses", "quorum"} == in_table_of("Registry keys document")
    assert keys.keys() | {"parts"} == in_table_of("Key set")
    assert keys.keys() | {"part"} == in_table_of("Part of a key set")
    assert stated.keys() == in_table_of("Key statement")
    assert registry.changes(1).claims().keys() == in_table_of("Changes")
    assert payload(registry.got("/v1/services/billing/policy.jwt")).keys() == in_table_of("Policy document")
    optional = {"exchange", "derived_scopes", "access_tokens"}
    assert payload(registry.got("/v1/domain.jwt")).keys() | optional == in_table_of("Domain document")
    assert payload(registry.got("/v1/federation.jwt")).keys() == in_table_of("Federation document")
    _, of_domain, of_entry = map(members, tables("Federation document"))
    assert PARTNER.keys() == of_domain
    assert FederationEntry(0, 0, {}, None, ()).to_json().keys() == of_entry
    _, in_keys, in_revoked = map(members, tables("Key set"))
    assert keys["keys"][0].keys() | {"n", "e"} == in_keys
    assert keys["revoked"][0].keys() == in_revoked


def test_every_member_of_a_history_statement_stands_in_its_table() -> None:
    head = history_statement.Head(1, bytes(32))
    told = history_statement.HistoryStatement("acme.internal", 1, head, head, head).claims()
    assert told.keys() == members(tables("History statement")[0])
    assert set(re.findall(r'`\{"(size)", "(root)"\}`', section("History statement"))) == {tuple(told["new"])}


@pytest.mark.parametrize(
    ("module", "heading"),
    [
        (registry_keys, "Registry keys document"),
        (key_set, "Key set"),
        (statement, "Key statement"),
        (changes, "Changes"),
        (policy, "Policy document"),
        (domain, "Domain document"),
        (federation, "Federation document"),
        (history_statement, "History statement"),
    ],
)
def test_every_member_that_the_code_reads_stands_on_the_page(module: ModuleType, heading: str) -> None:
    source = inspect.getsource(module)
    read = set(re.findall(r'claim\(\w+, "(\w+)"', source)) | set(re.findall(r'\bclaims\["(\w+)"\]', source))
    read |= set(re.findall(r'\bclaims\.get\("(\w+)"', source))
    for names in re.findall(r"at_least\(\w+, \{([^}]*)\}", source):
        read |= set(re.findall(r"\w+", names))
    assert read
    sections = section(heading) + (section("Part of a key set") if module is key_set else "")
    on_the_page = set(re.findall(r"[`\"](\w+)[`\"]", sections))
    assert read - on_the_page - IN_FRAME == set()


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def payload(jws: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(decoded(jws.split(".")[1]))
    return found


REQUEST = RequestToken(CALLER, CALLER, 1, 1, 2, "A" * 22, "GET", "t", "c", tth="A" * 43, ctx={}, cp="AA")
EVENT = EventToken(CALLER, "u", "a", "s", "e", "t", "topic", "0" * 64, 1, 2, "A" * 22, actor=CALLER)
TRANSACTION = TransactionToken(CALLER, "acme.internal", "u", "t", frozenset(), CALLER, 1, 2)
ACCESS = AccessTokenClaims("acme.internal/registry", CALLER, "kafka://b", frozenset("s"), 1, 2, "j")
PROOF = sign_proof(ec_key("page"), issuer=CALLER, audience="acme.internal/registry", now=1)


@pytest.mark.parametrize(
    ("heading", "claims"),
    [
        ("Request token", REQUEST.claims()),
        ("Event token", EVENT.claims()),
        ("Transaction token", TRANSACTION.claims()),
        ("Access token", ACCESS.claims()),
        ("Client assertion", assertion_claims(CALLER, "a", 1) | {"nbf": 1}),
        ("Registration", payload(PROOF)),
    ],
)
def test_every_claim_of_every_token_stands_in_its_table(heading: str, claims: Mapping[str, Any]) -> None:
    assert claims.keys() == members(tables(heading)[0])


def test_every_member_and_every_type_of_an_entry_stands_in_a_table(registry: Driver) -> None:
    in_entry, _, _ = tables("Entries")
    assert json.loads(Entry(1, 1, "any").encode()).keys() == members(in_entry)
    named = {value for name, value in vars(entries).items() if name.isupper() and isinstance(value, str)}
    assert named == members_by_type().keys()


def members_by_type() -> dict[str, set[str]]:
    """The members of ``data``, by type."""
    rows = [row.split(" | ") for row in tables("Entries")[2].strip().split("\n")[2:]]
    return {name: set(re.findall(r"`(\w+)`", row[2])) for row in rows for name in re.findall(r"`(\w+)`", row[0])}


def test_every_entry_that_a_registry_writes_is_as_the_tables_say(registry: Driver) -> None:
    old, new = ec_key("old"), ec_key("new")
    registry.joined(old, "billing")
    registry.rotate(old, new, "billing")
    registry.end(old, "billing", "retired")
    registry.operator_ends(new, "billing")
    first = registry.operator | {"If-Match": '"0"'}
    assert registry.client.put("/v1/services/billing/policy", json={"allow": {}}, headers=first).status_code == 200
    settings = {"minters": ["billing"], "issuers": []}
    assert registry.client.put("/v1/domain", json=settings, headers=first).status_code == 200
    federation = {"domains": [PARTNER]}
    assert registry.client.put("/v1/federation", json=federation, headers=first).status_code == 200
    unused = f"/v1/join-tokens/{registry.join_token('billing').id}"
    assert registry.client.delete(unused, headers=registry.operator).status_code == 204
    made = registry.client.post("/v1/operator-tokens", json={"role": "viewer", "ttl": 60}, headers=registry.operator)
    gone = f"/v1/operator-tokens/{json.loads(made.data)['id']}"
    assert registry.client.delete(gone, headers=registry.operator).status_code == 204
    found = entries_of(registry.store)
    told = members_by_type()
    _, grounds, _ = tables("Entries")
    by = {tuple(sorted(json.loads(re.sub(r": ([a-zA-Z][^,}]*)", r': "\1"', row)))) for row in by_rows(grounds)}
    at_recovery = {"registry_keys_issued", "registry_restored", "history_declared"}
    assert {entry.type for entry in found} == told.keys() - at_recovery
    for entry in found:
        assert entry.data.keys() == told[entry.type], entry.type
        assert tuple(sorted(entry.by)) in by, entry.by


def test_the_answers_that_hold_a_proof_have_the_members_on_the_page(registry: Driver) -> None:
    key = ec_key("proof")
    registry.joined(key, "billing")
    kid = registry.statement("billing", key).kid
    inclusion, consistency = (
        set(re.findall(r'"(\w+)"', row)) for row in re.findall(r"^\| `\?.*` \| `(\{.*?\})`", section("Ledger"), re.M)
    )
    assert json.loads(registry.got(f"/ledger/proof?kid={kid}")).keys() == inclusion
    assert json.loads(registry.got("/ledger/proof?from=1&to=2")).keys() == consistency


def by_rows(table: str) -> list[str]:
    return re.findall(r"^\| `(\{.*?\})` \|", table, re.MULTILINE)


# ---- the worked example


def test_the_worked_example_is_what_its_script_prints() -> None:
    assert section("Worked example").strip() == protocol_example.section().strip()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def thumbprint(jwk: Mapping[str, str]) -> str:
    required = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
    return base64.urlsafe_b64encode(hashlib.sha256(canonical(required)).digest()).decode().rstrip("=")


def signed_payload(jws: str, keys: Mapping[str, Mapping[str, str]], typ: str, now: int) -> dict[str, Any]:
    """Steps 1 to 7 of "Check a document"."""
    signing_input, _, signature = jws.rpartition(".")
    header = json.loads(decoded(signing_input.split(".")[0]))
    assert header.keys() == {"alg", "kid", "typ"}
    assert (header["typ"], header["alg"]) == (typ, "ES256")
    x, y = (int.from_bytes(decoded(keys[header["kid"]][name])) for name in ("x", "y"))
    both = decoded(signature)
    r_and_s = encode_dss_signature(int.from_bytes(both[:32]), int.from_bytes(both[32:]))
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    key.verify(r_and_s, signing_input.encode(), ec.ECDSA(SHA256()))
    claims = payload(jws)
    assert claims["iss"] == f"{claims['sub'].partition('/')[0]}/registry"
    assert claims["iat"] <= now + 30
    assert now < claims["exp"] + 30
    return claims


def root_of(leaf: bytes, index: int, size: int, proof: list[str]) -> bytes:
    """Step 4 of "Check that a key is in the ledger"."""
    number, last, found = index, size - 1, leaf
    assert number <= last
    for part in map(decoded, proof):
        assert last != 0
        if number % 2 == 1 or number == last:
            found = hashlib.sha256(b"\x01" + part + found).digest()
            while number % 2 == 0 and number != 0:
                number, last = number // 2, last // 2
        else:
            found = hashlib.sha256(b"\x01" + found + part).digest()
        number, last = number // 2, last // 2
    assert last == 0
    return found


def check_key(pin: str, registry_keys_jws: str, statement_jws: str, now: int) -> dict[str, Any]:
    """The key that the statement is about, checked as the page says. Raises AssertionError or InvalidSignature."""
    root = payload(registry_keys_jws)["root"]
    assert thumbprint(root) == pin
    kid = f"acme.internal/registry/{pin}"
    keys = signed_payload(registry_keys_jws, {kid: root}, "peerseal-registry+jwt", now)
    signers = {key["kid"]: key for key in keys["signing_keys"]}
    told = signed_payload(statement_jws, signers, "peerseal-key+jwt", now)
    domain, _, service = told["sub"].partition("/")
    assert told["kid"] == f"{told['sub']}/{thumbprint(told['jwk'])}"
    entry = {
        **{"seq": told["index"] + 1, "time": told["active_from"], "type": "key_admitted", "service": service},
        **{name: told[name] for name in ("kid", "by", "evidence")},
        "data": {name: told[name] for name in ("alg", "jwk", "active_from", "expires_at")},
    }
    origin, size, root_hash, empty, line, end = told["checkpoint"].split("\n")
    assert (origin, int(size), empty, end) == (domain, told["head"], "", "")
    assert told["seq"] <= told["head"]
    leaf = hashlib.sha256(b"\x00" + canonical(entry)).digest()
    assert root_of(leaf, told["index"], int(size), told["proof"]) == binascii.a2b_base64(root_hash)
    check_note(f"{origin}\n{size}\n{root_hash}\n", line, domain, decoded(keys["ledger_key"]["x"]))
    assert told["active_until"] == told["expires_at"]
    return told


def check_note(text: str, line: str, domain: str, public: bytes) -> None:
    """Step 6."""
    dash, name, signature = line.split(" ")
    assert (dash, name) == ("—", domain)
    value = binascii.a2b_base64(signature)
    assert value[:4] == hashlib.sha256(domain.encode() + b"\n\x01" + public).digest()[:4]
    Ed25519PublicKey.from_public_bytes(public).verify(value[4:], text.encode())


def on_the_page() -> list[str]:
    """The values in the section, in their order: pin, registry keys, statement, payload, entry, leaf, checkpoint."""
    blocks = re.findall(r"```\w+\n(.*?)\n```", section("Worked example"), re.DOTALL)
    return [block if "  " in block or "—" in block else block.replace("\n", "") for block in blocks]


NOW = protocol_example.SIGNED + 60


def test_a_reader_of_the_page_alone_finds_the_key_in_the_ledger() -> None:
    pin, registry_keys_jws, statement_jws, shown, entry, leaf, checkpoint = on_the_page()
    told = check_key(pin, registry_keys_jws, statement_jws, NOW)
    assert told == json.loads(shown)
    assert hashlib.sha256(b"\x00" + entry.encode()).hexdigest() == leaf
    assert told["checkpoint"] == f"{checkpoint}\n"
    steps = re.findall(r"^\| \d, \d \| `([\w-]+)` \| (left|right) \| `(\w{64})` \|$", section("Worked example"), re.M)
    assert [step[0] for step in steps] == told["proof"]
    found = bytes.fromhex(leaf)
    for part, where, hashed in steps:
        pair = (decoded(part), found) if where == "left" else (found, decoded(part))
        found = hashlib.sha256(b"\x01" + b"".join(pair)).digest()
        assert found.hex() == hashed


@pytest.mark.parametrize("at", [100, 700, 1200, -20])
def test_a_changed_byte_of_the_example_is_refused(at: int) -> None:
    pin, registry_keys_jws, statement_jws, *_ = on_the_page()
    changed = "B" if statement_jws[at] != "B" else "C"
    begin, rest = statement_jws[:at], statement_jws[at:][1:]
    with pytest.raises((AssertionError, InvalidSignature, ValueError, KeyError)):
        check_key(pin, registry_keys_jws, begin + changed + rest, NOW)


@pytest.mark.parametrize("now", [protocol_example.CREATED - 60, NOW + 2 * 24 * 3600])
def test_the_example_is_refused_outside_of_its_time(now: int) -> None:
    pin, registry_keys_jws, statement_jws, *_ = on_the_page()
    with pytest.raises(AssertionError):
        check_key(pin, registry_keys_jws, statement_jws, now)


def test_another_entry_is_not_in_the_ledger_of_the_example() -> None:
    entry, checkpoint = on_the_page()[4:7:2]
    proof = protocol_example.made().payload["proof"]
    root = binascii.a2b_base64(checkpoint.split("\n")[2])
    for body, is_in in ((entry, True), (entry.replace("billing", "invoices"), False)):
        leaf = hashlib.sha256(b"\x00" + body.encode()).digest()
        assert (root_of(leaf, 2, 5, proof) == root) is is_in
