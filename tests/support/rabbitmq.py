"""A real RabbitMQ on loopback, with a port mapper, a cookie and folders of its own.

The program is Debian's, or RabbitMQ's own package. Debian's command changes to the user ``rabbitmq``, who could not
write to a test's folder: here the server's own script is run, as whoever runs the tests.
"""

import os
import shutil
import signal
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import amqp
import pytest

from demo.processes import LOOPBACK, Process, ProcessFailed, free_port
from peerseal.rabbitmq import declare

SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

_START = 60  # seconds


def need_rabbitmq() -> None:
    """Skip the test where RabbitMQ is missing; fail where CI is set."""
    if not SERVER.exists() or shutil.which("epmd") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("RabbitMQ is not here: install rabbitmq-server")


class RabbitMQ:
    """One that tests start, stop and kill: always on the same port, with the same data.

    As a context manager it is started at the beginning and stopped at the end. ``configuration`` are lines of
    its ``rabbitmq.conf``, by name.
    """

    settings: Mapping[str, Any] = MappingProxyType({})
    """Those of an inlet: see `tests.support.brokers.Broker`."""

    def __init__(self, folder: Path, configuration: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@{LOOPBACK}:{self.port}//"
        """As an application's configuration has it."""
        self._folder = folder / "rabbitmq"
        self._mapper_port = str(free_port())
        self._configuration = dict(configuration or {})
        self._environment = self._make_environment(distribution_port=free_port())
        self._mapper: Process | None = None
        self._process: Process | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._end()

    @property
    def running(self) -> bool:
        """Whether it is started and has not ended."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, with the data that an earlier one left, and wait until it answers."""
        if self._mapper is None:
            self._mapper = self._start_mapper()
        self._process = process = Process("rabbitmq", [str(SERVER)], log=self._log, settings=self._environment)
        deadline = time.monotonic() + _START
        while not self._answers():
            if time.monotonic() > deadline or not process.running:
                raise ProcessFailed(f"rabbitmq does not answer:\n{process.output()[-4000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """SIGTERM, and the end awaited: a clean stop."""
        if self._process is not None:
            self._process.stop(grace=30)

    def kill(self) -> None:
        """``kill -9``, and the end awaited."""
        if self._process is not None:
            self._process.kill()

    def freeze(self) -> None:
        """Stop it in its tracks: the kernel takes connections and bytes for it, and nothing comes back."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def new_topic(self) -> str:
        """The name of a fresh topic, with the queue of ``<topic>-group``: see `tests.support.brokers.Broker`."""
        topic = f"topic-{uuid.uuid4().hex[:12]}"
        declare(self.url, f"{topic}-group", [topic])
        return topic

    def output(self) -> str:
        """All that it has printed so far, over restarts too."""
        return self._log.read_text(errors="replace")

    @property
    def _log(self) -> Path:
        return self._folder / "rabbitmq.log"

    def _answers(self) -> bool:
        with suppress(amqp.AMQPError, OSError), amqp.Connection(f"{LOOPBACK}:{self.port}", connect_timeout=2):
            return True
        return False

    def _end(self) -> None:
        self.kill()
        if self._mapper is not None:
            self._mapper.kill()

    def _start_mapper(self) -> Process:
        """Erlang would start one by itself, and leave it running."""
        command = ["epmd", "-port", self._mapper_port, "-address", LOOPBACK]
        return Process("epmd", command, log=self._folder / "epmd.log")

    def _make_environment(self, distribution_port: int) -> dict[str, str]:
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = {"listeners.tcp.1": f"{LOOPBACK}:{self.port}"} | self._configuration
        configuration = self._folder / "rabbitmq.conf"
        configuration.write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))
        (self._folder / "enabled_plugins").write_text("[].\n")
        return {
            # Under systemd the script becomes the server, so that a signal to its pid reaches it.
            "RUNNING_UNDER_SYSTEMD": "true",
            "HOME": str(self._folder),  # where the cookie is made
            "ERL_EPMD_PORT": self._mapper_port,
            "RABBITMQ_NODENAME": f"test-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(self._folder / "mnesia"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(self._folder),
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_CONF_ENV_FILE": str(self._folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self._folder / "rabbitmq.pid"),
        }
