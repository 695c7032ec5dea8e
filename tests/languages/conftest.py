"""Builds each peer once, and runs a registry and one of our own services for it."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest
import requests

import peerseal
from demo.processes import BIN, ROOT, environment
from peerseal.protocol.encoding import b64url_decode
from tests.support.processes import LOOPBACK, Process, Server, free_port
from tests.support.stack import Stack

MADE = ("node_modules", "target")
"""Folders that builds make: they are not copied."""


class Language(NamedTuple):
    """How a peer is built, in a copy of its folder, and run: ``peer`` takes a command, ``vectors`` a folder."""

    programs: Sequence[str]
    build: Sequence[str]
    peer: Callable[[Path], list[str]]
    vectors: Callable[[Path], list[str]]


def _java(folder: Path) -> list[str]:
    return ["java", "-cp", f"{folder}/target/classes:{folder}/target/lib/*", "example.Main"]


LANGUAGES: Mapping[str, Language] = {
    "node": Language(
        ("node", "npm"),
        ("npm", "ci", "--ignore-scripts"),
        lambda folder: ["node", str(folder / "peer.mjs")],
        lambda folder: ["node", str(folder / "vectors.mjs")],
    ),
    "go": Language(
        ("go",),
        ("go", "build", "-buildvcs=false", "-o", "peer", "."),
        lambda folder: [str(folder / "peer")],
        lambda folder: [str(folder / "peer"), "vectors"],
    ),
    "java": Language(
        ("java", "javac", "mvn"),
        ("mvn", "--quiet", "--batch-mode", "compile"),
        _java,
        lambda folder: [*_java(folder), "vectors"],
    ),
}


@dataclass(frozen=True)
class Peer:
    """A built peer, with which a service runs. ``settings`` is the environment of each command."""

    language: str
    folder: Path

    def command(self, *arguments: str) -> list[str]:
        """The command line of the program."""
        return [*LANGUAGES[self.language].peer(self.folder), *arguments]

    def run(self, settings: Mapping[str, str], *arguments: str) -> str:
        """What a command prints."""
        return output_of(self.command(*arguments), settings)

    def run_vectors(self) -> str:
        """What the runner of the vectors prints."""
        return output_of([*LANGUAGES[self.language].vectors(self.folder), str(ROOT / "docs" / "vectors")], {})


def output_of(command: Sequence[str], settings: Mapping[str, str]) -> str:
    run = subprocess.run(command, env=environment_of(settings), capture_output=True, encoding="utf-8", timeout=200)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.strip()


def environment_of(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program with these settings and no other."""
    found = environment(settings)
    return found | {"PATH": f"{found.get('PATH', '')}:/usr/local/go/bin"}


@pytest.fixture(scope="session", params=LANGUAGES)
def peer(request: pytest.FixtureRequest) -> Peer:
    """The peer of one language, built in the virtual environment's folder: the checkout stays clean."""
    name = request.param
    language = LANGUAGES[name]
    path = environment_of({})["PATH"]
    absent = [program for program in language.programs if shutil.which(program, path=path) is None]
    if absent:
        missing(f"not installed: {', '.join(absent)}")
    folder = BIN.parent / "languages" / name
    shutil.copytree(ROOT / "examples" / name, folder, ignore=shutil.ignore_patterns(*MADE), dirs_exist_ok=True)
    built = subprocess.run(
        language.build, cwd=folder, env=environment_of({}), capture_output=True, encoding="utf-8", timeout=200
    )
    if built.returncode != 0:
        missing(f"{' '.join(language.build)}: {(built.stdout + built.stderr)[-1000:]}")
    return Peer(name, folder)


def missing(reason: str) -> NoReturn:
    """Skips a test for want of a tool; in CI, where each is there, fails it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A trust domain whose registry runs."""
    with Stack(tmp_path_factory.mktemp("languages")) as stack:
        stack.start_registry(workers=1)
        yield stack


def settings_of(domain: Stack, service: str, host: str) -> dict[str, str]:
    """The environment of a peer that is to join as that service; ``host`` has keys of its own."""
    return {
        "PEERSEAL_SERVICE": service,
        "PEERSEAL_REGISTRY_URL": domain.registry_url,
        "PEERSEAL_JOIN_TOKEN": domain.join_token(service, uses=10),
        "PEERSEAL_KEY_DIR": str(domain.root / service / host),
    }


@pytest.fixture(scope="session")
def service(peer: Peer, domain: Stack) -> Server:
    """The peer as a service."""
    name = f"callee-{peer.language}"
    return started(peer, domain, name, settings_of(domain, name, "host"))


def started(peer: Peer, domain: Stack, name: str, settings: Mapping[str, str], *asks: str) -> Server:
    """The peer as the service of that name, until the domain stops. ``asks`` is the next service and a URL of it."""
    port = free_port()
    command = peer.command("serve", str(port), *asks)
    url, log = f"http://{LOOPBACK}:{port}", domain.log(f"{peer.language}-{name}")
    server: Server = domain.keep(Server(name, command, url=url, log=log, settings=settings))
    server.wait_until_prints("Listening at")
    return server


@pytest.fixture
def caller(domain: Stack, tmp_path: Path) -> Iterator[peerseal.Identity]:
    """One of our own callers, with a key of its own for each test."""
    joining = domain.join_token("caller")
    identity = peerseal.Identity(
        "caller", registry=domain.registry_url, join_token=joining, key_dir=tmp_path, alg="RS256"
    )
    yield identity.start()
    identity.stop()


@pytest.fixture(scope="session")
def callee(domain: Stack) -> Process:
    """One of our own callees, which lets client-service call."""
    return domain.start_service("resource-service", "tests.support.callee:create_app()", workers=1)


def send(url: str, token: str | None, body: bytes | Iterator[bytes], headers: Mapping[str, str]) -> tuple[int, str]:
    """One plain POST: the status, and the code of a refusal or the text."""
    given = {"Authorization": f"Bearer {token}"} if token else {}
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(url, data=body, headers={**given, **headers}, timeout=60)
    told = answer.json() if "json" in answer.headers.get("Content-Type", "") else {}
    return answer.status_code, told.get("code", answer.text)


def kid_in(token: str) -> str:
    """The kid in a token's header."""
    return str(json.loads(b64url_decode(token.split(".")[0]))["kid"])
