"""This service's own key, which any client may read, and its replacement by the operator."""

import hmac

from flask import Blueprint, Response, request

import peerseal
from client_service.problems import problem
from client_service.routes import httpie


def blueprint(identity: peerseal.Identity, secret: str | None) -> Blueprint:
    """The routes for the key. Without a ``secret``, the route that replaces the key refuses every request."""
    routes = Blueprint("credentials", __name__)

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

    return routes
