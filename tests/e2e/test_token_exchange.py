"""A program with nothing but curl or HTTPie, and `peerseal assertion`, exchanges a user's token for an event token: by
the very lines of the docs."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

import peerseal
from demo.processes import BIN, LOOPBACK, ROOT, Server, environment, free_port
from peerseal.protocol.encoding import b64url_decode
from tests.support.issuer import ask_for_token
from tests.support.stack import DOMAIN, Stack

pytestmark = pytest.mark.e2e

AUDIENCE, SCOPE = "jobs.example.com", "trigger_invoicing"
PAYLOAD = b'{"eventID": "e-1"}'
PAGE = ROOT / "docs/how-to/token-exchange.md"
LINES = {text.split()[0]: text for text in re.findall(r"```sh\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)}
"""By program: what the docs say to type."""


@pytest.fixture
def issuer(stack: Stack) -> str:
    """The URL of an OIDC issuer in a process of its own."""
    url = f"http://{LOOPBACK}:{free_port()}"
    command = [sys.executable, "-m", "tests.support.issuer", url.rpartition(":")[2]]
    server = Server("issuer", command, url=url, log=stack.log("issuer"), settings={})
    stack.keep(server).wait_until_answers(url + "/fetched")
    return url


@pytest.fixture
def legacy(stack: Stack, issuer: str) -> dict[str, str]:
    """The environment of a service that may exchange, at a registry that runs."""
    stack.start_registry()
    file = stack.root / "domain.json"
    granted = {"legacy": {AUDIENCE: [SCOPE]}}
    settings = {"minters": [], "issuers": [{"issuer": issuer, "audience": "edge"}], "exchange": granted}
    file.write_text(json.dumps(settings))
    stack.operate("domain", "set", str(file))
    return stack.service_settings("legacy")


@pytest.fixture
def consumers(legacy: dict[str, str], stack: Stack) -> Iterator[peerseal.EventVerifier]:
    """What verifies events in another service."""
    consumer = peerseal.Identity.from_env(stack.service_settings("invoicing")).start()
    allow = {"legacy": {SCOPE}, "registry": {SCOPE}}
    yield peerseal.EventVerifier(consumer.trust, audience=AUDIENCE, allow=allow, max_age=timedelta(days=7))
    consumer.stop()


def typed(text: str, folder: Path, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What the lines do in a shell, with the event in ``payload.json``."""
    (folder / "payload.json").write_bytes(PAYLOAD)
    found = environment(settings)
    found["PATH"] = f"{BIN}:{found['PATH']}"
    shell = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(shell, cwd=folder, env=found, capture_output=True, encoding="utf-8", timeout=60)


def command(settings: Mapping[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """``peerseal assertion``."""
    program = [str(BIN / "peerseal"), "assertion", *options]
    return subprocess.run(program, env=environment(settings), capture_output=True, encoding="utf-8", timeout=60)


def kid_of(assertion: str) -> str:
    kid: str = json.loads(b64url_decode(assertion.partition(".")[0]))["kid"]
    return kid


@pytest.mark.parametrize("program", LINES)
def test_the_lines_of_the_docs_exchange_a_users_token(
    program: str, legacy: dict[str, str], issuer: str, consumers: peerseal.EventVerifier, tmp_path: Path
) -> None:
    if program == "curl" and not shutil.which("curl"):
        pytest.skip("no curl here")
    user = ask_for_token(issuer, "ada", "edge", scope=f"{SCOPE} orders:read")
    run = typed(LINES[program], tmp_path, legacy | {"USER_TOKEN": user})
    assert run.returncode == 0, run.stdout + run.stderr
    headers = {"authorization": f"Bearer {json.loads(run.stdout)['access_token']}"}
    event = consumers.verify(PAYLOAD, headers, topic="OrderCreated")
    assert (event.publisher, event.user, event.authentication["iss"]) == ("legacy", "ada", issuer)

    refused = typed(LINES[program], tmp_path, legacy | {"USER_TOKEN": "rubbish"})
    assert refused.returncode != 0
    assert json.loads(refused.stdout)["error"] == "invalid_grant"


def test_both_programs_stand_in_the_docs() -> None:
    assert set(LINES) == {"curl", "http"}


def test_the_command_registers_once_and_replaces_its_key_in_time(legacy: dict[str, str], stack: Stack) -> None:
    first, second = (json.loads(command(legacy, "--json").stdout) for _ in range(2))
    assert (first["client_id"], first["expires_in"]) == (f"{DOMAIN}/legacy", 60)
    assert kid_of(first["client_assertion"]) == kid_of(second["client_assertion"])
    assert first["client_assertion"] != second["client_assertion"]

    hasty = {f"PEERSEAL_ROTATE_{what}": "0" for what in ("LEAD", "OVERLAP")} | {"PEERSEAL_ROTATE_EVERY": "0.001"}
    kids = [kid_of(command(legacy | hasty).stdout) for _ in range(3)]
    assert len({*kids, kid_of(first["client_assertion"])}) == 4, "without a second join token"
    states = {key["kid"]: key["state"] for key in stack.operate_json("keys", "legacy")}
    before, _, newest = (states[kid] for kid in kids)  # the one between is retired where a second has passed
    assert (before, newest) == ("retired", "active"), "each call retires what was superseded"


def test_without_the_registry_a_key_that_is_there_still_signs(legacy: dict[str, str], stack: Stack) -> None:
    kid = kid_of(command(legacy).stdout)
    gone = command(legacy | {"PEERSEAL_REGISTRY_URL": f"http://{LOOPBACK}:{free_port()}"})
    assert (gone.returncode, kid_of(gone.stdout)) == (0, kid)
    newcomer = stack.service_settings("newcomer") | {"PEERSEAL_REGISTRY_URL": f"http://{LOOPBACK}:{free_port()}"}
    assert command(newcomer).returncode == 3


def test_the_commands_exit_codes(legacy: dict[str, str]) -> None:
    assert command({}, "--help").returncode == 0
    nameless = command({})
    assert (nameless.returncode, "PEERSEAL_KEY_DIR" in nameless.stderr) == (2, True)
    Path(legacy["PEERSEAL_JOIN_TOKEN_FILE"]).unlink()
    assert command(legacy).returncode == 2, "no key and no join token"
    stranger = command(legacy | {"PEERSEAL_JOIN_TOKEN": "rubbish"})
    assert (stranger.returncode, stranger.stdout) == (2, "")
