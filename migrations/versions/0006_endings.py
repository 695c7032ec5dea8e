"""The entries that ended one key are found by its kid, and those that ended keys of a service by their numbers.

Before, each document that was signed read every retirement of its service. Nodes of the release before go on with it:
they find the entries of a service by the same index as ever.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

oldest_node_revision = "0003"
"""Nodes of earlier releases read and write the same rows."""

_WHERE = sa.text("type IN ('key_retired', 'key_revoked')")


def upgrade() -> None:
    """Adds two indexes. No index is replaced: that would lock the table against every reader and writer."""
    op.create_index("ix_entries_ended_kids", "entries", ["kid"], sqlite_where=_WHERE, postgresql_where=_WHERE)
    columns = ["service", "seq"]
    op.create_index("ix_entries_numbered_endings", "entries", columns, sqlite_where=_WHERE, postgresql_where=_WHERE)


def lost_by_downgrade(_: sa.Connection) -> Sequence[str]:
    """Nothing: indexes hold no rows of their own."""
    return ()


def downgrade() -> None:
    """Removes both."""
    op.drop_index("ix_entries_numbered_endings", "entries")
    op.drop_index("ix_entries_ended_kids", "entries")
