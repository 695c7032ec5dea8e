"""The tree over the entries, policies, applicants and the operators' audit trail.

Until here entries were a table that no client could check: no checkpoint was ever signed. They get the form that
the tree is made over. What they held as evidence (proofs of possession, spent request tokens) moves out of the entry,
which commits to it by digest.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SERVICE = 100
THUMBPRINT = 43
DOCUMENTS = ("registry_created", "registry_keys_issued")
REGISTRY_ITSELF = (  # a service is told of changes of its own; the registry's own documents are now one of these
    "INSERT INTO services (name, seq) SELECT 'registry', max(seq) FROM entries "
    "WHERE type IN ('registry_created', 'registry_keys_issued') HAVING max(seq) IS NOT NULL"
)
ENDINGS = sa.text("type IN ('key_retired', 'key_revoked')")
SETTINGS = sa.text("type IN ('policy_set', 'domain_set')")


def upgrade() -> None:
    """Adds what is new, and makes the tree."""
    op.create_table(
        "tiles",
        sa.Column("level", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
        sa.Column("root", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("level", "number", name="pk_tiles"),
    )
    with op.batch_alter_table("entries") as entries:
        entries.add_column(sa.Column("leaf", sa.LargeBinary(32), nullable=True))
        entries.add_column(sa.Column("evidence", sa.LargeBinary, nullable=True))
    with op.batch_alter_table("ledger_head") as head:
        head.add_column(sa.Column("frontier", sa.LargeBinary, nullable=True))
    _make_tree(op.get_bind())
    op.execute(REGISTRY_ITSELF)
    with op.batch_alter_table("entries") as entries:
        entries.alter_column("leaf", existing_type=sa.LargeBinary(32), nullable=False)
    with op.batch_alter_table("ledger_head") as head:
        head.alter_column("frontier", existing_type=sa.LargeBinary, nullable=False)
    op.create_index("ix_entries_endings", "entries", ["service"], sqlite_where=ENDINGS, postgresql_where=ENDINGS)
    op.create_index("ix_entries_settings", "entries", ["service"], sqlite_where=SETTINGS, postgresql_where=SETTINGS)
    _make_policies()
    _make_waiting()


def _make_policies() -> None:
    op.create_table(
        "policies",
        sa.Column("service", sa.String(SERVICE), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("service", name="pk_policies"),
    )
    op.create_table(
        "domain_settings",
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_domain_settings"),
        sa.CheckConstraint("id = 1", name="ck_domain_settings_one_row"),
    )


def _make_waiting() -> None:
    op.create_table(
        "applicants",
        sa.Column("thumbprint", sa.String(THUMBPRINT), nullable=False),
        sa.Column("service", sa.String(SERVICE), nullable=False),
        sa.Column("proof", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("thumbprint", name="pk_applicants"),
    )
    op.create_index("ix_applicants_service", "applicants", ["service"])
    op.create_index("ix_applicants_expires_at", "applicants", ["expires_at"])
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("act", sa.String(40), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )


# What follows is as the tree was first written, on purpose apart from the code that may change after it.


def _make_tree(connection: sa.Connection) -> None:
    hashes: list[list[bytes]] = [[]]  # by level of the tiles: those that are in no complete tile yet
    frontier: list[bytes] = []
    rows = connection.execute(sa.text("SELECT id, secret_hash FROM operator_tokens"))
    secrets = {token_id: bytes(secret_hash) for token_id, secret_hash in rows}
    put = sa.text("UPDATE entries SET body = :body, leaf = :leaf, evidence = :evidence WHERE seq = :seq")
    for size, (seq, old) in enumerate(_entries(connection)):
        if old["type"] == "operator_created":
            old["data"]["secret_hash"] = _base64url(secrets[old["data"]["id"]])
        body, evidence = _rewritten(old)
        leaf = hashlib.sha256(b"\x00" + body).digest()
        connection.execute(put, {"body": body, "leaf": leaf, "evidence": evidence, "seq": seq})
        _grow(frontier, size, leaf)
        _tile(connection, hashes, leaf)
    connection.execute(sa.text("UPDATE ledger_head SET frontier = :frontier"), {"frontier": b"".join(frontier)})


def _entries(connection: sa.Connection) -> Iterator[tuple[int, dict[str, Any]]]:
    page, after = sa.text("SELECT seq, body FROM entries WHERE seq > :after ORDER BY seq LIMIT 1000"), 0
    while rows := connection.execute(page, {"after": after}).all():
        for seq, body in rows:
            yield seq, json.loads(bytes(body))
        after = rows[-1][0]


def _rewritten(entry: dict[str, Any]) -> tuple[bytes, bytes | None]:
    """The entry's bytes in the new form, and the evidence that it commits to."""
    proof, vouch = entry.pop("proof"), entry["data"].pop("vouch", None)
    evidence = None
    if entry["type"] in DOCUMENTS:
        entry["data"]["document"] = proof
    elif proof is not None:
        named = {"proof": proof, "vouch": vouch} if entry["type"] == "key_admitted" else {"token": proof}
        evidence = _canonical({name: value for name, value in named.items() if value is not None})
    digest = None if evidence is None else hashlib.sha256(evidence).digest()
    entry["evidence"] = None if digest is None else _base64url(digest)
    return _canonical(entry), evidence


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _grow(frontier: list[bytes], size: int, leaf: bytes) -> None:
    frontier.append(leaf)
    while size & 1:
        right = frontier.pop()
        frontier[-1] = _node(frontier[-1], right)
        size >>= 1


def _tile(connection: sa.Connection, hashes: list[list[bytes]], added: bytes) -> None:
    """Writes down every tile that this completes."""
    for level, waiting in enumerate(hashes):
        waiting.append(added)
        if len(waiting) < 256:
            return
        number = connection.execute(sa.text("SELECT count(*) FROM tiles WHERE level = :l"), {"l": level}).scalar_one()
        row, joined = list(waiting), b"".join(waiting)
        while len(row) > 1:
            row = [_node(left, right) for left, right in zip(row[::2], row[1::2], strict=True)]
        put = sa.text("INSERT INTO tiles (level, number, hashes, root) VALUES (:level, :number, :hashes, :root)")
        connection.execute(put, {"level": level, "number": number, "hashes": joined, "root": row[0]})
        waiting.clear()
        added = row[0]
        if level + 1 == len(hashes):
            hashes.append([])
