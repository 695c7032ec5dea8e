"""A registry whose real nginx compresses its answers, and so makes their ETags weak."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from demo.processes import BIN, ROOT, environment
from tests.support.nginx import nginx_command
from tests.support.processes import LOOPBACK, Process, free_port
from tests.support.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.nginx, pytest.mark.thorough]

HTTP = """
    gzip on; gzip_min_length 1; gzip_proxied any; gzip_types application/json application/jwt application/problem+json;
    server {{ listen {port}; location / {{ proxy_pass {registry}; proxy_http_version 1.1; }} }}
"""


@pytest.fixture
def nginx(stack: Stack, tmp_path: Path) -> Iterator[str]:
    stack.start_registry()
    port, folder = free_port(), tmp_path / "nginx"
    folder.mkdir()
    command = nginx_command(folder, HTTP.format(port=port, registry=stack.registry_url))
    url = f"http://{LOOPBACK}:{port}"
    with Process("nginx", command, log=folder / "log") as process:
        process.wait_until_answers(f"{url}/readyz")
        yield url


def operate(url: str, token: str, *arguments: str) -> dict[str, object]:
    command = [str(BIN / "peerseal-registry"), *arguments, "--url", url, "--json"]
    settings = environment({"PEERSEAL_OPERATOR_TOKEN": token})
    ended = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    assert (ended.returncode, "Error" in ended.stderr, "Traceback" in ended.stderr) == (0, False, False), ended.stderr
    found: dict[str, object] = json.loads(ended.stdout)
    return found


def test_policies_are_read_and_replaced_through_it(stack: Stack, nginx: str) -> None:
    token = json.loads(stack.operate("operator-token", "create", "--role", "admin", "--json"))["token"]
    first = operate(nginx, token, "policy", "set", "billing", "--allow", "shop=orders:read")
    assert operate(nginx, token, "policy", "get", "billing") == first
    second = operate(nginx, token, "policy", "set", "billing", "--allow", "shop")
    assert second["entry"] != first["entry"]
    answer = requests.get(
        f"{nginx}/v1/services/billing/policy", headers={"Authorization": f"Bearer {token}"}, timeout=5
    )
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["ETag"] == f'W/"{second["entry"]}"'
    sent = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "If-Match": answer.headers["ETag"]}
    replaced = requests.put(f"{nginx}/v1/services/billing/policy", data=answer.content, headers=sent, timeout=5)
    assert replaced.status_code == 200


DOCUMENTS = [
    "/.well-known/peerseal-registry",
    "/.well-known/jwks.json",
    "/v1/domain.jwt",
    "/ledger/checkpoint",
    "/ledger/tile/0/000.p/1",
    "/ledger/tile/entries/000.p/1",
    "/openapi.json",
    "/docs",
]


def test_every_document_is_asked_for_again_by_the_etag_that_nginx_made_of_it(nginx: str) -> None:
    """Each worker signs documents itself, so that an ETag is asked for until the worker that made it answers."""
    for path in DOCUMENTS:
        first = requests.get(nginx + path, timeout=5)
        assert first.status_code == 200, path
        assert "no-transform" in first.headers["Cache-Control"], path
        tag = first.headers["ETag"]
        for known in (tag, f'"x", {tag}', f'W/"{tag.removeprefix("W/")[1:-1]}-gzip"'):
            answers = [requests.get(nginx + path, headers={"If-None-Match": known}, timeout=5) for _ in range(40)]
            assert 304 in {answer.status_code for answer in answers}, (path, known)
