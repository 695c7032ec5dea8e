"""``http --auth-type=peerseal``: real HTTPie processes that call a Flask service over HTTP."""

import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from demo.processes import BIN
from tests.peerseal.called_service import CALLEE, CALLER, CalledService, called_service
from tests.support.wire import raw_server

pytestmark = pytest.mark.slow


class Shown(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CalledService]:
    with called_service(tmp_path_factory.mktemp("httpie")) as service:
        yield service


def http(
    service: CalledService, *arguments: str, environ: Mapping[str, str] | None = None, audience: str | None = CALLEE
) -> Shown:
    """What a signed call prints. ``{url}`` in an argument is the service's URL."""
    auth = () if audience is None else ("--auth-type=peerseal", "-a", audience)
    done = subprocess.run(
        [
            *(BIN / "http", "--ignore-stdin", "--pretty=none", *auth),
            *(argument.replace("{url}", service.url) for argument in arguments),
        ],
        env=service.environ if environ is None else environ,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return Shown(done.returncode, done.stdout, done.stderr.strip())


def test_a_call_is_made_in_the_name_of_this_host(service: CalledService) -> None:
    shown = http(service, "POST", "{url}/orders", "customer=ada", "limit==10", "-b")
    assert (shown.code, shown.err) == (0, "")
    found = json.loads(shown.out)
    assert (found["caller"], found["body"], found["query"]) == (CALLER, '{"customer": "ada"}', {"limit": ["10"]})


def test_a_compressed_file_is_signed_as_it_is_sent(service: CalledService, tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text('{"a": 1}')
    shown = http(service, "-xx", "POST", "{url}/orders", f"@{tmp_path / 'order.json'}", "-b")
    found = json.loads(shown.out)
    assert (found["caller"], found["encoding"]) == (CALLER, "deflate")
    assert zlib.decompress(found["body"].encode("latin-1")) == b'{"a": 1}'


@pytest.mark.thorough
def test_a_form_with_a_file_is_signed_as_it_is_sent(service: CalledService, tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text('{"a": 1}')
    found = json.loads(http(service, "--form", "POST", "{url}/orders", f"order@{tmp_path / 'order.json'}", "-b").out)
    assert found["caller"] == CALLER
    assert found["type"].startswith("multipart/form-data; boundary=")
    assert '{"a": 1}' in found["body"]


@pytest.mark.thorough
def test_a_body_in_chunks_is_refused(service: CalledService) -> None:
    shown = http(service, "--chunked", "POST", "{url}/orders", "a=b")
    assert (shown.code, shown.out) == (1, "")
    assert shown.err == (
        "http: error: UnsignableRequest: a signed request is sent with its length, not in chunks: leave out --chunked"
    )


def test_a_redirect_within_the_service_is_signed_again(service: CalledService) -> None:
    service.targets.clear()
    shown = http(service, "--follow", "--check-status", "POST", "{url}/moved?with=307", "a=b", "-b")
    assert shown.code == 0
    assert json.loads(shown.out)["body"] == '{"a": "b"}'
    assert service.targets == ["POST /moved?with=307", "POST /orders?from=moved"]


@pytest.mark.thorough
def test_a_redirect_to_another_service_carries_no_token(service: CalledService) -> None:
    with raw_server() as other:
        service.elsewhere = other.url
        assert http(service, "--follow", "{url}/elsewhere").code == 0
    assert [seen.authorization for seen in other.seen] == [None]


@pytest.mark.thorough
def test_a_refusal_is_an_answer_and_an_exit_code_where_that_is_asked_for(service: CalledService) -> None:
    shown = http(service, "--check-status", "{url}/invoices", "-b")
    assert (shown.code, json.loads(shown.out)["code"]) == (4, "insufficient_scope")


def test_an_offline_request_is_signed(service: CalledService) -> None:
    shown = http(service, "--offline", "PUT", "{url}/orders?a=b", "c=d")
    head, _, body = shown.out.partition("\n\n")
    assert head.startswith("PUT /orders?a=b HTTP/1.1\n")
    assert body.strip() == '{"c": "d"}'
    found = re.search(r"^Authorization: (Bearer \S+)$", head, re.MULTILINE)
    assert found is not None
    inspected = subprocess.run(
        [BIN / "peerseal", "inspect", "--json", found[1]], capture_output=True, check=True, timeout=60
    )
    assert json.loads(inspected.stdout)["claims"]["method"] == "PUT"


@pytest.mark.thorough
def test_a_session_keeps_the_audience_and_no_token(service: CalledService) -> None:
    assert http(service, "--session=orders", "{url}/orders", "X-A:b").code == 0
    (kept,) = Path(service.environ["HTTPIE_CONFIG_DIR"]).glob("sessions/*/orders.json")
    assert json.loads(kept.read_text())["auth"] == {"type": "peerseal", "raw_auth": CALLEE}
    assert "Bearer" not in kept.read_text()
    again = http(service, "--session=orders", "{url}/orders", "-b", audience=None)
    assert json.loads(again.out)["caller"] == CALLER


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("environ", "audience", "says"),
    [
        ({"PEERSEAL_KEY_DIR": ""}, CALLEE, "ConfigurationError: PEERSEAL_KEY_DIR is not set"),
        ({"PEERSEAL_SERVICE": ""}, CALLEE, "ConfigurationError: PEERSEAL_SERVICE is not set"),
        ({}, "no name", "InvalidName: not a service name: 'no name'"),
    ],
)
def test_what_is_missing_is_named(service: CalledService, environ: dict[str, str], audience: str, says: str) -> None:
    shown = http(service, "{url}/orders", environ={**service.environ, **environ}, audience=audience)
    assert shown.code == 1
    assert shown.err.startswith(f"http: error: {says}")


@pytest.mark.thorough
def test_without_httpie_the_module_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "httpie.py").write_text("raise ModuleNotFoundError('no', name='httpie')\n")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    importing = [sys.executable, "-c", "import peerseal, peerseal.requests; import peerseal.httpie"]
    done = subprocess.run(importing, env=environ, capture_output=True, encoding="utf-8", timeout=60)
    assert done.stderr.endswith("httpie is not installed: pip install 'peerseal[httpie]'\n")
