"""The commands of examples/minimal, typed as they stand in three terminals; only the ports are others, if taken."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.processes import BIN, ROOT, Process, environment, free_port
from tests.support.brokers import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

README = ROOT / "examples/minimal/README.md"
PORTS = ("8080", "8081")


def blocks(page: Path) -> list[str]:
    """What is to be typed, terminal by terminal."""
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which `make demo` has run, and nothing else."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".venv").symlink_to(BIN.parent)
    return tmp_path


def on_free_ports(registry: str, *others: str) -> list[str]:
    """The same commands where another program has one of the ports."""
    texts = [registry.replace("registry serve", "registry serve --port 8080"), *others]
    for port in PORTS:
        free = str(free_port(int(port)))
        texts = [text.replace(port, free) for text in texts]
    return texts


HEEDS_CTRL_C = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp('bash', sys.argv[1:])"
"""What a shell starts in the background ignores Ctrl-C, and so do all that it starts."""


@contextmanager
def typed(name: str, block: str, folder: Path) -> Iterator[Process]:
    """A terminal in which the block was typed, until Ctrl-C."""
    command = [sys.executable, "-c", HEEDS_CTRL_C, "bash", "-c", f"cd '{folder}'\n{block}"]
    process = Process(name, command, log=folder / f"{name}.log")
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGINT)
        eventually(lambda: not process.running, f"{name} ends at Ctrl-C")


def test_the_commands_do_what_the_page_says(checkout: Path) -> None:
    registry, callee, caller = on_free_ports(*blocks(README))
    with typed("registry", registry, checkout) as first:
        first.wait_until_prints("Listening at")
        with typed("callee", callee, checkout) as second:
            second.wait_until_prints("Running on http")
            ended = subprocess.run(
                ["bash", "-c", caller],
                cwd=checkout,
                env=environment({}),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )
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
