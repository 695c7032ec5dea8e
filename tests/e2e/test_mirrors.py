"""The recipes of docs/how-to/mirrors.md with a real nginx: a folder of files, and a cache in front of the registry."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

import peerseal
from demo.processes import BIN, ROOT, environment
from tests.support.nginx import nginx_command
from tests.support.processes import LOOPBACK, Process, Server, free_port
from tests.support.revoked import is_revoked
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.nginx, pytest.mark.thorough]

POLLING = peerseal.TrustLimits(wait=0.0, poll_interval=0.5)


PAGE = ROOT / "docs" / "how-to" / "mirrors.md"


def settings_of_the_page() -> dict[str, str]:
    """The registry's variables that the page has set."""
    return dict(re.findall(r"^export (REGISTRY_\w+)=(\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


def recipe(number: int, **changes: str) -> str:
    """An nginx block of the page, with these texts replaced."""
    found = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[number]
    for before, after in changes.items():
        assert before.replace("__", "/") in found, before
        found = found.replace(before.replace("__", "/"), after)
    return found


@contextmanager
def nginx(folder: Path, http: str, url: str) -> Iterator[None]:
    folder.mkdir()
    with Process("nginx", nginx_command(folder, http), log=folder / "log") as process:
        process.wait_until_answers(f"{url}/ledger/checkpoint")
        yield


def mirrored(stack: Stack, pin: str, folder: Path) -> str:
    """What one update of the mirror prints."""
    command = [str(BIN / "peerseal"), "mirror", str(folder), "--once", "--registry", stack.registry_url]
    ended = subprocess.run(
        [*command, "--pin", pin], cwd=ROOT, env=environment({}), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def registry(stack: Stack) -> Server:
    """As the page starts it, with one worker: each counts refusals for itself."""
    stack.registry_settings |= settings_of_the_page()
    return stack.start_registry(workers=1)


@pytest.fixture
def pin(stack: Stack, registry: Server) -> str:
    return stack.join_token("another").rpartition(".")[2]


@pytest.fixture
def caller(stack: Stack, registry: Server, tmp_path: Path) -> Iterator[peerseal.Identity]:
    joining = stack.join_token("caller")
    identity = peerseal.Identity(
        "caller", registry=stack.registry_url, join_token=joining, key_dir=tmp_path / "keys", alg="ES256"
    )
    yield identity.start()
    identity.stop()


def test_a_folder_that_nginx_serves_starts_a_fleet_while_the_registry_is_down(
    stack: Stack, registry: Server, pin: str, caller: peerseal.Identity, tmp_path: Path
) -> None:
    kid, port, folder = caller.credentials.key_id, free_port(), tmp_path / "mirror"
    assert mirrored(stack, pin, folder).endswith("documents written\n")
    registry.stop()
    served = recipe(0, **{"8080": f"{LOOPBACK}:{port}", "__srv__mirror": str(folder)})
    with nginx(tmp_path / "nginx", served, f"http://{LOOPBACK}:{port}"):
        trust = peerseal.TrustStore(f"http://{LOOPBACK}:{port}", pin=pin, limits=POLLING)
        assert trust.key(kid).kid == kid
        trust.stop()
        for path in ("/.lock", "/v1/", "/v1/services/caller", "/v1/services/caller/jwks.jwt/"):
            assert requests.get(f"http://{LOOPBACK}:{port}{path}", timeout=5).status_code == 404, path
        answer = requests.get(f"http://{LOOPBACK}:{port}/v1/services/caller/jwks.jwt?seq=2", timeout=5)
        assert (answer.headers["Content-Type"], answer.headers["Cache-Control"]) == (
            "application/jwt",
            "public, max-age=1",
        )


@pytest.fixture
def cache(stack: Stack, registry: Server, tmp_path: Path) -> Iterator[str]:
    """The URL of a cache in front of the registry."""
    port = free_port()
    changes = {
        "8080": f"{LOOPBACK}:{port}",
        "https:____registry.acme.internal": stack.registry_url,
        "__var__cache__registry": str(tmp_path / "cache"),
    }
    with nginx(tmp_path / "nginx", recipe(1, **changes), f"http://{LOOPBACK}:{port}"):
        yield f"http://{LOOPBACK}:{port}"


def refusal(url: str, address: str, claimed: str) -> int:
    """The status of a registration without a right, from that address of this machine, which claims another one."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=30, source_address=(address, 0))
    with closing(connection):
        headers = {"Content-Type": "application/json", "X-Forwarded-For": claimed}
        connection.request("POST", "/v1/services/caller/keys", b"{}", headers)
        return connection.getresponse().status


def test_one_client_that_is_refused_too_often_keeps_no_other_from_registering_through_the_cache(
    stack: Stack, cache: str, tmp_path: Path
) -> None:
    statuses = [refusal(cache, "127.0.0.2", f"192.0.2.{number}") for number in range(70)]
    assert (statuses[0], statuses[-1]) == (400, 429)
    assert refusal(cache, "127.0.0.3", "127.0.0.2") == 400
    identity = peerseal.Identity(
        "caller", registry=cache, join_token=stack.join_token("caller"), key_dir=tmp_path / "keys", alg="ES256"
    )
    assert identity.start().credentials.key_id.startswith(identity.id)
    identity.stop()


def test_a_cache_answers_for_the_registry_and_peers_learn_of_a_revocation_through_it(
    stack: Stack, pin: str, caller: peerseal.Identity, cache: str
) -> None:
    kid, url = caller.credentials.key_id, cache
    peers = [peerseal.TrustStore(url, pin=pin, limits=POLLING) for _ in range(8)]
    for trust in peers:
        assert trust.key(kid).kid == kid
    first = requests.get(f"{url}/v1/services/caller/jwks.jwt", timeout=5)
    assert first.headers["X-Cache-Status"] == "HIT"
    stack.operate("revoke", kid)
    until(lambda: all(is_revoked(trust, kid) for trust in peers), 30, what="the refusal of each peer")
    seen = Counter(requests.get(f"{url}/v1/changes/recent.jwt", timeout=5).headers["X-Cache-Status"] for _ in range(5))
    assert seen["HIT"] >= 3, seen
    for trust in peers:
        trust.stop()
