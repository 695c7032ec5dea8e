"""The routes that any client may read."""

from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response

import peerseal
from peerseal.flask import PeerAuth


def blueprint(auth: PeerAuth, identity: peerseal.Identity, callers: Sequence[str]) -> Blueprint:
    """The open routes."""
    routes = Blueprint("about", __name__)

    @routes.get("/")
    @auth.public
    def index() -> dict[str, Any]:
        """The service's name and purpose."""
        return {"service": identity.id, "callers": callers}

    @routes.get("/my-public-credentials")
    @auth.public
    def my_public_credentials() -> dict[str, str]:
        """The key that this service signs with now, for any client to compare with the registry's."""
        return identity.credentials.to_json()

    @routes.get("/readyz")
    @auth.public
    def readyz() -> tuple[dict[str, bool], int]:
        """Whether this service can verify its callers now."""
        ready = identity.is_ready()
        return {"ready": ready}, 200 if ready else 503

    @routes.get("/metrics")
    @auth.public
    def metrics() -> Response:
        """The metrics of this service, for Prometheus: keep them inside."""
        return Response(identity.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
