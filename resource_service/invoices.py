"""Invoices: the consumer of orders makes them in the user's name; services that act for that user can read them."""

import logging
from typing import Any

from flask import Blueprint, Response

import peerseal
from peerseal.flask import PeerAuth
from resource_service.database import EventInvoicedOtherwise, Invoices
from resource_service.problems import posted_json, problem
from resource_service.transaction import needed_transaction

LARGEST = 10**12
"""Cents."""

log = logging.getLogger("resource_service.invoices")


def blueprint(auth: PeerAuth, invoices: Invoices) -> Blueprint:
    """The user's invoices."""
    routes = Blueprint("invoices", __name__)

    @routes.post("/invoices")
    @auth.require(scope="trigger_invoicing", transaction=True)
    def make_invoice() -> tuple[dict[str, Any], int] | Response:
        """Invoices one event; repeated calls return the same invoice. The user, the transaction, the event and its
        publisher come from the transaction token, which the call's signature binds; the body has the amount."""
        amount, transaction = amount_of(posted_json()), needed_transaction()
        event_id = transaction.facts.get("event_id")
        if amount is None:
            return problem(400, "bad_invoice", 'The body is {"amount": …}, in cents.')
        if not isinstance(event_id, str):
            return problem(400, "no_event", "The transaction does not come from an event.")
        try:
            invoice, is_new = invoices.add(transaction, event_id, amount)
        except EventInvoicedOtherwise as error:
            return problem(409, "invoiced_otherwise", str(error))
        log.info("transaction %s: %s", transaction.id, said_of(event_id, transaction, amount, is_new))
        return invoice.to_json(), 201 if is_new else 200

    @routes.get("/invoices")
    @auth.require(scope="invoices:read", transaction=True)
    def list_invoices() -> dict[str, Any]:
        """The user's invoices, the newest first. Amounts are in cents."""
        transaction = needed_transaction()
        found = invoices.of(transaction.authentication.get("iss", ""), transaction.user)
        return {"invoices": [invoice.to_json() for invoice in found]}

    return routes


def amount_of(body: Any) -> int | None:
    """The amount of ``{"amount": …}``; None for anything else."""
    if not isinstance(body, dict) or body.keys() != {"amount"}:
        return None
    amount = body["amount"]
    return amount if type(amount) is int and 0 <= amount <= LARGEST else None


def said_of(event_id: str, transaction: peerseal.Transaction, amount: int, is_new: bool) -> str:
    """One line for the log."""
    if is_new:
        return f"event {event_id} of {transaction.workload}: {transaction.user} owes {amount} cents"
    return f"event {event_id} of {transaction.workload} was invoiced before"
