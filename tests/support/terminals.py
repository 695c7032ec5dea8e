"""Commands of the docs, typed in terminals as they stand on the page."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from demo.processes import BIN, ROOT, Process, environment, free_port
from tests.support.brokers import eventually

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


def run(block: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What the block prints in a terminal, once all its commands have ended."""
    return subprocess.run(
        ["bash", "-c", block],
        cwd=folder,
        env=environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def checkout(folder: Path) -> Path:
    """``folder`` as a checkout in which `make demo` has run, and nothing else."""
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / ".venv").symlink_to(BIN.parent)
    return folder


def on_free_ports(texts: Sequence[str], ports: Sequence[str]) -> list[str]:
    """The same commands where another program has one of the ports. A registry that names no port has 8080."""
    changed = [re.sub(r"registry serve( --dev)?(?=\n|  )", r"registry serve\1 --port 8080", text) for text in texts]
    for port in ports:
        free = str(free_port(int(port)))
        changed = [text.replace(port, free) for text in changed]
    return changed
