"""Orders. Each is stored with its event in one database transaction, so neither exists without the other."""

import json
import logging
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Blueprint, Response
from sqlalchemy import Engine

import peerseal
from client_service import storage
from client_service.catalogue import BadOrder, Line, priced
from client_service.problems import posted_json, problem
from client_service.routes import AS_USER, httpie
from client_service.users import Users
from peerseal.errors import InsufficientScope, UnsignableRequest
from peerseal.outbox import Outbox

TOPIC = "OrderCreated"
PURPOSE = "trigger_invoicing"
"""The one scope of the event: its consumers may do nothing else with it."""
EVENT_LIFETIME = timedelta(days=7)
"""How long an order may wait for its approval, and its event for a consumer."""
APPROVED_UP_TO = 500_000
"""The largest amount, in cents, of an order that needs no approval."""

log = logging.getLogger("client_service.orders")


class ApprovedLate(Exception):
    """The order waited for its approval until its event expired."""


class Orders:
    """Orders in ``database``; ``outbox`` sends their events, which are signed for ``audience``."""

    def __init__(self, identity: peerseal.Identity, database: Engine, outbox: Outbox, audience: str) -> None:
        self._identity = identity
        self._database = database
        self._outbox = outbox
        self._audience = audience

    def place(self, user: peerseal.User, lines: list[Line]) -> dict[str, Any]:
        """The new order, stored with its signed event. The event of an order that needs an approval is kept until then.
        Raises InsufficientScope, CallerNotAllowed or TrustUnavailable, and then stores nothing."""
        own = user.scopes & {PURPOSE}  # otherwise the domain document must derive it from orders:write
        transaction = self._identity.mint_transaction(user, scope={"orders:write", *own})
        at = datetime.fromtimestamp(int(self._identity.clock()), UTC)
        order = storage.Order(transaction.id, user.issuer, user.name, f"{at:%Y-%m-%dT%H:%M:%SZ}", lines)
        if order.amount > APPROVED_UP_TO:
            order = replace(order, state=storage.AWAITING_APPROVAL)
        with peerseal.carrying(transaction):
            event = self._event(order, at)
        with self._database.begin() as connection:
            storage.add(connection, order)
            if order.state == storage.ACCEPTED:
                self._outbox.add(connection, TOPIC, event.payload, event.headers)
            else:
                storage.hold(connection, order, event)
        self._outbox.wake()
        log.info("transaction %s: %s ordered, event %s, %s", order.transaction_id, user.name, event.id, order.state)
        return order.to_json()

    def approve(self, transaction_id: str, administrator: peerseal.User) -> None:
        """Sends the event of an order that waits for approval. Raises LookupError if no such order waits, and
        ApprovedLate if its event has expired meanwhile."""
        with self._database.begin() as connection:
            event = storage.release(connection, transaction_id)
            if event is None:
                raise LookupError(transaction_id)
            if self._identity.clock() >= event.good_until:
                log.warning("transaction %s: approved too late, event %s has expired", transaction_id, event.id)
                raise ApprovedLate(transaction_id)
            self._outbox.add(connection, TOPIC, event.payload, event.headers)
        self._outbox.wake()
        log.info("transaction %s: approved by %s, event %s", transaction_id, administrator.name, event.id)

    def to_approve(self) -> list[dict[str, Any]]:
        """All users' orders that wait for an approval, or waited too long, the newest first."""
        held = storage.held_orders(self._database, self._identity.clock())
        return [{"user": order.user, **order.to_json()} for order in held]

    def of(self, user: peerseal.User) -> list[dict[str, Any]]:
        """The user's orders, the newest first. Raises InsufficientScope."""
        if "orders:read" not in user.scopes:
            raise InsufficientScope("the user's token does not allow orders:read")
        found = storage.orders_of(self._database, user.issuer, user.name, self._identity.clock())
        return [order.to_json() for order in found]

    def _event(self, order: storage.Order, at: datetime) -> storage.SignedEvent:
        """The published payload. It does not name the user: only the event token does, which this service alone can
        sign."""
        event_id = str(uuid.uuid4())
        payload = json.dumps({"eventID": event_id, **order.public_json()}).encode("utf-8")
        try:
            headers = self._identity.sign_event(
                payload,
                topic=TOPIC,
                audience=self._audience,
                scope=PURPOSE,
                event_id=event_id,
                lifetime=EVENT_LIFETIME,
            )
        except UnsignableRequest as error:  # the user lacks the scope, and nothing derives it for this service
            raise InsufficientScope(str(error)) from error
        return storage.SignedEvent(event_id, payload, headers, int((at + EVENT_LIFETIME).timestamp()))


def blueprint(users: Users, orders: Orders) -> Blueprint:
    """The user's orders."""
    routes = Blueprint("orders", __name__)

    @routes.post("/orders")
    @httpie(f"'items[0][itemID]=pen' 'items[0][quantity]:=2' {AS_USER}")
    def place_order() -> tuple[dict[str, Any], int] | Response:
        """Orders something for the user, and publishes OrderCreated. Prices are in cents."""
        user = users.needed()
        try:
            lines = priced(posted_json())
        except BadOrder as error:
            return problem(400, "bad_order", str(error))
        return orders.place(user, lines), 201

    @routes.get("/orders")
    @httpie(AS_USER)
    def list_orders() -> dict[str, Any]:
        """The user's orders, the newest first."""
        return {"orders": orders.of(users.needed())}

    return routes
