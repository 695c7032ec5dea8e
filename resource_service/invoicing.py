"""The consumer of ``OrderCreated``, a service of its own: one invoice for each order, however often it is told of.

Run it with ``python -m resource_service.invoicing``; SIGTERM ends it once the message under way is done. The settings
are in `resource_service.settings`.
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import quote

import requests

import peerseal
import peerseal.logs
from peerseal.errors import MessageRefused
from peerseal.messaging import EventConsumer, open_inlet, open_outlet
from resource_service.database import Invoices, open_database
from resource_service.order_created import OrderCreated
from resource_service.settings import ConsumerSettings

TOPIC = "OrderCreated"
GROUP = "invoicing"
PUBLISHERS = {"client-service": {"trigger_invoicing"}}
"""Who may send orders, and to what end. Nobody else is believed, however well registered."""
MAX_AGE = timedelta(days=7)

log = logging.getLogger("resource_service.invoicing")


class Invoicing:
    """What is done with a proven event. ``resource`` calls resource-service, in the name of the event's user."""

    def __init__(self, invoices: Invoices, resource: requests.Session) -> None:
        self._invoices = invoices
        self._resource = resource

    def handle(self, event: peerseal.Event) -> None:
        """Raises MessageRefused for what no order is, and requests.RequestException where the case cannot be had: then
        nothing is stored, and the event comes again."""
        order = OrderCreated.read(event.payload)
        if order.event_id != event.id:
            raise MessageRefused("wrong_event", "the payload names another event than the token")
        if order.transaction_id != event.transaction_id:
            raise MessageRefused("wrong_transaction", "the payload names another transaction than the token")
        self._resource.get(f"/cases/{quote(event.transaction_id, safe='')}").raise_for_status()
        if self._invoices.add(event, order.amount):
            log.info("invoiced event %s", event.id)
        else:
            log.info("event %s was invoiced before", event.id)


def make_consumer(identity: peerseal.Identity, settings: ConsumerSettings) -> EventConsumer:
    """The consumer in the name of ``identity``, a member of its group from now on."""
    verifier = peerseal.EventVerifier(
        identity.trust, audience=settings.events_audience, allow=PUBLISHERS, max_age=MAX_AGE, clock=identity.clock
    )
    inlet = open_inlet(settings.broker_url, GROUP, [TOPIC], settings=settings.broker_settings)
    dead_letters = open_outlet(settings.broker_url, settings=settings.broker_settings)
    return EventConsumer(identity, verifier, inlet, dead_letters)


def make_invoicing(identity: peerseal.Identity, settings: ConsumerSettings) -> Invoicing:
    """What it does with each. A call that fails is not tried again here: the consumer does that, and counts it."""
    resource = identity.session("resource-service", settings.resource_url, retries=0)
    return Invoicing(Invoices(open_database(settings.database_url), identity.clock), resource)


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Consume until SIGTERM or Ctrl-C; → the exit code."""
    peerseal.logs.configure()
    settings = ConsumerSettings.from_env(environ)
    identity = peerseal.Identity.from_env(environ).start()
    try:
        invoicing = make_invoicing(identity, settings)
        consumer = make_consumer(identity, settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: consumer.stop())
        log.info("waiting for %s", TOPIC)
        consumer.run(invoicing.handle)
    finally:
        identity.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
