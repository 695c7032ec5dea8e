"""PostgreSQL tells of every commit that lets the ledger grow: peers that wait for a change are answered at once.

Every write of the head fires the trigger, also one by a node of the last release or by a command. The payload is empty,
so PostgreSQL folds what one transaction says several times into one. SQLite has no such thing: the head is polled.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

FUNCTION = """
CREATE FUNCTION peerseal_tell_of_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.pg_notify('peerseal_ledger', '');
    RETURN NULL;
END $$
"""
TRIGGER = """
CREATE TRIGGER tell_of_ledger AFTER UPDATE ON ledger_head
FOR EACH STATEMENT EXECUTE FUNCTION peerseal_tell_of_ledger()
"""


def upgrade() -> None:
    """Adds the trigger, on PostgreSQL."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(FUNCTION)
        op.execute(TRIGGER)
