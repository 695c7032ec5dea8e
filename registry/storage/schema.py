"""The revision of the database's schema, and whether nodes of this version can serve with it.

A newer schema names the oldest nodes that can work with it (`migrations/env.py`): nodes of the previous release go on
serving during a roll-out.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import ProgrammingError

from registry.domain.errors import SchemaRefused
from registry.storage.connections import GRANT
from registry.storage.engine import POSTGRESQL
from registry.storage.tables import schema_revisions

SCHEMA_REVISION = "0009"
"""The revision that this version needs. A running server does not read the scripts."""
RELEASED_REVISION = "0003"
"""The revision of the last release, whose nodes may run together with this version's. `migrate --down` ends there."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The ``revision`` of the database, None for an empty one, and for a newer revision than this version's the one of
    the oldest nodes that can work with it."""

    revision: str | None
    oldest_node_revision: str | None = None

    @property
    def newer(self) -> bool:
        """Whether a newer version has migrated the database."""
        return self.revision is not None and self.revision > SCHEMA_REVISION

    @property
    def trouble(self) -> str | None:
        """The reason why nodes of this version cannot serve, and the command that helps; None where they can."""
        if self.revision is None:
            return "the database is empty: run peerseal-registry init"
        if self.revision < SCHEMA_REVISION:
            needed = f"this version needs {SCHEMA_REVISION}"
            return f"the schema is at revision {self.revision}, {needed}: run peerseal-registry migrate"
        if self.newer and (self.oldest_node_revision is None or self.oldest_node_revision > SCHEMA_REVISION):
            known = f"this version knows {SCHEMA_REVISION} and cannot go on with that"
            remedy = "start the newer version, or run its peerseal-registry migrate --down"
            return f"the schema is at revision {self.revision}, {known}: {remedy}"
        return None


def read_schema(connection: Connection) -> Schema:
    """The schema of the database. Raises SchemaRefused where this role has no right to read it."""
    schema = Schema(current_revision(connection))
    if schema.revision is None and not _may_see_tables(connection):
        raise SchemaRefused(f"this role may not use the schema public: {GRANT}")
    if not schema.newer:
        return schema
    oldest = select(schema_revisions.c.oldest_node_revision).where(schema_revisions.c.revision == schema.revision)
    try:
        return Schema(schema.revision, connection.execute(oldest).scalar_one_or_none())
    except ProgrammingError as error:
        remedy = "run migrations/roles.sql as the owner"
        raise SchemaRefused(
            f"the schema is a newer version's, and schema_revisions cannot be read: {remedy}"
        ) from error


def _may_see_tables(connection: Connection) -> bool:
    """Whether the role may use the schema: PostgreSQL shows it as empty otherwise."""
    if connection.dialect.name != POSTGRESQL:
        return True
    return connection.execute(_MAY_USE).scalar_one_or_none() is not False


_MAY_USE = text("SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = 'public'")


def current_revision(connection: Connection) -> str | None:
    """The revision of the database; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(select(text("version_num")).select_from(text("alembic_version"))).scalar_one_or_none()
