"""Each revision tells which nodes can go on with it, where nodes of the release before can read it.

Such a node does not have the files of the newer revisions. So `migrations/env.py` writes down what each revision says
of itself, in the transaction that applies it.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

oldest_node_revision = "0003"
"""Nodes of the release before do not use the table that this adds."""


def upgrade() -> None:
    """Adds the table; the row of this revision is written with it."""
    op.create_table(
        "schema_revisions",
        sa.Column("revision", sa.String(20), nullable=False),
        sa.Column("oldest_node_revision", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("revision", name="pk_schema_revisions"),
    )


def lost_by_downgrade(_: sa.Connection) -> Sequence[str]:
    """Nothing: the rows repeat what the files of the migrations say."""
    return ()


def downgrade() -> None:
    """Removes the table."""
    op.drop_table("schema_revisions")
