"""docs/how-to/runbooks.md: each command, run in the situation that its runbook is for, prints what the page shows.

A … on the page stands for any characters of a line, a line of nothing else for any lines, and a space for several.
"""

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from demo.processes import BIN, ROOT, Server, environment, free_port
from tests.support.processes import LOOPBACK

pytestmark = [pytest.mark.e2e, pytest.mark.thorough]

PAGE = ROOT / "docs/how-to/runbooks.md"
RUNBOOK = re.compile(r"^## (?P<title>[^\n]+)\n(?P<text>.*?)(?=^## |\Z)", re.M | re.S)
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.M | re.S)
SHOWN = "localhost:8080"
"""Where the page's registry listens."""


class Step:
    """A command of the page and what it prints there."""

    def __init__(self, command: str, output: str) -> None:
        self.command = command
        self.output = output

    def matches(self, printed: str) -> bool:
        """Whether the command printed what the page shows."""
        lines = [re.sub(r"(\\ )+", " +", re.escape(line)).replace("…", ".*") for line in self.output.splitlines()]
        pattern = "".join("(?:.*\n)*?" if line == ".*" else f"{line}\n" for line in lines)
        return re.fullmatch(pattern, printed if not printed or printed.endswith("\n") else f"{printed}\n") is not None


def steps(title: str) -> list[Step]:
    """The commands of a runbook, in order."""
    text = "".join(CONSOLE.findall(runbooks()[title]))
    return [Step(*found) for found in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M)]


def runbooks() -> dict[str, str]:
    """The text of each runbook that has commands, by its title."""
    found = {each["title"]: each["text"] for each in RUNBOOK.finditer(PAGE.read_text())}
    return {title: text for title, text in found.items() if CONSOLE.search(text)}


class Host:
    """A folder with a registry's home and a service's key, as on a host of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.variables: dict[str, str] = {
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "COLUMNS": "200",
            "REGISTRY_HOME": "registry-data",
            "PEERSEAL_SERVICE": "billing",
            "PEERSEAL_REGISTRY_URL": f"http://{LOOPBACK}:{self.port}",
            "PEERSEAL_KEY_DIR": "keys",
            "PEERSEAL_CACHE_DIR": "cache",
        }

    @property
    def database(self) -> Path:
        return self.folder / "registry-data" / "registry.sqlite3"

    def run(self, command: str) -> str:
        """What a command prints, with the page's address of the registry in place of its real one."""
        real = f"{LOOPBACK}:{self.port}"
        shell = ["bash", "-c", command.replace(SHOWN, real)]
        ended = subprocess.run(
            shell,
            cwd=self.folder,
            env=environment(self.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return ended.stdout.replace(real, SHOWN)

    def keep(self, variable: str, command: str) -> str:
        """Gives later commands a variable: the last word that a command prints."""
        self.variables[variable] = self.run(command).split()[-1]
        return self.variables[variable]

    @contextmanager
    def serving(self) -> Iterator[Server]:
        """The registry runs."""
        command = [str(BIN / "peerseal-registry"), "serve", "--port", str(self.port), "--workers", "1"]
        settings = {**self.variables, "REGISTRY_HOME": str(self.folder / "registry-data")}
        url = f"http://{LOOPBACK}:{self.port}"
        with Server("registry", command, url=url, log=self.folder / "log", settings=settings) as server:
            yield server.wait_until_answers(f"{url}/healthz")

    def back_up(self, file: str) -> None:
        """Copies the database, as sqlite3's .backup does."""
        with closing(sqlite3.connect(self.database)) as source, closing(sqlite3.connect(self.folder / file)) as copy:
            source.backup(copy)

    def lose_database(self) -> None:
        for file in self.database.parent.glob("registry.sqlite3*"):
            file.unlink()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with one service, billing, which has joined."""
    host = Host(tmp_path_factory.mktemp("template") / "host")
    host.folder.mkdir()
    host.run("peerseal-registry init --trust-domain acme.internal")
    with host.serving():
        token = host.run("peerseal-registry join-token create billing").strip()
        assert "registered now" in host.run(f"PEERSEAL_JOIN_TOKEN={token} peerseal join")
    return host.folder


Scene = Callable[[Host], None]


def nothing(_host: Host) -> None:
    """The registry runs, and all is well."""


def stolen_key(host: Host) -> None:
    host.keep("KID", "peerseal-registry keys billing --json | grep -o 'acme.internal/billing/[A-Za-z0-9_-]*' | head -1")


def stolen_operator_token(host: Host) -> None:
    token = host.keep("STOLEN", "peerseal-registry operator-token create")
    host.variables["TOKEN_ID"] = token.split(".")[1]
    url = f"http://{LOOPBACK}:{host.port}"
    made = host.run(f"PEERSEAL_OPERATOR_TOKEN={token} peerseal-registry join-token create shop --url {url}")
    host.variables["JOIN_ID"] = made.split(".")[1]


def lost_root_key(host: Host) -> None:
    (host.folder / "registry-data" / "root-key.pem").unlink()


def revoked_key(host: Host) -> None:
    stolen_key(host)
    host.run('peerseal-registry revoke "$KID"')


def old_schema(host: Host) -> None:
    host.run("peerseal-registry migrate --down")


def offline_root_key(host: Host) -> None:
    (host.folder / "safe").mkdir()
    (host.folder / "registry-data" / "root-key.pem").rename(host.folder / "safe" / "root-key.pem")


def lost_entries(host: Host) -> None:
    """The database is a backup that lacks an entry, which a copy has."""
    pin = host.keep("PIN", "peerseal-registry init")
    host.back_up("registry.backup")
    host.run("peerseal-registry join-token create shop")
    host.run(f"peerseal keep-ledger ledger-copy --registry http://{SHOWN} --pin {pin} --once")
    host.run(f"curl -s http://{SHOWN}/ledger/checkpoint > kept")


def lost_database(host: Host) -> None:
    lost_entries(host)
    host.lose_database()


def old_database(host: Host) -> None:
    lost_entries(host)
    host.lose_database()
    host.run("install -m 600 registry.backup registry-data/registry.sqlite3")


SCENES: dict[str, tuple[Scene, bool]] = {
    "A service's key is stolen": (stolen_key, True),
    "An operator's token is stolen": (stolen_operator_token, True),
    "The registry's database is lost": (lost_database, False),
    "The root key is lost": (lost_root_key, True),
    "Every call is answered 401": (revoked_key, True),
    "Every call is answered 503": (old_schema, True),
    "The ledger forked": (old_database, False),
    "The registry is slow": (nothing, True),
    "Upgrade": (nothing, True),
    "Go back to the last release": (nothing, False),
    "A ceremony with the root key": (offline_root_key, True),
}
"""What has happened before each runbook, and whether the registry runs while its commands do."""


def test_every_runbook_has_its_situation() -> None:
    assert list(runbooks()) == list(SCENES)


@pytest.mark.parametrize("title", SCENES)
def test_a_runbook_prints_what_the_page_shows(title: str, template: Path, tmp_path: Path) -> None:
    shutil.copytree(template, tmp_path / "host")
    host, (prepare, runs) = Host(tmp_path / "host"), SCENES[title]
    with host.serving():
        prepare(host)
        if runs:
            follow(host, title)
    if not runs:
        follow(host, title)


def follow(host: Host, title: str) -> None:
    """Runs the commands of the page."""
    for step in steps(title):
        printed = host.run(step.command)
        if os.environ.get("SHOW"):
            print(f"$ {step.command}\n{printed}", end="")
        else:
            assert step.matches(printed), f"$ {step.command}\n{printed}\ninstead of\n{step.output}"
