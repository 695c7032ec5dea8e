"""PostgreSQL under Patroni: one member on each of three hosts, and etcd, which says who leads.

Patroni is configured as in deploy/patroni.yml, but for the times, which are short. The programs are Debian's. Where
this process is root, PostgreSQL runs as its package's user, whose folders are below ``folder``.
"""

import http.client
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg
import yaml

from demo.processes import ROOT, Process, free_port
from tests.ha.hosts import Host, Network, listens, processes_under

MEMBERS: Final = ("db1", "db2", "db3")
TTL: Final = 8
"""Seconds after which a leader of which nothing is heard has lost its place. Newer Patronis take 20 for less."""
LOOK_EVERY: Final = 0.05
PATIENCE: Final = 90.0
"""Seconds after which something that should have happened did not."""
KEEPS_TO_ITS_LEASE: Final = (3, 0, 3)
"""The first Patroni that, on etcd's API 3, never takes the leader's place back after a pause in which another member
took it. Older ones do, and drop what was acknowledged meanwhile: on them API 2 is used, where they never did."""
_USER: Final = "postgres"
_RECIPE: Final = ROOT / "deploy/patroni.yml"

ASYNCHRONOUS: Final = {"synchronous_mode": False, "synchronous_mode_strict": False}


def until(true: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Come back when it is true. Raises AssertionError after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"not within {patience:.0f} s: {what}"
        time.sleep(LOOK_EVERY)


def postgres_programs() -> Path | None:
    """The folder of the newest PostgreSQL that Debian's packages have installed."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/pg_rewind")]
    return max(folders, key=lambda folder: float(folder.parent.name), default=None)


class Member:
    """One PostgreSQL and its Patroni."""

    def __init__(self, host: Host, folder: Path, log: Path, configuration: dict[str, Any]) -> None:
        self.name = host.name
        self.host = host
        self.port = host.free_port()
        self._log = log
        self._data = folder / "data"
        self._api_port = host.free_port()
        self._configuration_file = folder / "patroni.json"
        self._process: Process | None = None
        folder.mkdir()
        own = {
            "name": self.name,
            "restapi": _listening(host.address, self._api_port),
            "postgresql": configuration["postgresql"]
            | _listening(host.address, self.port)
            | {"data_dir": str(self._data), "pgpass": str(folder / "pgpass")},
        }
        self._configuration_file.write_text(json.dumps(configuration | own))
        self._configuration_file.chmod(0o600)
        for path in (folder, self._configuration_file):
            _give_to_postgres(path)

    def start(self) -> None:
        """Start Patroni, which starts PostgreSQL."""
        command = self.host.command([*_as_postgres(), "patroni", str(self._configuration_file)])
        self._process = Process(self.name, command, log=self._log)

    def kill(self) -> None:
        """End all that runs on its host at once, as a power failure does."""
        self._signal_all(signal.SIGSTOP)  # so that nothing sees another end before it
        self._signal_all(signal.SIGKILL)
        if self._process is not None:
            self._process.kill()

    def kill_postgres(self) -> None:
        """End PostgreSQL only: Patroni notices."""
        for pid in self._postgres():
            _signal(pid, signal.SIGKILL)

    def make_anew(self) -> None:
        """End it, and have it start with a copy of the primary's data."""
        self.kill()
        shutil.rmtree(self._data, ignore_errors=True)
        self.start()

    def freeze(self) -> None:
        """Stop all that runs on its host: the kernel keeps its connections, and nothing is answered."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def cut_off(self) -> None:
        """Let its host vanish from the network."""
        self.host.cut_off()

    def connect(self) -> None:
        """Let its host come back, once its Patroni has found out that it may lead no more: one that is interrupted in
        that (3.0.2) starts PostgreSQL twice."""
        with suppress(AssertionError):
            until((self._data / "standby.signal").exists, f"{self.name} leads no more", patience=20)
            time.sleep(3)
        self.host.connect()

    def api(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and body of a call of Patroni's own. Raises OSError where it does not answer."""
        with closing(http.client.HTTPConnection(self.host.address, self._api_port, timeout=2)) as connection:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")

    def _postgres(self) -> list[int]:
        """All of PostgreSQL's processes: they work in the data folder."""
        places, found = (str(self._data), f"{self._data} (deleted)"), []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile, or is another user's
                if str((process / "cwd").readlink()) in places:
                    found.append(int(process.name))
        return found

    def _signal_all(self, number: signal.Signals) -> None:
        """To all processes, those included that others start meanwhile."""
        done: set[int] = set()
        patroni = [self._process.pid] if self._process else []
        while new := {*processes_under(patroni), *self._postgres()} - done:
            for pid in sorted(new):
                _signal(pid, number)
            done |= new


class Cluster:
    """etcd and three members. As a context manager it is started, and removed at the end."""

    def __init__(self, network: Network, folder: Path, logs: Path) -> None:
        self._folder, self._logs = folder, logs
        self._password = secrets.token_hex(8)
        self._etcd_address, self._etcd_port = network.address, free_port()
        self._etcd_api = "etcd3" if _patroni_version() >= KEEPS_TO_ITS_LEASE else "etcd"
        self._open = ExitStack()
        configuration = self._configuration()
        self.members = [
            Member(network.host(name), folder / name, logs / f"{name}.log", configuration) for name in MEMBERS
        ]

    def __enter__(self) -> Self:
        try:
            self._start_etcd()
            for member in self.members:
                self._open.callback(member.kill)
                member.start()
            self.wait_until_whole()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def url(self, user: str, password: str, database: str) -> str:
        """The database wherever its primary is: every member is named."""
        places = ",".join(f"{member.host.address}:{member.port}" for member in self.members)
        return f"postgresql://{user}:{password}@{places}/{database}?target_session_attrs=read-write"

    def session(self, member: Member, database: str = "postgres") -> psycopg.Connection:
        """To one member, as its administrator. Raises psycopg.OperationalError."""
        return psycopg.connect(
            host=member.host.address,
            port=member.port,
            user=_USER,
            password=self._password,
            dbname=database,
            autocommit=True,
            connect_timeout=2,
        )

    def primary(self) -> Member | None:
        """The member that takes writes and holds the leader's place; None while there is none."""
        return next((member for member in self.members if self._leads(member)), None)

    def promoted(self, before: Member, patience: float = PATIENCE) -> Member:
        """The member that took the place of ``before``, as soon as it takes writes."""
        others = [member for member in self.members if member is not before]
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            for member in others:
                if self._takes_writes(member):
                    return member
            time.sleep(LOOK_EVERY)
        raise AssertionError(f"no other member took the place of {before.name} within {patience:.0f} s")

    def replicate(self, how: dict[str, bool]) -> None:
        """Change how commits are acknowledged, and wait until it is so."""
        primary = self.wait_until_whole()
        status, answer = primary.api("PATCH", "/config", how)
        assert status == 200, answer
        until(lambda: self._waits_for_standby(primary) == how["synchronous_mode"], f"the cluster replicates so: {how}")

    def hold_replication_back(self, primary: Member) -> None:
        """Stop the processes that send the log to the standbys, which nothing notices for some seconds."""
        for (pid,) in self._ask(primary, "SELECT pid FROM pg_stat_replication"):
            _signal(pid, signal.SIGSTOP)

    def rejoin(self, member: Member) -> None:
        """Until the cluster is whole with a member that comes back. Where Patroni does not manage that, the member is
        made again, as operators do."""
        try:
            self.wait_until_whole(patience=30)
        except AssertionError:
            member.make_anew()
            self.wait_until_whole()

    def wait_until_whole(self, patience: float = PATIENCE) -> Member:
        """The primary, once both others follow it, and one synchronously where commits are to wait for one."""

        def whole() -> bool:
            primary = self.primary()
            if primary is None:
                return False
            wanted = primary.api("GET", "/config")[1].get("synchronous_mode", False)
            return len(self._standbys(primary)) == len(MEMBERS) - 1 and self._waits_for_standby(primary) == wanted

        until(lambda: _unless_down(whole), "the cluster is whole", patience)
        primary = self.primary()
        assert primary is not None
        return primary

    def _leads(self, member: Member) -> bool:
        return _unless_down(lambda: member.api("GET", "/primary")[0] == 200)

    def _takes_writes(self, member: Member) -> bool:
        return _unless_down(lambda: self._ask(member, "SELECT NOT pg_is_in_recovery()") == [(True,)])

    def _standbys(self, primary: Member) -> set[str]:
        """Members that follow it, the one that is synchronous marked by a star."""
        asked = """
            SELECT application_name || CASE sync_state WHEN 'sync' THEN '*' ELSE '' END
            FROM pg_stat_replication WHERE state = 'streaming' AND application_name LIKE 'db%'
        """
        return {name for (name,) in self._ask(primary, asked)}

    def _waits_for_standby(self, primary: Member) -> bool:
        """Whether commits wait for a standby, and for one that Patroni would promote."""
        members = primary.api("GET", "/cluster")[1]["members"]
        promotable = {member["name"] + "*" for member in members if member["role"] == "sync_standby"}
        return bool(promotable & self._standbys(primary))

    def _ask(self, member: Member, statement: str) -> list[Any]:
        with self.session(member) as connection:
            return connection.execute(statement.encode()).fetchall()

    def _start_etcd(self) -> None:
        client, peer = (f"http://{self._etcd_address}:{port}" for port in (self._etcd_port, free_port()))
        command = ["etcd", "--name", "etcd", "--data-dir", str(self._folder / "etcd"), "--log-level", "warn"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"etcd={peer}", *(["--enable-v2"] if self._etcd_api == "etcd" else [])]
        self._open.enter_context(Process("etcd", command, log=self._logs / "etcd.log"))
        until(lambda: listens(self._etcd_address, self._etcd_port), "etcd listens")

    def _configuration(self) -> dict[str, Any]:
        """The recipe's, with this cluster's passwords and places, and shorter times."""
        recipe: dict[str, Any] = yaml.safe_load(_RECIPE.read_text())
        recipe[self._etcd_api] = {"hosts": f"{self._etcd_address}:{self._etcd_port}"}
        if self._etcd_api != "etcd3":
            del recipe["etcd3"]
        dcs = recipe["bootstrap"]["dcs"]
        dcs |= {"ttl": TTL, "loop_wait": 1, "retry_timeout": 3, "maximum_lag_on_failover": 2**30}
        dcs["postgresql"]["parameters"] = {"shared_buffers": "32MB", "wal_sender_timeout": "2s"}
        recipe["bootstrap"]["pg_hba"] = [rule.replace("10.0.0.0/24", "all") for rule in recipe["bootstrap"]["pg_hba"]]
        for login in recipe["postgresql"]["authentication"].values():
            login["password"] = self._password
        recipe["postgresql"] |= {"bin_dir": str(postgres_programs()), "parameters": {"unix_socket_directories": ""}}
        return recipe


def _listening(address: str, port: int) -> dict[str, str]:
    return {"listen": f"{address}:{port}", "connect_address": f"{address}:{port}"}


def _as_postgres() -> list[str]:
    """PostgreSQL does not run as root."""
    return ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups", "--"] if os.getuid() == 0 else []


def _give_to_postgres(path: Path) -> None:
    if os.getuid() == 0:
        user = pwd.getpwnam(_USER)
        os.chown(path, user.pw_uid, user.pw_gid)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _unless_down(ask: Callable[[], bool]) -> bool:
    """The answer; False where nothing answers."""
    try:
        return ask()
    except (OSError, http.client.HTTPException, psycopg.Error):
        return False


def _patroni_version() -> tuple[int, ...]:
    printed = subprocess.run(["patroni", "--version"], check=True, capture_output=True, encoding="utf-8").stdout
    return tuple(int(part) for part in printed.split()[-1].split(".")[:3])


def missing_programs() -> Sequence[str]:
    """The Debian packages without which nothing of this runs."""
    needed = {"etcd": "etcd-server", "patroni": "patroni", "haproxy": "haproxy", "setpriv": "util-linux"}
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    lacking = [package for program, package in needed.items() if shutil.which(program, path=path) is None]
    return lacking if postgres_programs() else [*lacking, "postgresql"]
