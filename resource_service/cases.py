"""Cases, each told within its own transaction only."""

from typing import Any

from flask import Blueprint, Response

from peerseal.flask import PeerAuth, current_peer
from resource_service.problems import problem
from resource_service.transaction import needed_transaction


def blueprint(auth: PeerAuth) -> Blueprint:
    """The cases."""
    routes = Blueprint("cases", __name__)

    @routes.get("/cases/<id>")
    @auth.require(scope="trigger_invoicing", transaction=True)
    def case(id: str) -> dict[str, Any] | Response:
        """The case of a transaction, within that very transaction."""
        transaction = needed_transaction()
        if id != transaction.id:
            return problem(404, "case_not_found", "There is no such case in this transaction.")
        return {"caseID": id, "userID": transaction.user, "state": "open", "caller": current_peer.service}

    return routes
