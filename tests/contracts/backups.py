"""A database as a dump has it, which comes back; and the public copy of a ledger."""

from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert

from peerseal.protocol.ledger.checkpoint import tile_path
from registry.services.recovery.public_copy import Source
from registry.storage.tables import metadata
from registry.storage.unit import Store
from tests.registry.driver import Driver


class Backup:
    """All rows of all tables, as a dump has them."""

    def __init__(self, store: Store) -> None:
        with store.read() as connection:
            ordered = {table: table.select().order_by(*table.primary_key.columns) for table in all_tables()}
            self.rows = {table: connection.execute(query).mappings().all() for table, query in ordered.items()}

    def come_back(self, store: Store) -> None:
        """In the place of whatever is there."""
        with store.write() as connection:
            for table, rows in self.rows.items():
                connection.execute(delete(table))
                if rows:
                    connection.execute(insert(table), [dict(row) for row in rows])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backup) and self.rows == other.rows


def all_tables() -> list[Any]:
    return list(metadata.tables.values())


def keep(registry: Driver, folder: Path) -> Source:
    """The copy that a mirror has now: the checkpoint, and the bundles up to it."""
    note = registry.got("/ledger/checkpoint")
    size = int(note.split("\n")[1])
    paths = [tile_path("entries", number) for number in range(size // 256)]
    paths += [tile_path("entries", size // 256, size % 256)] if size % 256 else []
    for path in ["checkpoint", *paths]:
        file = folder / "ledger" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(registry.client.get(f"/ledger/{path}").data if path != "checkpoint" else note.encode())
    return Source.of(str(folder))
