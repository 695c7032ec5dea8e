"""`peerseal mirror --serve` as a process, with a real registry: its peers learn of a revocation at once."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import peerseal
from demo.processes import BIN
from tests.support.processes import LOOPBACK, Process, free_port
from tests.support.revoked import is_revoked
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.thorough]


@pytest.fixture
def caller(stack: Stack, tmp_path: Path) -> Iterator[peerseal.Identity]:
    stack.start_registry()
    joining = stack.join_token("caller")
    keys = tmp_path / "keys"
    identity = peerseal.Identity("caller", registry=stack.registry_url, join_token=joining, key_dir=keys, alg="ES256")
    yield identity.start()
    identity.stop()


def metric(file: Path, name: str) -> float:
    found = dict(line.split() for line in file.read_text().splitlines() if not line.startswith("#"))
    return float(found[f"peerseal_mirror_{name}"])


def test_a_mirror_tells_its_peers_of_a_revocation_and_ends_when_it_is_told_to(
    stack: Stack, caller: peerseal.Identity, tmp_path: Path
) -> None:
    kid, url, file = caller.credentials.key_id, f"http://{LOOPBACK}:{free_port()}", tmp_path / "mirror" / "metrics"
    pin = stack.join_token("another").rpartition(".")[2]
    command = [str(BIN / "peerseal"), "mirror", str(tmp_path / "mirror"), "--serve", url.removeprefix("http://")]
    options = ["--registry", stack.registry_url, "--pin", pin, "--metrics", str(file)]
    with Process("mirror", [*command, *options], log=tmp_path / "log") as mirror:
        mirror.wait_until_answers(f"{url}/v1/changes/recent.jwt")  # written last
        trust = peerseal.TrustStore(url, pin=pin)
        until(lambda: trust.key(kid).kid == kid, what="the key")
        stack.join_token("third")  # an entry: the mirror counts those who wait when it has it
        until(lambda: metric(file, "waiting_calls") == 1, what="the peer's question")
        failed = metric(file, "updates_failed_total")
        stack.operate("revoke", kid)

        until(lambda: is_revoked(trust, kid), what="the refusal")
        assert metric(file, "updates_failed_total") == failed
        os.kill(mirror.pid, signal.SIGTERM)
        until(lambda: not mirror.running, what="the end of the mirror")
        assert mirror.exit_code == 0, mirror.output()
        trust.stop()
