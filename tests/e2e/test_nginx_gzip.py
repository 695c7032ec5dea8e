"""A registry behind a real nginx that compresses its answers, and so makes their ETags weak."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from demo.processes import BIN, ROOT, environment
from tests.e2e.test_nginx import nginx_program
from tests.support.processes import LOOPBACK, Process, free_port
from tests.support.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.thorough]

CONF = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    gzip on; gzip_min_length 1; gzip_proxied any; gzip_types application/json application/jwt application/problem+json;
    server {{ listen {port}; location / {{ proxy_pass {registry}; proxy_http_version 1.1; }} }}
}}
"""


@pytest.fixture
def nginx(stack: Stack, tmp_path: Path) -> Iterator[str]:
    stack.start_registry()
    port, folder = free_port(), tmp_path / "nginx"
    folder.mkdir()
    (folder / "nginx.conf").write_text(CONF.format(folder=folder, port=port, registry=stack.registry_url))
    command = [nginx_program(), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    url = f"http://{LOOPBACK}:{port}"
    with Process("nginx", command, log=folder / "log") as process:
        process.wait_until_answers(f"{url}/readyz")
        yield url


def operate(url: str, token: str, *arguments: str) -> dict[str, object]:
    command = [str(BIN / "peerseal-registry"), *arguments, "--url", url, "--json"]
    settings = environment({"PEERSEAL_OPERATOR_TOKEN": token})
    ended = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
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
