"""Orders: stored together with the event that tells of them, so that neither is ever there without the other."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response
from sqlalchemy import Engine

import peerseal
from client_service import storage
from client_service.catalogue import BadOrder, Line, priced
from client_service.outbox import Outbox
from client_service.problems import posted_json, problem
from client_service.routes import AS_USER, httpie
from client_service.users import Users
from peerseal.errors import InsufficientScope, UnsignableRequest

TOPIC = "OrderCreated"
PURPOSE = "trigger_invoicing"
"""The one scope that the event has: all that its consumers may do with it."""


class Orders:
    """Orders in ``database``, signed for ``audience``."""

    def __init__(self, identity: peerseal.Identity, database: Engine, audience: str) -> None:
        self._identity = identity
        self._database = database
        self._audience = audience

    def place(self, user: peerseal.User, lines: list[Line]) -> dict[str, Any]:
        """The new order, stored with its signed event. Raises InsufficientScope, CallerNotAllowed or TrustUnavailable,
        and then nothing is stored."""
        own = user.scopes & {PURPOSE}  # else the domain's settings have to derive it from orders:write
        transaction = self._identity.mint_transaction(user, scope={"orders:write", *own})
        at = datetime.fromtimestamp(int(self._identity.clock()), UTC)
        order = storage.Order(transaction.id, user.issuer, user.name, f"{at:%Y-%m-%dT%H:%M:%SZ}", lines)
        with peerseal.carrying(transaction):
            event = self._event(order)
        storage.add(self._database, order, event)
        return order.to_json()

    def of(self, user: peerseal.User) -> list[dict[str, Any]]:
        """The user's orders, the newest first. Raises InsufficientScope."""
        if "orders:read" not in user.scopes:
            raise InsufficientScope("the user's token does not allow orders:read")
        return [order.to_json() for order in storage.orders_of(self._database, user.issuer, user.name)]

    def _event(self, order: storage.Order) -> storage.Unsent:
        """What is published of the order. Whose it is stands in the token, which only this service can sign, and
        nowhere else."""
        event_id = str(uuid.uuid4())
        payload = json.dumps({"eventID": event_id, **order.public_json()}).encode("utf-8")
        try:
            headers = self._identity.sign_event(
                payload, topic=TOPIC, audience=self._audience, scope=PURPOSE, event_id=event_id
            )
        except UnsignableRequest as error:  # neither the user's scope nor derived for this service
            raise InsufficientScope(str(error)) from error
        return storage.Unsent(TOPIC, payload, headers)


def add_routes(app: Flask, users: Users, orders: Orders, outbox: Outbox) -> None:
    """The user's orders."""

    @app.post("/orders")
    @httpie(f"""{AS_USER} items:='[{{"itemID": "pen", "quantity": 2}}]'""")
    def place_order() -> tuple[dict[str, Any], int] | Response:
        """Orders something for the user, and publishes OrderCreated. Prices are in cents."""
        user = users.needed()
        try:
            lines = priced(posted_json())
        except BadOrder as error:
            return problem(400, "bad_order", str(error))
        placed = orders.place(user, lines)
        outbox.wake()
        return placed, 201

    @app.get("/orders")
    @httpie(AS_USER)
    def list_orders() -> dict[str, Any]:
        """The user's orders, the newest first."""
        return {"orders": orders.of(users.needed())}

    app.before_request(outbox.ensure_running)
