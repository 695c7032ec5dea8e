"""Approvals of large orders, by administrators: users whose token says ``orders:approve``."""

from typing import Any

from flask import Blueprint, Response

import peerseal
from client_service.orders import ApprovedLate, Orders
from client_service.problems import problem
from client_service.routes import AS_USER, httpie
from client_service.users import Users
from peerseal.errors import InsufficientScope

SCOPE = "orders:approve"


def blueprint(users: Users, orders: Orders) -> Blueprint:
    """The routes of administrators."""
    routes = Blueprint("approvals", __name__)

    def administrator() -> peerseal.User:
        user = users.needed()
        if SCOPE not in user.scopes:
            raise InsufficientScope(f"the user's token does not allow {SCOPE}")
        return user

    @routes.get("/approvals")
    @httpie(AS_USER)
    def list_orders_to_approve() -> dict[str, Any]:
        """The orders that wait for an approval. For administrators."""
        administrator()
        return {"orders": orders.to_approve()}

    @routes.post("/approvals/<id>")
    @httpie(AS_USER)
    def approve(id: str) -> dict[str, Any] | Response:
        """Approves the order of that transaction: it is invoiced to the user who placed it. For administrators."""
        try:
            orders.approve(id, administrator())
        except LookupError:
            return problem(404, "nothing_to_approve", "No order of that transaction waits for an approval.")
        except ApprovedLate:
            return problem(410, "approved_too_late", "The order waited too long; the user must place it again.")
        return {"transactionID": id, "state": "accepted"}

    return routes
