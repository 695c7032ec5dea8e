"""Profiles, cases and invoices, for services that may read them. Every route is closed unless it says otherwise.

Run it with ``gunicorn 'resource_service.app:create_app()'``; the settings are in `resource_service.settings`.
"""

import os
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

import peerseal
import peerseal.flask
import peerseal.logs
from peerseal.flask import current_peer
from resource_service.database import Invoices, open_database
from resource_service.settings import database_url

ALLOW = {"client-service": {"profiles:read", "invoices:read"}, "invoicing": {"trigger_invoicing"}}
"""Who may call, with which scopes. Nobody else gets in, however well registered."""

PROFILES = {
    "1": {"id": "1", "name": "Ada Lovelace", "city": "London"},
    "2": {"id": "2", "name": "Grace Hopper", "city": "New York"},
    "3": {"id": "3", "name": "Katherine Johnson", "city": "Hampton"},
}


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The service, with its key made and registered, or about to be, as the environment says."""
    peerseal.logs.configure()
    identity = peerseal.Identity.from_env(environ)
    identity.start()
    return build_app(identity, Invoices(open_database(database_url(environ)), identity.clock))


def build_app(identity: peerseal.Identity, invoices: Invoices) -> Flask:
    """The service in the name of ``identity``, which the caller starts."""
    app = Flask(__name__)
    auth = peerseal.flask.PeerAuth(app, identity, allow=ALLOW)
    add_public_routes(app, auth, identity)
    add_profiles(app, auth)
    add_routes_for_users(app, auth, invoices)
    app.register_error_handler(HTTPException, http_error)
    return app


def add_public_routes(app: Flask, auth: peerseal.flask.PeerAuth, identity: peerseal.Identity) -> None:
    """What anybody may see."""

    @app.get("/")
    @auth.public
    def index() -> dict[str, Any]:
        """What this service is."""
        return {"service": identity.id, "callers": sorted(ALLOW)}

    @app.get("/my-public-credentials")
    @auth.public
    def my_public_credentials() -> dict[str, str]:
        """The key that this service signs with now, for anybody to compare with the registry's."""
        return identity.credentials.to_json()

    @app.get("/readyz")
    @auth.public
    def readyz() -> tuple[dict[str, bool], int]:
        """Whether this service can verify its callers now."""
        ready = identity.is_ready()
        return {"ready": ready}, 200 if ready else 503

    @app.get("/metrics")
    @auth.public
    def metrics() -> Response:
        """How this service does, for Prometheus: keep it inside."""
        return Response(identity.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")


def add_profiles(app: Flask, auth: peerseal.flask.PeerAuth) -> None:
    """What services may ask with a user behind them or without."""

    @app.get("/profiles/<id>")
    @auth.require(scope="profiles:read")
    def profile(id: str) -> dict[str, Any] | Response:
        """One profile, which service asked, and for which user, if for any."""
        if id not in PROFILES:
            return problem(404, "profile_not_found", "There is no such profile.")
        transaction = peerseal.current_transaction()
        return {**PROFILES[id], "caller": current_peer.service, "user": transaction and transaction.user}

    @app.post("/profiles/search")
    @auth.require(scope="profiles:read")
    def search() -> dict[str, Any] | Response:
        """The profiles whose name holds the text in the body. The caller's signature covers that body."""
        wanted = request.get_json(silent=True)
        if not isinstance(wanted, dict) or not isinstance(wanted.get("name"), str):
            return problem(400, "bad_search", 'The body is {"name": "…"}.')
        found = [profile for profile in PROFILES.values() if wanted["name"].lower() in profile["name"].lower()]
        return {"profiles": found, "caller": current_peer.service}


def add_routes_for_users(app: Flask, auth: peerseal.flask.PeerAuth, invoices: Invoices) -> None:
    """What is told to services only while they work for a user, and only of that user."""

    @app.get("/cases/<id>")
    @auth.require(scope="trigger_invoicing", transaction=True)
    def case(id: str) -> dict[str, Any] | Response:
        """The case of a transaction, within that very transaction."""
        transaction = current()
        if id != transaction.id:
            return problem(404, "case_not_found", "There is no such case in this transaction.")
        return {"caseID": id, "userID": transaction.user, "state": "open", "caller": current_peer.service}

    @app.get("/invoices")
    @auth.require(scope="invoices:read", transaction=True)
    def list_invoices() -> dict[str, Any]:
        """The user's invoices, the newest first. Amounts are in cents."""
        transaction = current()
        found = invoices.of(transaction.authentication.get("iss", ""), transaction.user)
        return {"invoices": [invoice.to_json() for invoice in found]}


def current() -> peerseal.Transaction:
    """The user's transaction, which ``transaction=True`` has made sure of."""
    transaction = peerseal.current_transaction()
    if transaction is None:
        raise LookupError("the route is not marked as one that needs a transaction")
    return transaction


def problem(status: int, code: str, detail: str) -> Response:
    """An error as RFC 9457 writes it."""
    response = jsonify(title=code.replace("_", " "), status=status, code=code, detail=detail)
    response.status_code, response.mimetype = status, "application/problem+json"
    return response


def http_error(error: HTTPException) -> Response | HTTPException:
    """Flask's own refusals, such as 404 and 405, with a code made from their name. Redirects stay as they are."""
    if error.code is None or error.code < 400:
        return error
    response = problem(error.code, error.name.lower().replace(" ", "_"), error.description or error.name)
    response.headers.extend([header for header in error.get_headers() if header[0] == "Allow"])
    return response
