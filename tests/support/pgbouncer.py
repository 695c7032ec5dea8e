"""A real PgBouncer in transaction mode, in front of the PostgreSQL of the tests. The program is Debian's."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from demo.processes import LOOPBACK, free_port
from tests.support.postgres import Postgres
from tests.support.restartable import RestartableServer

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
USERS = ("postgres", "peerseal_owner", "peerseal_app")
CONNECTIONS = 4
"""To one database. Round robin hands each transaction of a client another one."""


def need_pgbouncer() -> None:
    """Skips the test where PgBouncer is missing; fails it where CI is set."""
    if PROGRAM is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("PgBouncer is not here: install pgbouncer")


class PgBouncer(RestartableServer):
    """One that hands each transaction, or each of what ``mode`` says, another connection, and knows no startup
    parameters beyond its defaults."""

    def __init__(self, postgres: Postgres, mode: str = "transaction") -> None:
        need_pgbouncer()
        self._mode = mode
        self._port = free_port()
        self._server = postgres.socket_file
        self._folder = Path(tempfile.mkdtemp(prefix="peerseal-pgbouncer-"))
        super().__init__("pgbouncer", self._folder / "pgbouncer.log")

    def start(self) -> None:
        """See RestartableServer. It refuses to run as root, so it runs as the owner of PostgreSQL's socket then."""
        self._folder.chmod(0o755)
        users, configuration = self._folder / "users.txt", self._folder / "pgbouncer.ini"
        users.write_text("".join(f'"{user}" ""\n' for user in USERS))
        configuration.write_text(
            f"[databases]\n* = host={self._server.parent} port=5432\n[pgbouncer]\n"
            f"listen_addr = {LOOPBACK}\nlisten_port = {self._port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\npool_mode = {self._mode}\n"
            f"default_pool_size = {CONNECTIONS}\nserver_round_robin = 1\n"
            "server_idle_timeout = 1\nmax_client_conn = 500\n"
        )
        user = ["-u", self._server.owner()] if os.getuid() == 0 else []
        self._run([str(PROGRAM), *user, str(configuration)])

    def in_front_of(self, url: str) -> str:
        """The URL of the same database through it."""
        direct = make_url(url)
        through = direct.set(host=LOOPBACK, port=self._port).difference_update_query(["host", "port"])
        return through.render_as_string(hide_password=False)

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(host=LOOPBACK, port=self._port, user="postgres", dbname="postgres").close()
            return True
        return False

    def close(self) -> None:
        """See RestartableServer."""
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)
