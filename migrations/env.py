"""What Alembic runs: the migrations that are missing, on a connection that `registry.storage.migrate` holds locked."""

from alembic import context

from registry.storage.tables import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run the migrations with: peerseal-registry migrate")

context.configure(
    connection=connection,
    target_metadata=metadata,
    transactional_ddl=True,  # also on SQLite, where each transaction begins explicitly
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
