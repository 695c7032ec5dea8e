"""The entry that says which foreign trust domains are believed is found by an index, not by reading the whole ledger.

Nodes of the release before go on with it: they neither use the index nor mind it.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

oldest_node_revision = "0003"
"""Nodes of earlier releases read and write the same rows."""

_WHERE = sa.text("type IN ('federation_set')")


def upgrade() -> None:
    """Adds the index."""
    op.create_index("ix_entries_federations", "entries", ["seq"], sqlite_where=_WHERE, postgresql_where=_WHERE)


def lost_by_downgrade(connection: sa.Connection) -> Sequence[str]:
    """What an earlier release does not publish: which foreign trust domains are believed."""
    found = sa.text("SELECT seq FROM entries WHERE type = 'federation_set' ORDER BY seq")
    return [f"the federation in entry {seq}" for seq in connection.execute(found).scalars()]


def downgrade() -> None:
    """Removes the index."""
    op.drop_index("ix_entries_federations", "entries")
