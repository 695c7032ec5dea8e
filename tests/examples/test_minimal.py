"""The commands of examples/minimal, typed as they stand in three terminals; only the ports are others, if taken."""

import re
from pathlib import Path

import pytest

from demo.processes import ROOT
from tests.support.terminals import checkout, on_free_ports, run, typed

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

README = ROOT / "examples/minimal/README.md"
PORTS = ("8080", "8081")


def blocks(page: Path) -> list[str]:
    """What is to be typed, terminal by terminal."""
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_commands_do_what_the_page_says(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    registry, callee, caller = on_free_ports(blocks(README), PORTS)
    with typed("registry", registry, folder) as first:
        first.wait_until_prints("Listening at")
        with typed("callee", callee, folder) as second:
            second.wait_until_prints("Running on http")
            ended = run(caller, folder)
    assert ended.returncode == 0, ended.stderr
    promised = re.findall(r"# (.*)$", caller, re.MULTILINE)
    first_answer, *second_answer = ended.stdout.splitlines()
    assert first_answer == promised[0]
    assert '"code":"missing_token"' in "".join(second_answer).replace(" ", "")


@pytest.mark.parametrize("name", ["callee", "caller"])
def test_the_first_page_shows_the_programs_and_commands_as_they_are(name: str) -> None:
    page = (ROOT / "README.md").read_text()
    assert (ROOT / f"examples/minimal/{name}.py").read_text() in page
    assert all(block in page for block in blocks(README))
