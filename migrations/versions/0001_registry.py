"""The registry's first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SERVICE = 100
THUMBPRINT = 43
TOKEN_ID = 32


def upgrade() -> None:
    """Makes all tables; the ledger begins empty."""
    _make_ledger()
    _make_keys()
    _make_tokens()
    op.create_table(
        "registry_documents",
        sa.Column("version", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("jws", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_registry_documents"),
    )


def _make_ledger() -> None:
    op.create_table(
        "entries",
        sa.Column("seq", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("service", sa.String(SERVICE)),
        sa.Column("kid", sa.Text),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_entries"),
    )
    head = op.create_table(
        "ledger_head",
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_head"),
        sa.CheckConstraint("id = 1", name="ck_ledger_head_one_row"),
    )
    op.bulk_insert(head, [{"id": 1, "size": 0}])


def _make_keys() -> None:
    op.create_table(
        "services",
        sa.Column("name", sa.String(SERVICE), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_services"),
    )
    op.create_index("ix_services_seq", "services", ["seq"])
    op.create_table(
        "keys",
        sa.Column("thumbprint", sa.String(THUMBPRINT), nullable=False),
        sa.Column("service", sa.String(SERVICE), nullable=False),
        sa.Column("spki", sa.LargeBinary, nullable=False),
        sa.Column("admitted_seq", sa.BigInteger, nullable=False),
        sa.Column("admitted_by", sa.Text, nullable=False),
        sa.Column("vouched_by", sa.String(THUMBPRINT)),
        sa.Column("active_from", sa.BigInteger, nullable=False),
        sa.Column("active_until", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("revoked_seq", sa.BigInteger),
        sa.PrimaryKeyConstraint("thumbprint", name="pk_keys"),
    )
    op.create_index("ix_keys_vouched_by", "keys", ["vouched_by"])
    op.create_index("ix_keys_service_expires_at", "keys", ["service", "expires_at"])
    op.create_index("ix_keys_service_admitted_seq", "keys", ["service", "admitted_seq"])


def _make_tokens() -> None:
    op.create_table(
        "join_tokens",
        sa.Column("id", sa.String(TOKEN_ID), nullable=False),
        sa.Column("service", sa.String(SERVICE), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("uses", sa.BigInteger, nullable=False),
        sa.Column("used", sa.BigInteger, nullable=False),
        sa.Column("withdrawn", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_join_tokens"),
        sa.CheckConstraint("used <= uses", name="ck_join_tokens_not_overspent"),
    )
    op.create_index("ix_join_tokens_service", "join_tokens", ["service"])
    op.create_table(
        "operator_tokens",
        sa.Column("id", sa.String(TOKEN_ID), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary, nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("revoked", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_operator_tokens"),
    )
    op.create_table(
        "used_tokens",
        sa.Column("token", sa.LargeBinary(32), nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("token", name="pk_used_tokens"),
    )
    op.create_index("ix_used_tokens_until", "used_tokens", ["until"])
