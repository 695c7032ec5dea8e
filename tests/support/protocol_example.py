"""The worked example of docs/protocol.md: one key, from the pin of the root key to the root hash of the ledger.

All keys come from seeds and all signatures are deterministic, so that each run gives the same bytes. Print the section:

    python -m tests.support.protocol_example
"""

import hashlib
import json
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import b64url
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger.entries import (
    DOMAIN_SET,
    JOIN_TOKEN_CREATED,
    POLICY_SET,
    REGISTRY_CREATED,
    Admission,
    Entry,
    evidence_digest,
)
from peerseal.protocol.ledger.merkle import leaf_hash, node_hash
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.testing.ledger import MemoryLedger

DOMAIN: Final = "acme.internal"
SERVICE: Final = "billing"
CREATED: Final = 1_800_000_000
SIGNED: Final = CREATED + 3600
WEEK: Final = 7 * 24 * 3600
INDEX: Final = 2


def seed(name: str) -> bytes:
    """32 bytes for a name."""
    return hashlib.sha256(name.encode()).digest()


def key_pair(name: str) -> KeyPair:
    """A P-256 key whose signatures are deterministic (RFC 6979)."""
    private = ec.derive_private_key(int.from_bytes(seed(name), "big"), ec.SECP256R1())

    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(private.sign(message, ec.ECDSA(SHA256(), deterministic_signing=True)))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return KeyPair(PublicKey.of(private.public_key()), sign, private)


@dataclass(frozen=True)
class Example:
    """What a client fetches, and what it computes from that."""

    pin: str
    registry_keys: str
    statement: str
    entry: bytes
    checkpoint: str
    proof: tuple[bytes, ...]
    payload: dict[str, Any]


def made() -> Example:
    """A ledger of five entries, and the statement about the key that the third one admitted."""
    root, signing, billing = (key_pair(name) for name in ("root", "signing", "billing"))
    ledger = MemoryLedger(DOMAIN)
    ledger.key = Ed25519PrivateKey.from_private_bytes(seed("ledger"))
    registry = registry_id(DOMAIN)
    keys = RegistryKeys(
        issuer=registry,
        subject=DOMAIN,
        issued_at=CREATED,
        expires_at=CREATED + 365 * 24 * 3600,
        version=1,
        root=root.public,
        signing_keys=(signing.public,),
        ledger_key=ledger.jwk,
        urls=("https://registry.acme.internal/",),
    )
    registry_keys, pin = sign_document(keys, root), root.public.thumbprint
    by = {"operator": "b2cd7Vt0qGkX"}
    told = {"version": 1, "root": pin, "domain": DOMAIN, "document": registry_keys}
    join = {"id": "5nVq0TzB8uYcJr1w", "expires_at": CREATED + 660, "uses": 1}
    evidence = evidence_digest(b'{"proof":"the proof of possession"}')
    admission = Admission(INDEX, CREATED + 120, CREATED + 120 + WEEK, {"join_token": join["id"]}, evidence)  # type: ignore[dict-item]
    entry = admission.entry(DOMAIN, SERVICE, billing.public)
    policy = {"policy": {"allow": {"acme.internal/orders": ["invoices:read"]}, "restricted": False}}
    for each in (
        Entry(1, CREATED, REGISTRY_CREATED, by={"local": "cli"}, data=told),
        Entry(2, CREATED + 60, JOIN_TOKEN_CREATED, SERVICE, by=by, data=join),
        entry,
        Entry(4, CREATED + 180, POLICY_SET, SERVICE, by=by, data=policy),
        Entry(5, CREATED + 240, DOMAIN_SET, by=by, data={"settings": {"minters": [], "issuers": []}}),
    ):
        ledger.append(each)
    statement = KeyStatement(
        issuer=registry,
        subject=service_id(DOMAIN, SERVICE),
        issued_at=SIGNED,
        expires_at=SIGNED + 24 * 3600,
        seq=4,
        head=5,
        checkpoint=ledger.checkpoint(),
        kid=make_kid(service_id(DOMAIN, SERVICE), billing.public.thumbprint),
        public=billing.public,
        state="active",
        active_until=admission.expires_at,
        revoked_at=None,
        admission=admission,
        proof=ledger.inclusion(INDEX),
    )
    jws = sign_document(statement, signing)
    return Example(pin, registry_keys, jws, entry.encode(), statement.checkpoint, statement.proof, statement.claims())


def section() -> str:
    """The section of the page, in Markdown."""
    example = made()
    leaf = leaf_hash(example.entry)
    return f"""\
The bytes below come from `tests/support/protocol_example.py`, and a test checks every step with them. Long lines are
broken after 100 characters; the line breaks are not part of the values. Hashes are in hex unless stated otherwise.

The pin, which the client has from its configuration:

{block(example.pin)}

The answer to `GET /.well-known/peerseal-registry`. Its signature verifies with the key in the payload's `root`, and the
thumbprint of that key is the pin:

{block(example.registry_keys)}

The answer to `GET /v1/services/billing/keys/{example.payload["kid"].rpartition("/")[2]}.jwt`:

{block(example.statement)}

Its payload. The signature is by the key in `signing_keys` that the header's `kid` names:

{block(json.dumps(example.payload, indent=2, sort_keys=True, ensure_ascii=False), "json")}

Step 2, the entry that admitted the key, {len(example.entry)} bytes:

{block(example.entry.decode())}

Step 3, its leaf hash, SHA-256 of the byte 00 and the entry:

{block(leaf.hex())}

Step 4, with `number` = {INDEX} and `last` = 4:

{table(example, leaf)}

Step 5, the checkpoint. Its third line is the base64 of the last hash above:

{block(example.checkpoint.rstrip(chr(10)))}

Step 6, the signature line is the base64 of 4 bytes of key id and 64 bytes of Ed25519 signature over the first three
lines, each with its line feed. The key id is the beginning of SHA-256 over `acme.internal`, a line feed, the byte 01
and the 32 bytes of `ledger_key`.
"""


def block(text: str, language: str = "text") -> str:
    """A code block; a line of more than 100 characters without a blank is broken."""
    lines = [part for line in text.split("\n") for part in broken(line)]
    return "\n".join([f"```{language}", *lines, "```"])


def broken(line: str) -> list[str]:
    """The line in pieces, if it is one long value."""
    return wrap(line, 100, break_on_hyphens=False) if len(line) > 100 and " " not in line else [line]


def table(example: Example, leaf: bytes) -> str:
    """The steps from the leaf to the root, as RFC 9162 section 2.1.3.2 takes them."""
    rows = ["| `number`, `last` | hash of the proof | where it goes | hash so far |", "|---|---|---|---|"]
    number, last, found = INDEX, 4, leaf
    for part in example.proof:
        left = bool(number & 1) or number == last
        found = node_hash(part, found) if left else node_hash(found, part)
        rows.append(f"| {number}, {last} | `{b64url(part)}` | {'left' if left else 'right'} | `{found.hex()}` |")
        if left:
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        number, last = number >> 1, last >> 1
    return "\n".join(rows)


if __name__ == "__main__":
    print(section(), end="")
