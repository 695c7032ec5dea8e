"""Loads a ledger into PostgreSQL as an operator would after a loss: a public copy, and ``peerseal-registry restore``.

A restore has no evidence, which is in no public copy. It is put into the rows afterwards, so that ``verify`` checks
every signature.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from benchmarks.scale.ledger import Size, Written, parts, written
from peerseal.audit.public_files import PublicFiles
from peerseal.protocol.ledger.checkpoint import CHECKPOINT_PATH, TILE_WIDTH, encode_bundle, tile_path
from peerseal.protocol.ledger.merkle import Frontier, leaf_hash
from registry.limits import Limits
from registry.services.registry import Registry
from registry.services.setup.initialise import initialise
from registry.settings import Settings
from registry.storage.engine import create_engine
from registry.storage.queries import ledger
from registry.storage.unit import Store

DOMAIN = "bench.internal"
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command took: seconds, and the most memory of one of its processes in MiB; and what it printed."""

    seconds: float
    memory: float
    printed: str


@dataclass(frozen=True, slots=True)
class Place:
    """The folder and the database of a registry that is initialised."""

    home: Path
    database_url: str

    @classmethod
    def made(cls, home: Path, database_url: str) -> "Place":
        """A new registry, with its first entries."""
        place = cls(home, database_url)
        initialise(place.settings(), Store(create_engine(database_url)), DOMAIN)
        return place

    @property
    def environ(self) -> Mapping[str, str]:
        """The settings of its processes."""
        return {"REGISTRY_HOME": str(self.home), "REGISTRY_DATABASE_URL": self.database_url}

    def settings(self, limits: Limits | None = None) -> Settings:
        """The same for a registry in this process."""
        return Settings.from_environ(dict(self.environ), limits=limits or Limits())

    def connection(self) -> psycopg.Connection:
        """To the database, without SQLAlchemy."""
        url = make_url(self.database_url).set(drivername="postgresql")
        return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)

    def command(self, *arguments: str) -> Ran:
        """Runs ``peerseal-registry`` in a process of its own. Raises RuntimeError where it fails."""
        began = time.monotonic()
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "registry", *arguments],
            env={**os.environ, **self.environ},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"peerseal-registry {arguments[0]} ended with {process.returncode}: {printed[-2000:]}")
        return Ran(time.monotonic() - began, used.ru_maxrss / 1024, printed)

    def megabytes(self) -> float:
        """The size of the database on disk, in MiB."""
        with self.connection() as connection:
            [size] = connection.execute("SELECT pg_database_size(current_database())").fetchone() or [0]
        return float(size) / _MIB


class BundleWriter:
    """The bundles of a ledger in a folder, as a mirror has them, written as the entries come."""

    def __init__(self, folder: Path) -> None:
        self._files = PublicFiles(folder)
        self.edge = Frontier()
        self._waiting: list[bytes] = []

    def add(self, bodies: Sequence[bytes]) -> None:
        """Further entries."""
        for body in bodies:
            self.edge = self.edge.appended(leaf_hash(body))
            self._waiting.append(body)
            if len(self._waiting) == TILE_WIDTH:
                self._write_bundle()

    def finish(self, checkpoint: str) -> None:
        """The last bundle, and the signed checkpoint."""
        if self._waiting:
            self._write_bundle()
        self._files.put(CHECKPOINT_PATH, checkpoint.encode("utf-8"))

    def _write_bundle(self) -> None:
        number, width = (self.edge.size - 1) // TILE_WIDTH, len(self._waiting)
        self._files.put(f"/ledger/{tile_path('entries', number, width)}", encode_bundle(self._waiting))
        self._waiting = []


def copied(place: Place, folder: Path, size: Size) -> Iterator[int]:
    """Writes the copy of a registry that admitted all these as well, and keeps the evidence in a table of its
    database. Yields the number of entries from time to time."""
    registry, copy = Registry(place.settings()), BundleWriter(folder)
    with registry.store.read() as connection:
        copy.add(ledger.read_bodies(connection, 0, ledger.head(connection)))
    made = written(parts(DOMAIN, copy.edge.size, int(time.time()), size), os.cpu_count() or 1)
    with place.connection() as connection:
        connection.execute("CREATE UNLOGGED TABLE made_evidence (seq bigint, evidence bytea)")
        for part in made:
            _keep_evidence(connection, copy.edge.size, part)
            copy.add(part.bodies)
            yield copy.edge.size
    copy.finish(registry.authority.current().checkpoint(copy.edge))
    registry.store.engine.dispose()


def _keep_evidence(connection: psycopg.Connection, size: int, part: Written) -> None:
    rows = ((size + at, one) for at, one in enumerate(part.evidence, 1) if one is not None)
    with connection.cursor().copy("COPY made_evidence FROM STDIN (FORMAT binary)") as copying:
        copying.set_types(["int8", "bytea"])
        for row in rows:
            copying.write_row(row)


def put_evidence_back(place: Place) -> None:
    """Gives the restored entries their evidence, and has PostgreSQL tidy up as it would within minutes."""
    with place.connection() as connection:
        connection.execute(
            "UPDATE entries SET evidence = made.evidence FROM made_evidence AS made WHERE made.seq = entries.seq"
        )
        connection.execute("DROP TABLE made_evidence")
        connection.execute("VACUUM FULL entries")
        connection.execute("VACUUM ANALYZE")
