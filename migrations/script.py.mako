"""${message}."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None

oldest_node_revision = ${repr(down_revision)}
"""Why nodes of that revision can go on; this revision itself where they cannot."""


def upgrade() -> None:
    """Changes the schema."""
    ${upgrades if upgrades else "raise NotImplementedError"}


def lost_by_downgrade(connection: sa.Connection) -> Sequence[str]:
    """What is in the database that the schema before has no place for, such as "3 rows of table x"."""
    raise NotImplementedError


def downgrade() -> None:
    """Takes the change back."""
    ${downgrades if downgrades else "raise NotImplementedError"}
