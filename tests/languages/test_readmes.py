"""The commands on the page of each peer, typed in three terminals as they stand; a port that is taken is replaced."""

import re
from pathlib import Path

import pytest

from demo.processes import ROOT
from tests.languages.conftest import Peer
from tests.support.terminals import checkout, on_free_ports, run, typed

pytestmark = [pytest.mark.languages, pytest.mark.e2e, pytest.mark.slow]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_commands_do_what_the_page_says(peer: Peer, tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    registry = blocks(ROOT / "examples" / "minimal" / "README.md")[0]
    _, *services = blocks(ROOT / "examples" / peer.language / "README.md")
    built = [block.replace(f"cd examples/{peer.language}\n", f"cd '{peer.folder}'\n") for block in services]
    registry, callee, caller = on_free_ports([registry, *built], ("8080", "8081"))
    with typed("registry", registry, folder) as first:
        first.wait_until_prints("Listening at")
        with typed("callee", callee, folder) as second:
            second.wait_until_prints("Listening at http")
            ended = run(caller, folder)
    assert ended.returncode == 0, ended.stderr
    assert f"# {ended.stdout.strip()}" in caller
