"""A consumer as a process of its own: ``python -m tests.brokers.invoicer``.

It is the service that the environment names, and stores one invoice an event in the database at ``DATABASE_URL``. It
reads from the broker at ``BROKER_URL`` as a member of ``GROUP`` on ``TOPIC``, with the ``INLET`` settings in JSON.
SIGTERM ends it.
"""

import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Engine, create_engine

import peerseal
from peerseal import Event, EventVerifier
from peerseal.inbox import first_time
from peerseal.messaging import EventConsumer, open_inlet, open_outlet
from tests.messaging.world import AUDIENCE, INBOX, INVOICES, SCOPE, metadata

PUBLISHER = "client-service"


def invoicing(engine: Engine) -> Callable[[Event], None]:
    """What is done with an event: its row in the inbox and its invoice, in one transaction."""

    def handle(event: Event) -> None:
        with engine.begin() as connection:
            if first_time(connection, INBOX, event, now=0):
                connection.execute(INVOICES.insert().values(event_id=event.id, user=event.user, at=event.issued_at))

    return handle


def main() -> None:
    """Work until SIGTERM."""
    engine = create_engine(os.environ["DATABASE_URL"])
    metadata.create_all(engine)
    identity = peerseal.Identity.from_env().start()
    verifier = EventVerifier(identity.trust, audience=AUDIENCE, allow={PUBLISHER: {SCOPE}}, max_age=timedelta(days=7))
    url = os.environ["BROKER_URL"]
    inlet = open_inlet(url, os.environ["GROUP"], [os.environ["TOPIC"]], settings=json.loads(os.environ["INLET"]))
    consumer = EventConsumer(identity, verifier, inlet, open_outlet(url))
    signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
    consumer.run(invoicing(engine))


if __name__ == "__main__":
    main()
