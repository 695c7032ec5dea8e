"""The case service's routes. Run it with ``gunicorn --threads 8 'demo.case_service.app:create_app()'``."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, jsonify

import peerseal
import peerseal.flask
import peerseal.logs
from demo.case_service.settings import database_url
from demo.case_service.storage import CaseOfAnotherUser, Cases, open_database
from peerseal.flask import PeerAuth, current_peer

ALLOW = {"resource-service": {"trigger_invoicing", "cases:read"}}
"""The callers and their scopes. The edge and the consumer are refused, although they are registered."""

log = logging.getLogger("demo.case_service")


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The service with the settings of the environment. Its identity registers the key, or tries until it can."""
    peerseal.logs.configure()
    identity = peerseal.Identity.from_env(environ)
    identity.start()
    return build_app(identity, Cases(open_database(database_url(environ)), identity.clock))


def build_app(identity: peerseal.Identity, cases: Cases) -> Flask:
    """The service for ``identity``, which the caller starts."""
    app = Flask(__name__)
    auth = PeerAuth(app, identity, allow=ALLOW)
    add_cases(app, auth, cases)
    add_health(app, auth, identity)
    return app


def add_cases(app: Flask, auth: PeerAuth, cases: Cases) -> None:
    """The cases, for a service that acts for their user."""

    @app.put("/cases/<id>")
    @auth.require(scope="trigger_invoicing", transaction=True)
    def open_case(id: str) -> dict[str, Any] | Response:
        """The case of this very transaction. Opens it if there is none yet."""
        transaction = needed_transaction()
        try:
            if id != transaction.id:
                raise CaseOfAnotherUser(id)
            case, is_new = cases.opened(id, issuer_of(transaction), transaction.user)
        except CaseOfAnotherUser:
            return not_found()
        log.info("transaction %s: case of %s %s", id, case.user, "opened" if is_new else "told")
        return {**case.to_json(), "chain": chain(transaction)}

    @app.get("/cases")
    @auth.require(scope="cases:read", transaction=True)
    def list_cases() -> dict[str, Any]:
        """The user's cases, the newest first."""
        transaction = needed_transaction()
        found = cases.of(issuer_of(transaction), transaction.user)
        log.info("transaction %s: %d cases of %s told", transaction.id, len(found), transaction.user)
        return {"cases": [case.to_json() for case in found], "chain": chain(transaction)}


def add_health(app: Flask, auth: PeerAuth, identity: peerseal.Identity) -> None:
    """The routes that any client may call."""

    @app.get("/my-public-credentials")
    @auth.public
    def my_public_credentials() -> dict[str, str]:
        """The key that this service signs with now."""
        return identity.credentials.to_json()

    @app.get("/readyz")
    @auth.public
    def readyz() -> tuple[dict[str, bool], int]:
        """Whether this service can verify its callers now."""
        ready = identity.is_ready()
        return {"ready": ready}, 200 if ready else 503


def chain(transaction: peerseal.Transaction) -> list[dict[str, str]]:
    """The caller and the user, as the two tokens of the call prove them."""
    return [{"service": "case-service", "caller": current_peer.service, "user": transaction.user}]


def needed_transaction() -> peerseal.Transaction:
    """The transaction in a route with ``transaction=True``, which refuses calls without one."""
    transaction = peerseal.current_transaction()
    if transaction is None:
        raise LookupError("the route is not marked as one that needs a transaction")
    return transaction


def issuer_of(transaction: peerseal.Transaction) -> str:
    """The issuer that authenticated the user: a name is unique at its issuer only."""
    return str(transaction.authentication.get("iss", ""))


def not_found() -> Response:
    """One answer for another user's case and for a missing case (RFC 9457)."""
    response = jsonify(
        title="case not found", status=404, code="case_not_found", detail="There is no such case in this transaction."
    )
    response.status_code, response.mimetype = 404, "application/problem+json"
    return response
