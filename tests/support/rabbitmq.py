"""A real RabbitMQ on loopback, with a port mapper, a cookie and folders of its own.

The program is Debian's, or RabbitMQ's own package. Debian's command changes to the user ``rabbitmq``, who could not
write to a test's folder: here the server's own script is run, as the user of the tests.
"""

import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import amqp
import pytest

from demo.processes import LOOPBACK, Process
from peerseal.rabbitmq import declare
from tests.support.restartable import RestartableServer, lasting_port

SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def need_rabbitmq() -> None:
    """Skip the test where RabbitMQ is missing; fail where CI is set."""
    if not SERVER.exists() or shutil.which("epmd") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("RabbitMQ is not here: install rabbitmq-server")


class RabbitMQ(RestartableServer):
    """One that tests start, stop and kill: always on the same port, with the same data.

    As a context manager it is started at the beginning and stopped at the end. ``configuration`` are lines of
    its ``rabbitmq.conf``, by name.
    """

    settings: Mapping[str, Any] = MappingProxyType({})
    """Those of an inlet: see `tests.support.brokers.Broker`."""

    def __init__(self, folder: Path, configuration: Mapping[str, str] | None = None) -> None:
        self.port = lasting_port()
        self.url = f"amqp://guest:guest@{LOOPBACK}:{self.port}//"
        """As an application's configuration has it."""
        self._folder = folder / "rabbitmq"
        super().__init__("rabbitmq", self._folder / "rabbitmq.log")
        self._mapper_port = str(lasting_port())
        self._configuration = dict(configuration or {})
        self._environment = self._make_environment(distribution_port=lasting_port())
        self._mapper: Process | None = None

    def start(self) -> None:
        """Start it, with the data that an earlier one left, and wait until it answers."""
        if self._mapper is None:
            self._mapper = self._start_mapper()
        self._run([str(SERVER)], self._environment)

    def new_topic(self) -> str:
        """The name of a fresh topic, with the queue of ``<topic>-group``: see `tests.support.brokers.Broker`."""
        topic = f"topic-{uuid.uuid4().hex[:12]}"
        declare(self.url, f"{topic}-group", [topic])
        return topic

    def _answers(self) -> bool:
        with suppress(amqp.AMQPError, OSError), amqp.Connection(f"{LOOPBACK}:{self.port}", connect_timeout=2):
            return True
        return False

    def close(self) -> None:
        """See RestartableServer: the port mapper too."""
        super().close()
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
