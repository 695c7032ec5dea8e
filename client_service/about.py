"""What this service says about itself: its key, which any client may read and the operator may replace, and for load
balancers and Prometheus its readiness and its metrics. They show no user's data; still, keep ``/metrics`` inside."""

import hmac

from flask import Blueprint, Response, request

import peerseal
from client_service.problems import problem
from client_service.routes import httpie
from peerseal.outbox import Outbox


def blueprint(identity: peerseal.Identity, secret: str | None, outbox: Outbox) -> Blueprint:
    """The routes. Without a ``secret``, the route that replaces the key refuses every request."""
    identity.add_metrics(lambda: outbox_metrics(outbox))
    routes = Blueprint("about", __name__)

    @routes.get("/my-public-credentials")
    def my_public_credentials() -> dict[str, str]:
        """The key that this service signs with now."""
        return identity.credentials.to_json()

    @routes.post("/refresh-my-credentials")
    @httpie("Operator-Secret:$CLIENT_OPERATOR_SECRET")
    def refresh_my_credentials() -> dict[str, str] | Response:
        """Publishes a new key, which signs after a lead time, and shows it. For the operator."""
        given = request.headers.get("Operator-Secret", "")
        if secret is None or not hmac.compare_digest(given.encode(), secret.encode()):
            return problem(403, "operator_secret_required", "Send the operator's secret in Operator-Secret.")
        return identity.rotate().to_json()

    @routes.get("/readyz")
    def readyz() -> tuple[dict[str, bool], int]:
        """Whether this service can sign its calls, and check its users, now."""
        ready = identity.is_ready()
        return {"ready": ready}, 200 if ready else 503

    @routes.get("/metrics")
    def metrics() -> Response:
        """The metrics of this service, for Prometheus."""
        return Response(identity.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


def outbox_metrics(outbox: Outbox) -> list[peerseal.Metric]:
    """Add the depth and the age of the outbox to the metrics of the identity."""
    status = outbox.status()
    values = {
        "client_outbox_waiting": ("Events that wait for the broker.", status.waiting),
        "client_outbox_oldest_seconds": ("Age of the oldest event that waits.", status.oldest_age or 0),
        "client_outbox_put_aside": ("Events that the broker refused.", status.put_aside),
    }
    return [peerseal.Metric(name, "gauge", help, (({}, value),)) for name, (help, value) in values.items()]
