"""The example services, the third party and the identity provider in this process, on a registry in memory: a test
client for people, HTTP between services."""

import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

import client_service.app
import resource_service.app
from client_service.settings import Settings
from demo.case_service import app as case_service
from demo.case_service import storage as case_storage
from demo.identity_provider import app as identity_provider
from demo.identity_provider.settings import Settings as LoginSettings
from peerseal import EventVerifier, Identity, Transaction, User, carrying
from peerseal.messaging import CODE_HEADER, EventConsumer, Message
from peerseal.outbox import Outbox
from peerseal.protocol.policies import UserIssuer
from peerseal.testing import MemoryRegistry
from resource_service.database import Invoices, open_database
from resource_service.invoicing import TOPIC, make_consumer, make_invoicing
from resource_service.settings import ConsumerSettings
from tests.support.brokers import Broker, Ends
from tests.support.processes import free_port

ISSUER_URL = "https://login.demo.internal"
PASSWORD, SECRET = "everybody's in the demo", "only the operator knows"
AUDIENCE, PURPOSE = "jobs.example.com", "trigger_invoicing"
PEN = {"itemID": "pen", "quantity": 2}


class World:
    """The domain's settings as they should be, both services, and no member on the topic yet."""

    def __init__(self, registry: MemoryRegistry, folder: Path, broker: Broker) -> None:
        self._opened = ExitStack()
        self.registry = registry
        self.login_key = folder / "login.pem"
        self.login = identity_provider.build_app(
            LoginSettings(issuer=ISSUER_URL, password=PASSWORD, key_file=self.login_key), registry.clock
        )
        keys = json.dumps(self.login.test_client().get("/.well-known/jwks.json").get_json())
        self.issuer = UserIssuer(ISSUER_URL, "client-service", jwks=keys)
        registry.set_domain(minters=["client-service", "invoicing"], issuers=[self.issuer])
        self.folder = folder
        self.broker = broker
        self.client, self.resource = registry.identity("client-service"), registry.identity("resource-service")
        self.invoicing, self.third = registry.identity("invoicing"), registry.identity("case-service")
        self.resource_port, self.cases_port, self.login_port = free_port(), free_port(), free_port()
        self.database: Engine = open_database(f"sqlite:///{folder / 'invoices.sqlite3'}")
        self.invoices = Invoices(self.database, registry.clock)
        self.resource_app = resource_service.app.build_app(self.resource, self.invoices, self.cases_url)
        self.cases_database: Engine = case_storage.open_database(f"sqlite:///{folder / 'cases.sqlite3'}")
        self.cases_app = case_service.build_app(self.third, case_storage.Cases(self.cases_database, registry.clock))
        for database in (self.database, self.cases_database):
            self._opened.callback(database.dispose)
        self._opened.enter_context(served_at(self.login_port, self.login))
        self.ends = self._opened.enter_context(Ends(broker))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    # ---- the edge

    def settings(self, **changes: Any) -> Settings:
        """Those of client-service."""
        given: dict[str, Any] = {
            "state": self.folder,
            "database_url": f"sqlite:///{self.folder / 'orders.sqlite3'}",
            "resource_url": f"http://127.0.0.1:{self.resource_port}",
            "operator_secret": SECRET,
            "login_url": f"http://127.0.0.1:{self.login_port}",
            "broker_url": self.broker.url,
        }
        return Settings(**given | changes)

    def client_app(self, **changes: Any) -> Flask:
        """One more worker of client-service."""
        app = client_service.app.build_app(self.client, self.settings(**changes))
        outbox: Outbox = app.extensions["outbox"]
        self._opened.callback(outbox.stop)
        return app

    def person(self, **changes: Any) -> "Person":
        """A user who calls a worker of client-service."""
        return Person(self.client_app(**changes).test_client())

    # ---- resource-service and its consumer

    @property
    def cases_url(self) -> str:
        """Where the third party is, while it is served."""
        return f"http://127.0.0.1:{self.cases_port}"

    def cases_served(self) -> AbstractContextManager[None]:
        """case-service at a real socket, for a while."""
        return served_at(self.cases_port, self.cases_app)

    @contextmanager
    def resource_served(self) -> Iterator[None]:
        """resource-service at a real socket, for a while, and the third party, which it calls."""
        with self.cases_served(), served_at(self.resource_port, self.resource_app):
            yield

    @contextmanager
    def consuming(self, **changes: Any) -> Iterator[EventConsumer]:
        """The invoicing consumer at work, for a while."""
        settings = ConsumerSettings(
            database_url=f"sqlite:///{self.folder / 'inbox.sqlite3'}",
            broker_url=self.broker.url,
            broker_settings=self.broker.settings,
            resource_url=f"http://127.0.0.1:{self.resource_port}",
            events_audience=AUDIENCE,
            **changes,
        )
        consumer = make_consumer(self.invoicing, settings)
        handle = make_invoicing(self.invoicing, settings).handle
        thread = threading.Thread(target=consumer.run, args=(handle,), kwargs={"wait": 0.05})
        thread.start()
        try:
            yield consumer
        finally:
            consumer.stop()
            thread.join()

    # ---- the topic

    def publish(
        self, payload: bytes, *, by: Identity | None = None, signed: bytes | None = None, **changes: Any
    ) -> None:
        """A message on the topic, signed for ada; ``signed`` is the payload that was signed, where that is another."""
        token: dict[str, Any] = {"event_id": "e-1", "transaction_id": "t-1", "subject": "ada"}
        token |= {"topic": TOPIC, "audience": AUDIENCE, "scope": PURPOSE, **changes}
        self.send(payload, (by or self.client).sign_event(payload if signed is None else signed, **token))

    def send(self, payload: bytes, headers: dict[str, str]) -> None:
        """Any message on the topic, confirmed by the broker, and read in the order in which it was sent."""
        outlet = self.ends.outlet()
        outlet.send(TOPIC, payload, [(name, value.encode()) for name, value in headers.items()], b"one partition")
        outlet.flush(10)

    def transaction_of_event(self, event_id: str, *, user: User, scope: str = PURPOSE) -> Transaction:
        """What the consumer's calls carry for an event that client-service signed for that user, once it is proven.
        ``scope`` is what the user's token says, from which the domain may derive the event's."""
        sent: dict[str, Any] = {"topic": TOPIC, "audience": AUDIENCE, "scope": PURPOSE, "event_id": event_id}
        with carrying(self.client.mint_transaction(user, scope=[scope], transaction_id="t-1")):
            headers = self.client.sign_event(b"", **sent)
        allow = {"client-service": {PURPOSE}}
        verifier = EventVerifier(self.invoicing.trust, audience=AUDIENCE, allow=allow, max_age=timedelta(days=1))
        transaction = self.invoicing.transaction_for_event(verifier.verify(b"", headers, topic=TOPIC))
        assert transaction is not None, "the consumer may mint"
        return transaction

    def messages(self, count: int) -> list[Message]:
        """The first on the topic."""
        return self.ends.read(TOPIC, count)

    def refusals(self, count: int) -> list[str]:
        """The codes of the first dead letters, in order of arrival."""
        return [dict(letter.headers)[CODE_HEADER].decode() for letter in self.ends.read(f"{TOPIC}.dlq", count)]

    def invoiced(self, user: str, issuer: str = ISSUER_URL) -> list[int]:
        """The amounts of the user's invoices, the newest first."""
        return [invoice.amount for invoice in self.invoices.of(issuer, user)]


@contextmanager
def served_at(port: int, app: Flask, certificate: Path | None = None) -> Iterator[None]:
    """An application at a real socket, over TLS with a ``certificate``, whose file holds its key, too."""
    tls = None if certificate is None else (str(certificate), str(certificate))
    server = make_server("127.0.0.1", port, app, threaded=True, ssl_context=tls)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


NO_JSON = (b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000)
"""Bodies that are no JSON, that are nested too deeply, or that hold a number too long to be read."""


class Person:
    """Calls client-service with or without a user's token."""

    def __init__(self, client: FlaskClient) -> None:
        self._client = client
        self.headers: dict[str, str] = {}

    def log_in(self, user: str) -> Self:
        """Send that user's token from now on."""
        answer = self.post("/authenticate", {"user": user, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        self.headers = {"Authorization": f"Bearer {answer.get_json()['access_token']}"}
        return self

    def get(self, path: str) -> TestResponse:
        """GET it."""
        return self._client.get(path, headers=self.headers)

    def post(self, path: str, body: Any) -> TestResponse:
        """POST ``body`` as JSON; bytes as they are, under its name."""
        if isinstance(body, bytes):
            return self._client.post(path, data=body, content_type="application/json", headers=self.headers)
        return self._client.post(path, json=body, headers=self.headers)

    def order(self, *items: dict[str, Any]) -> dict[str, Any]:
        """An order that is taken."""
        answer = self.post("/orders", {"items": list(items)})
        assert answer.status_code == 201, answer.text
        placed: dict[str, Any] = answer.get_json()
        return placed


def ask(
    service: Flask, caller: Identity, path: str, transaction: Transaction | None = None, body: Any = None, **sent: str
) -> TestResponse:
    """A call of ``service``, signed by the caller, in that transaction: GET, or POST where there is a body, unless
    ``method`` says otherwise. ``audience`` is resource-service by default."""
    content = b"" if body is None else json.dumps(body).encode()
    headers = {} if transaction is None else {"Txn-Token": transaction.carry()}
    headers |= {} if body is None else {"Content-Type": "application/json"}
    method, audience = sent.get("method", "GET" if body is None else "POST"), sent.get("audience", "resource-service")
    with carrying(transaction):
        bound = {name.lower(): value for name, value in headers.items()}
        token = caller.sign_request(audience, method=method, target=path, headers=bound, body=content)
    headers["Authorization"] = f"Bearer {token}"
    return service.test_client().open(path, method=method, data=content, headers=headers)


def order_payload(**changes: Any) -> bytes:
    """What client-service publishes, of an order without a user."""
    items = [{"itemID": "pen", "quantity": 2, "price": 250}, {"itemID": "notebook", "quantity": 1, "price": 895}]
    order = {"eventID": "e-1", "transactionID": "t-1", "utcTime": "2026-01-01T00:00:00Z", "items": items}
    return json.dumps(order | changes).encode()
