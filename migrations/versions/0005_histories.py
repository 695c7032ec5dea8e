"""Statements about lost entries are found by an index, not by reading the whole ledger.

Nodes of the release before go on with it: they neither use the index nor mind it.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

oldest_node_revision = "0003"
"""Nodes of earlier releases read and write the same rows."""

_WHERE = sa.text("type IN ('history_declared')")


def upgrade() -> None:
    """Adds the index."""
    op.create_index("ix_entries_histories", "entries", ["seq"], sqlite_where=_WHERE, postgresql_where=_WHERE)


def lost_by_downgrade(connection: sa.Connection) -> Sequence[str]:
    """Statements of the root, which an earlier release does not publish: clients that wait for one stay away."""
    found = sa.text("SELECT seq FROM entries WHERE type = 'history_declared' ORDER BY seq")
    return [f"the statement about lost entries in entry {seq}" for seq in connection.execute(found).scalars()]


def downgrade() -> None:
    """Removes the index."""
    op.drop_index("ix_entries_histories", "entries")
