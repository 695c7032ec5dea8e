"""A program's own Kafka client, for programs without the SDK: ``python -m demo.publish FILE TOKEN`` sends the order in
the file with its event's token, and returns once the broker has confirmed it.

``BROKER_URL``, ``BROKER_CONFIG_FILE`` and ``BROKER_LOGIN`` are those of the example services; a login also needs
the settings of the service (``PEERSEAL_SERVICE``, …).
"""

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import peerseal
from client_service.settings import Settings
from demo.domain import TOPIC
from peerseal.errors import ConfigurationError
from peerseal.messaging import login_settings, open_outlet

CONFIRMED_WITHIN = 30.0  # seconds


def main(file: Path, token: str, environ: Mapping[str, str] = os.environ) -> int:
    """Send the file; → the exit code. Raises ConfigurationError or BrokerUnavailable."""
    broker = Settings.from_env(environ)
    if broker.broker_url is None:
        raise ConfigurationError("BROKER_URL is not set: give kafka://host:port or amqp://host")
    with ExitStack() as ending:
        options = dict(broker.broker_settings)
        if broker.broker_login is not None:
            identity = peerseal.Identity.from_env(environ).start()
            ending.callback(identity.stop)
            options = login_settings(identity, broker.broker_url, broker.broker_login) | options
        outlet = open_outlet(broker.broker_url, settings=options)
        ending.callback(outlet.close)
        outlet.send(TOPIC, file.read_bytes(), [("authorization", f"Bearer {token}".encode("ascii"))])
        outlet.flush(CONFIRMED_WITHIN)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
