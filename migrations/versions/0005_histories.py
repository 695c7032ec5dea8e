"""Statements about lost entries are found by an index, not by reading the whole ledger.

Nodes of the release before go on with it: they neither use the index nor mind it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

_WHERE = sa.text("type IN ('history_declared')")


def upgrade() -> None:
    """Adds the index."""
    op.create_index("ix_entries_histories", "entries", ["seq"], sqlite_where=_WHERE, postgresql_where=_WHERE)
