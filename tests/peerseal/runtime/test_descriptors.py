"""How many connections a process may have."""

import subprocess
import sys

import pytest

from demo.processes import ROOT, environment


@pytest.mark.parametrize(("hard", "soft", "connections"), [(1_000, 1_000, 1_000 - 256), (20_000, 5_000 + 256, 5_000)])
def test_a_process_takes_no_more_connections_than_it_may_have_descriptors(
    hard: int, soft: int, connections: int
) -> None:
    script = (
        f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (300, {hard}))\n"
        "from peerseal.runtime.descriptors import connections_allowed as allowed\n"
        "print(allowed(5_000), r.getrlimit(r.RLIMIT_NOFILE)[0])"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment({}), capture_output=True, check=True
    )
    assert told.stdout.decode().split() == [str(connections), str(soft)]
