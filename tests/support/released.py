"""The last release: a populated database as its code left it, and its nodes.

`releases/0003.json` holds the rows and key files of a registry on which services joined, rotated, retired and revoked
keys, applied and were approved; with policies, the domain's settings, tokens of both sorts, and a complete tile.
"""

import base64
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, MetaData, Table, text

from demo.processes import ROOT, environment
from registry.storage import migrate as migrating
from registry.storage import schema
from registry.storage.engine import POSTGRESQL, WRITES, create_engine
from registry.storage.schema import RELEASED_REVISION
from tests.support.stack import Stack

DOMAIN = "acme.internal"
"""The trust domain of the populated registry."""
RELEASED_COMMIT = "e3cdd9ec4f017cdc74aa1f235261a7a73d18e0e3"
"""The last release's code, in this repository's history."""
AS_RELEASED = f"from registry.storage import schema; schema.SCHEMA_REVISION = {RELEASED_REVISION!r}"
"""What makes a process take itself for one of the last release: it knows that revision of the schema."""


@contextmanager
def of_revision(revision: str) -> Iterator[pytest.MonkeyPatch]:
    """This process takes itself for one of the release that needs that revision of the schema."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (migrating, schema):
            patch.setattr(module, "SCHEMA_REVISION", revision)
        yield patch


def migrated(url: str, revision: str) -> None:
    """Brings the schema to that revision, as a release of its time did."""
    engine = create_engine(url)
    with of_revision(revision):
        migrating.migrate(engine)
    engine.dispose()


def populate(url: str, home: Path) -> None:
    """Puts the release's rows into the empty database, and its keys into the home."""
    release = json.loads((Path(__file__).parent / "releases" / f"{RELEASED_REVISION}.json").read_text())
    home.mkdir(parents=True, exist_ok=True)
    for name, content in release["files"].items():
        (home / name).touch(mode=0o600)
        (home / name).write_text(content)
    migrated(url, RELEASED_REVISION)
    engine = create_engine(url)
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        for name, table in release["tables"].items():
            _fill(connection, Table(name, MetaData(), autoload_with=connection), table)
        if engine.dialect.name == POSTGRESQL:
            connection.execute(text("SELECT setval('audit_id_seq', max(id)) FROM audit"))
    engine.dispose()


def _fill(connection: Connection, table: Table, content: dict[str, Any]) -> None:
    connection.execute(table.delete())  # the head of an empty ledger
    for row in content["rows"]:
        values = dict(zip(content["columns"], row, strict=True))
        for column in content["bytes"]:
            values[column] = None if values[column] is None else base64.b64decode(values[column])
        connection.execute(table.insert().values(values))


class Release:
    """The last release's commands and nodes, on a stack's database and home."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def operate(self, *arguments: str) -> str:
        """What its ``peerseal-registry ARGUMENTS`` prints."""
        program = f"{AS_RELEASED}; from registry.__main__ import main; main()"
        command = [sys.executable, "-c", program, *arguments]
        env = environment(self._stack.registry_settings)
        return subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, encoding="utf-8").stdout

    def config(self) -> str:
        """What its nodes give gunicorn as their configuration."""
        file = self._stack.root / "as_released.py"
        file.write_text(f"{AS_RELEASED}\nfrom registry.gunicorn_conf import *\n")
        return str(file)


def released_code(folder: Path) -> Path:
    """The last release's own code, unpacked there. Skips the test in a copy without its history."""
    packed = subprocess.run(
        ["git", "archive", RELEASED_COMMIT, "registry", "peerseal", "migrations"], cwd=ROOT, capture_output=True
    )
    if packed.returncode != 0:
        why = f"the history of this checkout does not reach back to {RELEASED_COMMIT}"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder
