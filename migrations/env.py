"""What Alembic runs: the migrations that are missing, on a connection that `registry.storage.migrate` holds locked."""

from collections.abc import Collection, Mapping
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from sqlalchemy import inspect

from registry.storage.tables import metadata, schema_revisions


def note_revision(
    ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]
) -> None:
    """Writes down, in the same transaction, which nodes can go on with the revision that was applied."""
    bind, revision = ctx.connection, step.up_revision_id
    if bind is None or revision is None or not inspect(bind).has_table(schema_revisions.name):
        return  # before revision 0004, which makes the table
    if step.is_upgrade:
        script = step.revision_map.get_revision(revision)
        oldest = script.module.oldest_node_revision  # type: ignore[union-attr]
        bind.execute(schema_revisions.insert().values(revision=revision, oldest_node_revision=oldest))
    else:
        bind.execute(schema_revisions.delete().where(schema_revisions.c.revision == revision))


connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run the migrations with: peerseal-registry migrate")

context.configure(
    connection=connection,
    target_metadata=metadata,
    transactional_ddl=True,  # also on SQLite, where each transaction begins explicitly
    transaction_per_migration=True,
    on_version_apply=note_revision,
)
with context.begin_transaction():
    context.run_migrations()
