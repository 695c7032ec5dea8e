"""Sessions of operators in the console, which any node may end.

Nodes of the release before go on with it: they neither read nor write the table.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

oldest_node_revision = "0003"
"""Nodes of earlier releases read and write the same rows."""


def upgrade() -> None:
    """Adds the table."""
    op.create_table(
        "console_sessions",
        sa.Column("id", sa.LargeBinary(32), nullable=False),
        sa.Column("operator", sa.String(32), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_console_sessions"),
    )
    op.create_index("ix_console_sessions_operator", "console_sessions", ["operator"])


def lost_by_downgrade(_: sa.Connection) -> Sequence[str]:
    """Nothing that lasts: operators sign in again."""
    return ()


def downgrade() -> None:
    """Removes the table."""
    op.drop_index("ix_console_sessions_operator", "console_sessions")
    op.drop_table("console_sessions")
