"""A program with nothing but curl or HTTPie, and `peerseal assertion`, exchanges a user's token for an event token."""

import json
import os
import shutil
import subprocess
import sys
from datetime import timedelta

import pytest

import peerseal
from demo.httpie import http
from demo.processes import BIN, LOOPBACK, Server, environment, free_port
from tests.support.issuer import ask_for_token
from tests.support.stack import DOMAIN, Stack

pytestmark = pytest.mark.e2e

AUDIENCE, SCOPE = "jobs.example.com", "trigger_invoicing"
FORM = {
    "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
    "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
    "scope": SCOPE,
    "audience": AUDIENCE,
    "transaction_id": "t-1",
    "event_id": "e-1",
}
PAYLOAD = b'{"eventID": "e-1"}'


@pytest.fixture
def issuer(stack: Stack) -> str:
    """The URL of an OIDC issuer in a process of its own."""
    url = f"http://{LOOPBACK}:{free_port()}"
    command = [sys.executable, "-m", "tests.support.issuer", url.rpartition(":")[2]]
    server = Server("issuer", command, url=url, log=stack.log("issuer"), settings={})
    stack.keep(server).wait_until_answers(url + "/fetched")
    return url


def turn_on(stack: Stack, issuer: str) -> None:
    file = stack.root / "domain.json"
    granted = {"legacy": {AUDIENCE: [SCOPE]}}
    settings = {"minters": [], "issuers": [{"issuer": issuer, "audience": "edge"}], "exchange": granted}
    file.write_text(json.dumps(settings))
    stack.operate("domain", "set", str(file))


def assertion(stack: Stack, settings: dict[str, str], *options: str) -> str:
    """What ``peerseal assertion`` prints, as a person would call it."""
    run = subprocess.run(
        [str(BIN / "peerseal"), "assertion", *options], env=environment(settings), capture_output=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_curl_or_httpie_alone_can_do_it_with_an_assertion_from_peerseal(stack: Stack, issuer: str) -> None:
    stack.start_registry()
    turn_on(stack, issuer)
    settings, url = stack.service_settings("legacy"), f"{stack.registry_url}/oauth2/token"
    user = ask_for_token(issuer, "ada", "edge", scope=f"{SCOPE} orders:read")
    form = {**FORM, "subject_token": user, "event_payload_hash": peerseal_hash(PAYLOAD), "topic": "OrderCreated"}

    fields = [f"{name}={value}" for name, value in form.items()]
    answer = http("--form", "POST", url, *fields, f"client_assertion={assertion(stack, settings)}")
    assert answer.status == 200, answer.text
    tokens = [answer.json["access_token"]]

    if shutil.which("curl"):
        data = [argument for field in fields for argument in ("--data-urlencode", field)]
        signed = f"client_assertion={assertion(stack, settings)}"
        run = subprocess.run(
            ["curl", "--silent", "--fail-with-body", *data, "--data-urlencode", signed, url],
            env=os.environ | {"NO_PROXY": LOOPBACK},
            capture_output=True,
            encoding="utf-8",
        )
        assert run.returncode == 0, run.stdout
        tokens.append(json.loads(run.stdout)["access_token"])

    with_json = json.loads(assertion(stack, settings, "--json"))
    assert with_json["client_id"] == f"{DOMAIN}/legacy"

    consumer = peerseal.Identity.from_env(stack.service_settings("invoicing")).start()
    allow = {"legacy": {SCOPE}, "registry": {SCOPE}}
    verifier = peerseal.EventVerifier(consumer.trust, audience=AUDIENCE, allow=allow, max_age=timedelta(days=7))
    for token in tokens:
        event = verifier.verify(PAYLOAD, {"authorization": f"Bearer {token}"}, topic="OrderCreated")
        assert (event.publisher, event.user, event.authentication["iss"]) == ("legacy", "ada", issuer)
    consumer.stop()

    again = http("--form", "POST", url, *fields, "client_assertion=rubbish")
    assert (again.status, again.json["error"]) == (401, "invalid_client")


def test_the_command_says_what_is_missing(stack: Stack) -> None:
    run = subprocess.run(
        [str(BIN / "peerseal"), "assertion"], env=environment({}), capture_output=True, encoding="utf-8"
    )
    assert run.returncode == 2
    assert "PEERSEAL_KEY_DIR" in run.stderr


def peerseal_hash(payload: bytes) -> str:
    """As ``sha256sum`` prints it."""
    run = subprocess.run(["sha256sum"], input=payload, capture_output=True, check=True)
    return run.stdout.decode().split()[0]
