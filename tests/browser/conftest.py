"""A real registry with 2,000 services, and one Chromium for all tests."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from demo.processes import BIN
from peerseal.audit.witness import Witness
from peerseal.audit.witness_server import witnessing
from peerseal.protocol.ledger.checkpoint import ledger_public_key
from peerseal.protocol.ledger.cosignature import LOG_KEY, NoteKey
from registry.services.access.operators import Role
from tests.browser.lying import Lying, lying
from tests.browser.person import Person
from tests.browser.populated import Populated, populated
from tests.registry.driver import DOMAIN
from tests.support.chromium import chromium, need_chromium
from tests.support.root_witnesses import name_witnesses, witness_key
from tests.support.sign_in_issuer import CLIENT, SECRET, SignInIssuer, running_sign_in_issuer
from tests.support.stack import Stack


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, installed in the virtual environment's folder: the checkout stays clean."""
    if shutil.which("npm") is None:
        missing("npm is not here: packages nodejs, npm")
    folder = BIN.parent / "axe"
    shutil.copytree(Path(__file__).parent / "axe", folder, dirs_exist_ok=True)
    file = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not file.exists():
        command = ["npm", "ci", "--ignore-scripts"]
        run = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=200)
        if run.returncode != 0:
            missing(f"npm ci: {(run.stdout + run.stderr)[-1000:]}")
    return file.read_text(encoding="utf-8")


def missing(reason: str) -> NoReturn:
    """Skips a test for want of a tool; in CI, where each is there, fails it."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Populated]:
    """What the registry has."""
    need_chromium()
    found = populated(tmp_path_factory.mktemp("console"))
    yield found
    found.driver.close()


@pytest.fixture(scope="session")
def witnesses(state: Populated, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The setting that names three witnesses. The root needs two of them, and one is down."""
    log = NoteKey.of(DOMAIN, LOG_KEY, ledger_public_key(state.driver.registry.authority.in_force().keys.ledger_key))
    up = [
        Witness(tmp_path_factory.mktemp("witness"), name, [log]) for name in ("a.witness.example", "b.witness.example")
    ]
    name_witnesses(state.driver, *(one.key for one in up), "down.witness.example", needed=2)
    with ExitStack() as running:
        ports = [running.enter_context(witnessing(one, "127.0.0.1:0")) for one in up]
        named = [f"{one.key} http://127.0.0.1:{port}" for one, port in zip(up, ports, strict=True)]
        yield ",".join([*named, f"{witness_key('down.witness.example')} http://127.0.0.1:1"])


@pytest.fixture(scope="session")
def stack(state: Populated, witnesses: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The real registry, with a console."""
    with Stack(tmp_path_factory.mktemp("stack"), database_url=state.driver.url, domain=DOMAIN) as stack:
        stack.registry_settings |= {
            "REGISTRY_HOME": str(state.driver.home),
            "REGISTRY_CONSOLE": "on",
            "REGISTRY_APPLICANTS": "on",
            "REGISTRY_WITNESSES": witnesses,
            "REGISTRY_REFUSALS_PER_MINUTE": "100000",  # tests act as many people from one address
        }
        stack.start_registry(workers=1)
        yield stack


@pytest.fixture(scope="session")
def front(stack: Stack) -> Iterator[Lying]:
    """The address at which the browser sees the registry, honest or not: what a browser keeps is for one address."""
    with lying(stack.registry_url) as server:
        yield server


@pytest.fixture(scope="session")
def chrome(stack: Stack, axe: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """The browser."""
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield Person(browser, stack.registry_url, axe)


@pytest.fixture
def issuer() -> Iterator[SignInIssuer]:
    """An issuer on another site than the console: a browser tells ``localhost`` from ``127.0.0.1``."""
    with running_sign_in_issuer() as issuer:
        issuer.url = issuer.url.replace("127.0.0.1", "localhost")
        yield issuer


@pytest.fixture
def colleague(state: Populated, issuer: SignInIssuer, chrome: Person, axe: str, tmp_path: Path) -> Iterator[Person]:
    """A stranger at another node of the registry, whose operators may sign in at the issuer."""
    with Stack(tmp_path, database_url=state.driver.url, domain=DOMAIN) as stack:
        stack.registry_settings |= {
            "REGISTRY_HOME": str(state.driver.home),
            "REGISTRY_CONSOLE": "on",
            "REGISTRY_CONSOLE_URL": f"{stack.registry_url}/console",
            "REGISTRY_CONSOLE_OIDC_ISSUER": issuer.url,
            "REGISTRY_CONSOLE_OIDC_CLIENT_ID": CLIENT,
            "REGISTRY_CONSOLE_OIDC_CLIENT_SECRET": SECRET,
            "REGISTRY_CONSOLE_OIDC_GROUPS": "sre=operator",
        }
        stack.start_registry(workers=1)
        person = Person(chrome.chrome, stack.registry_url, axe)
        person.forget()
        person.faults()
        yield person
        assert person.faults() == []


@pytest.fixture
def stranger(chrome: Person) -> Iterator[Person]:
    """A person who never signed in. A fault of any page that the test opens fails it."""
    chrome.forget()
    chrome.faults()
    yield chrome
    assert chrome.faults() == []


@pytest.fixture
def signed_in(stranger: Person, state: Populated) -> Callable[[Role], Person]:
    """The same person as an operator with that role."""

    def sign_in(role: Role) -> Person:
        stranger.sign_in(state.tokens[role])
        return stranger

    return sign_in
