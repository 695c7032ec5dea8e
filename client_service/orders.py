"""Orders: stored together with the event that tells of them, so that neither is ever there without the other."""

import json
import logging
import uuid
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, request
from sqlalchemy import Engine

import peerseal
from client_service import storage
from client_service.catalogue import BadOrder, Line, priced
from client_service.problems import problem
from client_service.routes import AS_USER, httpie
from client_service.users import Users
from peerseal.errors import InsufficientScope
from peerseal.outbox import Outbox

TOPIC = "OrderCreated"
PURPOSE = "trigger_invoicing"
"""The one scope that the event has: all that its consumers may do with it."""

log = logging.getLogger("client_service.orders")


class Orders:
    """Orders in ``database``, whose events go out by ``outbox``, signed for ``audience``."""

    def __init__(self, identity: peerseal.Identity, database: Engine, outbox: Outbox, audience: str) -> None:
        self._identity = identity
        self._database = database
        self._outbox = outbox
        self._audience = audience

    def place(self, user: peerseal.User, lines: list[Line]) -> dict[str, Any]:
        """The new order, stored with its signed event. Raises InsufficientScope, CallerNotAllowed or TrustUnavailable,
        and then nothing is stored."""
        transaction = self._identity.mint_transaction(user, scope=("orders:write", PURPOSE))
        at = datetime.fromtimestamp(int(self._identity.clock()), UTC)
        order = storage.Order(transaction.id, user.issuer, user.name, f"{at:%Y-%m-%dT%H:%M:%SZ}", lines)
        with peerseal.carrying(transaction):
            event_id, payload, headers = self._event(order)
        with self._database.begin() as connection:
            storage.add(connection, order)
            self._outbox.add(connection, TOPIC, payload, headers)
        self._outbox.wake()
        log.info("transaction %s: %s ordered, %s is event %s", transaction.id, user.name, TOPIC, event_id)
        return order.to_json()

    def of(self, user: peerseal.User) -> list[dict[str, Any]]:
        """The user's orders, the newest first. Raises InsufficientScope."""
        if "orders:read" not in user.scopes:
            raise InsufficientScope("the user's token does not allow orders:read")
        return [order.to_json() for order in storage.orders_of(self._database, user.issuer, user.name)]

    def _event(self, order: storage.Order) -> tuple[str, bytes, dict[str, str]]:
        """What is published of the order: id, payload and signed headers. Whose it is stands in the token, which only
        this service can sign, and nowhere else."""
        event_id = str(uuid.uuid4())
        payload = json.dumps({"eventID": event_id, **order.public_json()}).encode("utf-8")
        headers = self._identity.sign_event(
            payload, topic=TOPIC, audience=self._audience, scope=PURPOSE, event_id=event_id
        )
        return event_id, payload, headers


def blueprint(users: Users, orders: Orders) -> Blueprint:
    """The user's orders."""
    routes = Blueprint("orders", __name__)

    @routes.post("/orders")
    @httpie(f"""{AS_USER} items:='[{{"itemID": "pen", "quantity": 2}}]'""")
    def place_order() -> tuple[dict[str, Any], int] | Response:
        """Orders something for the user, and publishes OrderCreated. Prices are in cents."""
        user = users.needed()
        try:
            lines = priced(request.get_json(silent=True))
        except BadOrder as error:
            return problem(400, "bad_order", str(error))
        return orders.place(user, lines), 201

    @routes.get("/orders")
    @httpie(AS_USER)
    def list_orders() -> dict[str, Any]:
        """The user's orders, the newest first."""
        return {"orders": orders.of(users.needed())}

    return routes
