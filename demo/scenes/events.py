"""An order and its event: which messages become an invoice, and which do not."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peerseal
from demo.httpie import http
from demo.scenes.stage import Stage, wait_until
from demo.show import bearer
from demo.stack import TOPIC
from demo.topic import Topic

AUDIENCE, PURPOSE = "jobs.example.com", "trigger_invoicing"
ITEMS = '[{"itemID": "slide-rule", "quantity": 2}, {"itemID": "pen", "quantity": 3}]'

LETTERS = 5
"""The messages that these scenes put aside."""


def order(stage: Stage) -> None:
    """From the login to the invoice."""
    show, url, ada = stage.show, stage.client_url, bearer(stage.user_token("ada"))
    show.scene(
        "An order becomes an invoice",
        "client-service prices the order and publishes OrderCreated, signed for ada's transaction. The invoicing "
        "consumer verifies it, asks resource-service for the case in ada's name, and stores the invoice. Prices are in "
        "cents.",
    )
    placed = show.call("POST", f"{url}/orders", ada, f"items:={ITEMS}", status=201).json
    seconds = wait_until(lambda: bool(http(f"{url}/invoices", ada).json["invoices"]))
    show.say(f"{seconds:.1f} s later, with the time of a call:")
    found = show.call(f"{url}/invoices", ada, status=200).json["invoices"]
    show.expect([one["transactionID"] for one in found] == [placed["transactionID"]], "there is one invoice for it")
    show.expect(found[0]["amount"] == 2 * 4900 + 3 * 250, "the amount is the sum of the signed prices")
    show.expect(found[0]["userID"] == "ada", "and it is ada's, although the message's body names no user")


def refused(stage: Stage) -> None:
    """Messages on the topic that no consumer should believe."""
    show = stage.show
    show.scene(
        "On the topic, and refused",
        "An attacker can write to the topic. Each message goes to OrderCreated.dlq with its code and origin.",
    )
    with topic_of(stage) as topic:
        payload, headers = signed(stage.client, "t-1", "e-1")
        topic.send(payload.replace(b"4900", b"1"), headers)
        topic.send(*signed_by_another(stage))
        topic.send(*signed(stage.client, "t-2", "e-2", transaction_id="of-somebody-else"))
        topic.send(payload, {"authorization": f"Bearer {stage.token('POST', '/orders', payload.decode())}"})
        letters = topic.dead_letters(4)
    cases = {
        "wrong_payload": "a price was changed after client-service signed",
        "caller_not_allowed": "reporting-service, well registered, signed an order",
        "wrong_transaction": "the token is for another transaction than the body",
        "wrong_type": "a token that was meant for an HTTP request",
    }
    for letter, (code, what) in zip(letters, cases.items(), strict=True):
        show.expect(letter.code == code, f"{what}: {letter.code}, {letter.origin}")
    show.expect(len(invoices(stage)) == 1, "ada still has one invoice")


def delivered_again(stage: Stage) -> None:
    """A copy of the message that was invoiced."""
    show = stage.show
    show.scene("The same event once more", "Brokers deliver again, and readers can copy a message: it counts once.")
    invoiced = invoices(stage)[0]["transactionID"].encode()
    with topic_of(stage) as topic:
        original = next(message for message in topic.orders(5) if invoiced in message.payload)
        topic.send(original.payload, {name: value.decode("ascii") for name, value in original.headers})
        topic.send(b"nothing", {})  # sent after the copy: once this message is put aside, the copy was handled
        last = topic.dead_letters(LETTERS)[-1]
    show.expect(last.code == "missing_token", "what came behind it, without a token, was put aside", show=False)
    show.expect(len(invoices(stage)) == 1, "the copy was read, and ada still has one invoice")


def event_token_in_a_call(stage: Stage) -> None:
    """The token of an event at an HTTP endpoint."""
    show = stage.show
    show.scene("The token of an event at an HTTP endpoint", "Each kind of token is valid for one purpose.")
    _, headers = signed(stage.client, "t-3", "e-3")
    token = headers["authorization"].removeprefix("Bearer ")
    show.call(f"{stage.resource_url}/profiles/1", bearer(token), status=401, code="wrong_type")


def signed(
    identity: peerseal.Identity, transaction: str, event: str, *, transaction_id: str | None = None
) -> tuple[bytes, dict[str, str]]:
    """An order without a user; ``transaction_id``, if given, is signed in place of the payload's transaction."""
    items = [{"itemID": "slide-rule", "quantity": 1, "price": 4900}]
    order = {"eventID": event, "transactionID": transaction, "utcTime": "2026-01-01T00:00:00Z", "items": items}
    payload = json.dumps(order).encode()
    sent: dict[str, Any] = {"topic": TOPIC, "audience": AUDIENCE, "scope": PURPOSE, "event_id": event}
    return payload, identity.sign_event(payload, transaction_id=transaction_id or transaction, **sent)


def signed_by_another(stage: Stage) -> tuple[bytes, dict[str, str]]:
    """The same order from another registered service."""
    reporting = peerseal.Identity.from_env(stage.stack.service_settings("reporting-service")).start()
    try:
        return signed(reporting, "t-4", "e-4")
    finally:
        reporting.stop()


def invoices(stage: Stage) -> list[dict[str, Any]]:
    """Ada's invoices."""
    return list(http(f"{stage.client_url}/invoices", bearer(stage.user_token("ada"))).json["invoices"])


@contextmanager
def topic_of(stage: Stage) -> Iterator[Topic]:
    """The topic, while the context lasts."""
    topic = Topic(stage.broker_url)
    try:
        yield topic
    finally:
        topic.close()
