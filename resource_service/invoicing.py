"""The consumer of ``OrderCreated``, a separate service: one invoice for each order, whatever the number of deliveries.

Run it with ``python -m resource_service.invoicing``; SIGTERM ends it after the current message. The settings
are in `resource_service.settings`.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from urllib.parse import quote

import requests
from sqlalchemy import Engine, MetaData

import peerseal
import peerseal.logs
from peerseal.errors import MessageRefused
from peerseal.inbox import first_time, inbox_table
from peerseal.messaging import EventConsumer, login_settings, open_inlet, open_outlet
from resource_service.database import LONGEST_ISSUER, open_database
from resource_service.order_created import OrderCreated
from resource_service.settings import ConsumerSettings

TOPIC = "OrderCreated"
GROUP = "invoicing"
PURPOSE = {"trigger_invoicing"}
"""The scope with which the configured publishers may send orders; events of other services are refused."""
FINAL = frozenset(("case_not_found", "bad_invoice", "invoiced_otherwise"))
"""Codes with which resource-service refuses one order for good: further attempts would block all later orders."""

log = logging.getLogger("resource_service.invoicing")

metadata = MetaData()
INBOX = inbox_table(metadata)


class Invoicing:
    """Handles a verified event. ``resource`` calls resource-service in the name of the event's user. ``database`` has
    the inbox, which counts each event once."""

    def __init__(self, database: Engine, resource: requests.Session, clock: Callable[[], float]) -> None:
        self._database = database
        self._resource = resource
        self._clock = clock

    def handle(self, event: peerseal.Event) -> None:
        """Raises MessageRefused for a payload that is not the order of its token, or for an order that is refused for
        good. Raises requests.RequestException if the case or the invoice is unavailable now; then nothing is
        counted, and the event comes again. For an event that was invoiced already, resource-service returns the
        same invoice."""
        order = OrderCreated.read(event.payload)
        if order.event_id != event.id:
            raise MessageRefused("wrong_event", "the payload names another event than the token")
        if order.transaction_id != event.transaction_id:
            raise MessageRefused("wrong_transaction", "the payload names another transaction than the token")
        check_user(event)
        with self._database.begin() as connection:
            if first_time(connection, INBOX, event, now=self._clock()):
                self._invoice(event, order)
            else:
                log.info("transaction %s: event %s was handled before", event.transaction_id, event.id)

    def _invoice(self, event: peerseal.Event, order: OrderCreated) -> None:
        check_taken(self._resource.get(f"/cases/{quote(event.transaction_id, safe='')}"))
        answer = self._resource.post("/invoices", json={"amount": order.amount})
        check_taken(answer)
        invoice = answer.json()["invoiceID"]
        log.info(
            *("transaction %s: event %s of %s is invoice %s", event.transaction_id, event.id, event.publisher, invoice)
        )


def check_user(event: peerseal.Event) -> None:
    """Raises MessageRefused for an event without a user, or with an issuer that cannot be stored: resource-service
    would refuse it each time."""
    issuer, domain = event.authentication.get("iss", ""), event.issuer.partition("/")[0]
    if not isinstance(issuer, str) or len(issuer) > LONGEST_ISSUER or not issuer.isprintable():
        raise MessageRefused("malformed_user", "the issuer of the user's token is no printable text, or too long")
    if not issuer and event.user.startswith(f"{domain}/"):
        raise MessageRefused("no_user", "the event carries no user: a service cannot order in its own name")


def check_taken(answer: requests.Response) -> None:
    """Raises MessageRefused for a refusal for good, and requests.HTTPError for any other."""
    if 400 <= answer.status_code < 500:
        try:
            code = str(answer.json()["code"])
        except (requests.JSONDecodeError, KeyError, TypeError):
            code = ""
        if code in FINAL:
            raise MessageRefused(code, f"resource-service answers {answer.status_code}")
    answer.raise_for_status()


def make_consumer(identity: peerseal.Identity, settings: ConsumerSettings) -> EventConsumer:
    """The consumer for ``identity``; it joins its group."""
    verifier = peerseal.EventVerifier(
        identity.trust,
        audience=settings.events_audience,
        allow=dict.fromkeys(settings.events_publishers, PURPOSE),
        max_age=settings.events_max_age,
        clock=identity.clock,
    )
    broker = {**login_settings(identity, settings.broker_url, settings.broker_login), **settings.broker_settings}
    inlet = open_inlet(settings.broker_url, GROUP, [TOPIC], settings=broker)
    dead_letters = open_outlet(settings.broker_url, settings=broker)
    return EventConsumer(identity, verifier, inlet, dead_letters)


def make_invoicing(identity: peerseal.Identity, settings: ConsumerSettings) -> Invoicing:
    """The handler of each event. It does not retry failed calls: the consumer does, and counts the attempts."""
    resource = identity.session("resource-service", settings.resource_url, retries=0)
    return Invoicing(open_database(settings.database_url, metadata), resource, identity.clock)


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
