"""Which operators are people that an OIDC issuer named.

Nodes of the release before go on with it: they neither read nor write the columns.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

oldest_node_revision = "0003"
"""Nodes of earlier releases read and write the same rows."""


def upgrade() -> None:
    """Adds the columns."""
    op.add_column("operator_tokens", sa.Column("person", sa.LargeBinary(32), nullable=True))
    op.add_column("operator_tokens", sa.Column("name", sa.Text(), nullable=True))
    op.create_index("ix_operator_tokens_person", "operator_tokens", ["person"])


def lost_by_downgrade(connection: sa.Connection) -> Sequence[str]:
    """The names of operators who signed in by the issuer. The audit trail has them, too."""
    found = connection.execute(sa.text("SELECT count(*) FROM operator_tokens WHERE person IS NOT NULL")).scalar_one()
    return [f"the names of {found} operators"] if found else ()


def downgrade() -> None:
    """Removes the columns."""
    op.drop_index("ix_operator_tokens_person", "operator_tokens")
    op.drop_column("operator_tokens", "name")
    op.drop_column("operator_tokens", "person")
