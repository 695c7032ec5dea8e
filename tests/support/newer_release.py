"""A release of the future: this code with one more migration, which it applies to a database and takes back."""

import shutil
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine

from registry.storage import migrate as migrating
from registry.storage import schema
from registry.storage.engine import create_engine
from tests.support.released import of_revision

THIS = schema.SCHEMA_REVISION
NEXT = f"{int(THIS) + 1:04}"
AFTER_NEXT = f"{int(THIS) + 2:04}"

MIGRATION = '''"""Adds a table."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"
oldest_node_revision = "{oldest}"


def upgrade():
    op.create_table("things_{revision}", sa.Column("id", sa.Integer, primary_key=True))


def lost_by_downgrade(connection):
    count = connection.scalar(sa.text("SELECT count(*) FROM things_{revision}"))
    return [f"{{count}} rows of things_{revision}"] if count else []


def downgrade():
    op.drop_table("things_{revision}")
'''


class NewerRelease:
    """Its revisions go on from this version's. ``oldest`` are the oldest nodes that can go on with each: revision →
    revision."""

    def __init__(self, folder: Path, oldest: dict[str, str]) -> None:
        self._scripts = folder / "migrations"
        shutil.copytree(migrating.scripts(), self._scripts, ignore=shutil.ignore_patterns("__pycache__"))
        before = THIS
        for revision, oldest_node in oldest.items():
            text = MIGRATION.format(revision=revision, before=before, oldest=oldest_node)
            (self._scripts / "versions" / f"{revision}_next.py").write_text(text)
            before = revision
        self._revision = before

    def migrate(self, url: str) -> str:
        return self._done(url, migrating.migrate)

    def migrate_down(self, url: str) -> str:
        return self._done(url, migrating.migrate_down)

    def _done(self, url: str, migration: Callable[[Engine], str]) -> str:
        engine = create_engine(url)
        with of_revision(self._revision) as patch:
            patch.setattr(migrating, "scripts", lambda: self._scripts)
            patch.setattr(migrating, "RELEASED_REVISION", THIS)
            try:
                return migration(engine)
            finally:
                engine.dispose()
