"""What a load balancer and Prometheus ask. Neither route tells anything of a user; keep ``/metrics`` inside even so."""

from collections.abc import Callable

from flask import Flask, Response

import peerseal


def add_routes(app: Flask, identity: peerseal.Identity, waiting: Callable[[], int]) -> None:
    """Readiness and metrics. ``waiting`` counts the events that wait for the broker."""

    identity.add_metrics(lambda: [outbox_metric(waiting())])

    @app.get("/readyz")
    def readyz() -> tuple[dict[str, bool], int]:
        """Whether this service can sign its calls, and check its users, now."""
        ready = identity.is_ready()
        return {"ready": ready}, 200 if ready else 503

    @app.get("/metrics")
    def metrics() -> Response:
        """How this service does, for Prometheus."""
        return Response(identity.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")


def outbox_metric(waiting: int) -> peerseal.Metric:
    """The depth of the outbox, beside the metrics of the identity."""
    return peerseal.Metric("client_outbox_waiting", "gauge", "Events that wait for the broker.", (({}, waiting),))
