"""A real server that tests start, stop, kill and freeze: always on the same port, with the same data."""

import os
import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.processes import Process, ProcessFailed, free_port

START = 60  # seconds
_OWN_PORTS = 10_000, 32_000
"""A range below the one from which the kernel takes the ports of outgoing connections."""


def lasting_port() -> int:
    """A free port for a server that is started more than once: while it is down no outgoing connection gets it."""
    return free_port(random.randrange(*_OWN_PORTS))


class RestartableServer(ABC):
    """As a context manager it is started at the beginning and stopped at the end. Its output goes to ``log``."""

    def __init__(self, name: str, log: Path) -> None:
        self._name = name
        self._log = log
        self._process: Process | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self.close()

    @property
    def running(self) -> bool:
        """Whether it is started and has not ended."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    @abstractmethod
    def start(self) -> None:
        """Start it, with the data that an earlier one left, and wait until it answers."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it answers now."""

    def stop(self) -> None:
        """SIGTERM, and the end awaited: a clean stop."""
        if self._process is not None:
            self._process.stop(grace=30)

    def kill(self) -> None:
        """``kill -9``, and the end awaited."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Leave nothing running."""
        self.kill()

    def freeze(self) -> None:
        """Stop it in its tracks: the kernel takes connections and bytes for it, and nothing comes back."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def output(self) -> str:
        """All that it has printed so far, over restarts too."""
        return self._log.read_text(errors="replace")

    def _run(self, command: Sequence[str], settings: Mapping[str, str] | None = None) -> None:
        self._process = process = Process(self._name, command, log=self._log, settings=settings)
        deadline = time.monotonic() + START
        while not self._answers():
            if time.monotonic() > deadline or not process.running:
                raise ProcessFailed(f"{self._name} does not answer:\n{process.output()[-4000:]}")
            time.sleep(0.1)
