"""Statements about lost entries are found by an index, not by reading the whole ledger."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

oldest_node_revision = "0003"
"""Nodes of the release before neither use the index nor mind it."""

_WHERE = sa.text("type IN ('history_declared')")


def upgrade() -> None:
    """Adds the index."""
    op.create_index("ix_entries_histories", "entries", ["seq"], sqlite_where=_WHERE, postgresql_where=_WHERE)


def lost_by_downgrade(_: sa.Connection) -> Sequence[str]:
    """Nothing: an index repeats what is in the table."""
    return ()


def downgrade() -> None:
    """Removes the index."""
    op.drop_index("ix_entries_histories", table_name="entries")
