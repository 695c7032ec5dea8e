"""The documents that the root signed."""

from sqlalchemy import Connection, insert, select

from registry.storage.tables import registry_documents


def newest(connection: Connection) -> str | None:
    """The registry keys document in force, as its JWS; None before the registry was initialised."""
    newest_first = select(registry_documents.c.jws).order_by(registry_documents.c.version.desc())
    return connection.execute(newest_first.limit(1)).scalar_one_or_none()


def add(connection: Connection, version: int, jws: str) -> None:
    """Writes the next version."""
    connection.execute(insert(registry_documents).values(version=version, jws=jws))
