"""Three services that trace into a file each: client-service calls resource-service, which publishes an event for
invoicing. ``python -m tests.support.traced`` is invoicing; the others are targets of gunicorn."""

import os
import signal
from datetime import timedelta
from typing import Any

from flask import Flask
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

import peerseal
import peerseal.flask
import peerseal.logs
import peerseal.otel
from peerseal.messaging import EventConsumer, EventPublisher, open_inlet, open_outlet
from tests.support.brokers import BuiltInBroker

AUDIENCE, SCOPE, TOPIC = "jobs.example.com", "trigger_invoicing", "OrderCreated"
SPANS_FILE, BROKER_URL, RESOURCE_URL = "TEST_SPANS_FILE", "TEST_BROKER_URL", "TEST_RESOURCE_URL"
"""The settings."""


def client_service() -> Flask:
    """The edge."""
    identity, app = _started(), Flask("client")
    app.wsgi_app = peerseal.logs.RequestIds(app.wsgi_app)  # type: ignore[method-assign] # as Flask has middleware put in
    session = identity.session("resource-service", os.environ[RESOURCE_URL])

    @app.get("/my-public-credentials")
    def credentials() -> dict[str, Any]:
        return {}

    @app.get("/orders/<id>")
    def order(id: str) -> tuple[bytes, int]:
        answer = session.get(f"/orders/{id}")
        return answer.content, answer.status_code

    return app


def resource_service() -> Flask:
    """The callee, which publishes."""
    identity, app = _started(), Flask("resource")
    auth = peerseal.flask.PeerAuth(app, identity, allow={"client-service": {"orders:read"}})
    publisher = EventPublisher(identity, open_outlet(os.environ[BROKER_URL]))

    @app.get("/my-public-credentials")
    @auth.public
    def credentials() -> dict[str, Any]:
        return {}

    @app.get("/orders/<id>")
    @auth.require(scope="orders:read")
    def order(id: str) -> str:
        publisher.publish(TOPIC, b"{}", audience=AUDIENCE, scope=SCOPE, event_id=id, transaction_id=id)
        publisher.flush()
        return id

    return app


def invoicing() -> None:
    """The consumer, until SIGTERM."""
    identity = _started()
    allow, max_age = {"resource-service": {SCOPE}}, timedelta(days=1)
    verifier = peerseal.EventVerifier(identity.trust, audience=AUDIENCE, allow=allow, max_age=max_age)
    inlet = open_inlet(os.environ[BROKER_URL], "invoicing", [TOPIC], settings=BuiltInBroker.settings)
    consumer = EventConsumer(identity, verifier, inlet, open_outlet(os.environ[BROKER_URL]))
    signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
    print("waiting for", TOPIC, flush=True)
    consumer.run(lambda event: print("invoiced", event.id, flush=True))
    identity.stop()


def _started() -> peerseal.Identity:
    peerseal.logs.configure()
    identity = peerseal.Identity.from_env()
    provider = TracerProvider(resource=Resource.create({"service.name": identity.service}))
    spans = open(os.environ[SPANS_FILE], "a", buffering=1)  # noqa: SIM115 - as long as the process
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=spans, formatter=_line)))
    trace.set_tracer_provider(provider)
    peerseal.otel.start()
    return identity.start()


def _line(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"


if __name__ == "__main__":
    invoicing()
