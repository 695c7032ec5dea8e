"""Routes for load balancers and Prometheus. They show no user's data; still, keep ``/metrics`` inside."""

from flask import Blueprint, Response

import peerseal
from peerseal.outbox import Outbox


def blueprint(identity: peerseal.Identity, outbox: Outbox) -> Blueprint:
    """Readiness and metrics, the outbox's among them."""
    identity.add_metrics(lambda: outbox_metrics(outbox))
    routes = Blueprint("health", __name__)

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
    return [
        peerseal.Metric("client_outbox_waiting", "gauge", "Events that wait for the broker.", (({}, status.waiting),)),
        peerseal.Metric(
            "client_outbox_oldest_seconds",
            "gauge",
            "Age of the oldest event that waits.",
            (({}, status.oldest_age or 0),),
        ),
        peerseal.Metric(
            "client_outbox_put_aside", "gauge", "Events that the broker refused.", (({}, status.put_aside),)
        ),
    ]
