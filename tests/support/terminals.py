"""Commands of the docs, typed in terminals as they stand on the page."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from demo.processes import BIN, ROOT, Process, environment, free_port
from tests.support.brokers import eventually

_END = "the-block-has-ended"
_CTRL_C_WITHIN = 60.0
"""Seconds. gunicorn's threaded worker may lock itself out when the terminal's SIGINT and its master's SIGQUIT come at
once; the master kills it after half of that time."""
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
        eventually(lambda: not process.running, f"{name} ends at Ctrl-C", within=_CTRL_C_WITHIN)


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


class Terminal:
    """A shell in ``folder`` that keeps its variables and its folder from block to block, until the context ends."""

    def __init__(self, name: str, folder: Path) -> None:
        self._log = folder / f"{name}.log"
        with self._log.open("ab") as errors:
            self._shell = subprocess.Popen(
                ["bash"],
                cwd=folder,
                env=environment({}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._shell.pid, signal.SIGTERM)
        self._shell.communicate(timeout=60)

    def type(self, block: str) -> None:
        """Types the block, and does not wait for its end."""
        assert self._shell.stdin
        self._shell.stdin.write(block)
        self._shell.stdin.flush()

    def run(self, block: str) -> str:
        """What the block prints on standard output. Raises AssertionError if the shell ends within it."""
        assert self._shell.stdout
        self.type(f"{block}\necho; echo {_END}\n")  # the block's last line may have no end
        printed = ""
        while not printed.endswith(f"\n{_END}\n"):
            line = self._shell.stdout.readline()
            assert line, f"the shell has ended: {self.errors()}"
            printed += line
        return printed.removesuffix(f"\n{_END}\n")

    def wait_until_prints(self, text: str) -> None:
        """Waits until the text is on standard error. Raises AssertionError if it does not come."""
        eventually(lambda: text in self.errors(), f"{text} is printed")

    def errors(self) -> str:
        """What was printed on standard error."""
        return self._log.read_text()


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
