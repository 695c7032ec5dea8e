"""deploy/nginx-registry.conf in a real nginx before a real registry: TLS, client certificates, what stays inside."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import requests

import peerseal
from peerseal.errors import FetchError
from peerseal.transport.fetch import HttpFetcher
from tests.support.certificates import Authority
from tests.support.nginx import nginx_command
from tests.support.processes import LOOPBACK, Process, free_port
from tests.support.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.nginx]

RECIPE = Path(__file__).parents[2] / "deploy" / "nginx-registry.conf"
OPERATORS_ONLY = [
    ("GET", "/v1/services"),
    ("GET", "/v1/audit"),
    ("GET", "/v1/applicants"),
    ("GET", "/v1/join-tokens"),
    ("POST", "/v1/join-tokens"),
    ("DELETE", "/v1/join-tokens/x"),
    ("GET", "/v1/operator-tokens"),
    ("GET", "/v1/%6aoin-tokens"),
    ("POST", f"/v1/services/billing/keys/{'A' * 43}/approve"),
]


@dataclass(frozen=True)
class Served:
    """A registry with nginx in front, at ``url``; ``inside`` is where gunicorn itself listens."""

    url: str
    inside: str
    stack: Stack
    ca: Path
    operator: dict[str, str]
    certificate: tuple[str, str]

    def call(self, method: str, path: str, *, certificate: bool = False, **more: object) -> requests.Response:
        cert = self.certificate if certificate else None
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.url + path, verify=str(self.ca), cert=cert, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tls")
    web, operators = Authority.make(folder, "web-ca"), Authority.make(folder, "operators-ca")
    files, port = web.issue("registry", server=True), free_port()
    with Stack(folder / "stack") as stack:
        stack.registry_settings["REGISTRY_PROXIES"] = "1"
        stack.start_registry()
        conf = RECIPE.read_text().replace("127.0.0.1:8080", stack.registry_url.removeprefix("http://"))
        conf = conf.replace("listen 443 ssl", f"listen {LOOPBACK}:{port} ssl")
        for name, path in (
            ("registry.pem", files[0]),
            ("registry.key", files[1]),
            ("operators-ca.pem", operators.file),
        ):
            conf = conf.replace(f"/etc/peerseal/tls/{name}", str(path))
        assert "/etc/" not in re.sub(r"#.*", "", conf)
        command = nginx_command(folder, conf)
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        token = (folder / "stack" / "registry" / "operator-token").read_text().strip()
        certificate, key = operators.issue("anna", server=False)
        operator = {"Authorization": f"Bearer {token}"}
        own = (str(certificate), str(key))
        url = f"https://{LOOPBACK}:{port}"
        with Process("nginx", command, log=folder / "log") as nginx:
            _wait_for(nginx, url, web.file)
            yield Served(url, stack.registry_url, stack, web.file, operator, own)


def _wait_for(nginx: Process, url: str, ca: Path) -> None:
    for _ in range(200):
        try:
            requests.get(f"{url}/healthz", verify=str(ca), timeout=1)
        except requests.ConnectionError:
            assert nginx.running, nginx.output()
        else:
            return
    pytest.fail("nginx does not answer")


def test_an_identity_joins_and_rotates_over_tls(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(served.ca))
    monkeypatch.setenv("NO_PROXY", LOOPBACK)
    token = served.stack.join_token("billing")
    identity = peerseal.Identity("billing", registry=served.url, join_token=token, key_dir=tmp_path / "keys").start()
    try:
        before = identity.credentials
        assert identity.rotate() != before
    finally:
        identity.stop()


def test_a_registry_with_a_certificate_of_another_authority_is_not_asked(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher = HttpFetcher([served.url])
    monkeypatch.setenv("NO_PROXY", LOOPBACK)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with pytest.raises(FetchError):
        fetcher.call("GET", "/.well-known/peerseal-registry")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(served.ca))
    assert fetcher.call("GET", "/.well-known/peerseal-registry").status == 200


@pytest.mark.parametrize(("method", "path"), OPERATORS_ONLY)
def test_what_operators_ask_for_needs_a_client_certificate(served: Served, method: str, path: str) -> None:
    refused = served.call(method, path, headers=served.operator, json={"service": "billing"})
    assert (refused.status_code, "nginx" in refused.text) == (403, True)
    without_token = served.call(method, path)
    assert (without_token.status_code, "nginx" in without_token.text) == (403, True)
    passed = served.call(method, path, certificate=True, headers=served.operator, json={"service": "billing"})
    assert passed.status_code in (200, 201, 404)
    assert "nginx" not in passed.text


@pytest.mark.parametrize("spelling", ["Bearer ", "bearer  ", "BEARER "])
def test_an_operators_token_is_good_nowhere_without_a_client_certificate(served: Served, spelling: str) -> None:
    token = served.operator["Authorization"].removeprefix("Bearer ")
    path = f"/v1/services/billing/keys/{'A' * 43}?reason=compromised"
    refused = served.call("DELETE", path, headers={"Authorization": spelling + token})
    assert (refused.status_code, "nginx" in refused.text) == (403, True)
    passed = served.call("DELETE", path, certificate=True, headers=served.operator)
    assert passed.status_code == 404
    assert passed.json()["code"] in ("key_not_found", "service_not_found")


def test_a_client_certificate_of_another_authority_is_refused(served: Served, tmp_path: Path) -> None:
    certificate, key = Authority.make(tmp_path, "others-ca").issue("mallory", server=False)
    other = replace(served, certificate=(str(certificate), str(key)))
    answer = other.call("GET", "/v1/services", certificate=True, headers=served.operator)
    assert answer.status_code in (400, 403)  # nginx says 400 to a certificate that does not verify
    assert "services" not in answer.text


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics/", "/%6detrics", "//metrics", "/v1/../metrics", "/METRICS", "/metrics?x"]
)
def test_counts_are_not_for_the_public(served: Served, path: str) -> None:
    prepared = requests.Request("GET", served.url).prepare()
    prepared.url = served.url + path  # as it stands: requests would resolve the dots
    with requests.Session() as session:
        answer = session.send(prepared, verify=str(served.ca))
    assert answer.status_code == 404
    assert "registry_requests" not in answer.text
    assert "registry_requests_total" in requests.get(f"{served.inside}/metrics", timeout=5).text


def test_the_public_part_is_open_and_says_no_versions(served: Served) -> None:
    for path in ("/.well-known/peerseal-registry", "/ledger/checkpoint", "/openapi.json", "/docs", "/nothing"):
        answer = served.call("GET", path)
        assert answer.status_code == (404 if path == "/nothing" else 200)
        assert answer.headers["Server"] == "nginx"
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_refusals_are_counted_by_the_address_that_nginx_saw(served: Served) -> None:
    statuses = []
    for number in range(80):
        claimed = {"X-Forwarded-For": f"198.51.100.{number}", "Content-Type": "application/json"}
        answer = served.call("POST", "/v1/services/billing/keys", headers=claimed, data=b"{}")
        statuses.append(answer.status_code)
    assert statuses[0] == 400
    assert 429 in statuses, "another address claimed by the client itself buys no further attempts"


def test_a_body_that_is_too_large_never_reaches_the_registry(served: Served) -> None:
    answer = served.call("POST", "/v1/services/billing/keys", data=b"x" * 70_000)
    assert answer.status_code == 413
    assert "nginx" in answer.text
