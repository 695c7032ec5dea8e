"""The payload of OrderCreated, read strictly: what is not exactly an order is none."""

import json
from typing import Any

import pytest

from peerseal.errors import MessageRefused
from resource_service.order_created import OrderCreated
from tests.examples.world import order_payload

LINE = {"itemID": "pen", "quantity": 2, "price": 250}


def test_the_amount_is_the_sum_of_quantity_times_price() -> None:
    order = OrderCreated.read(order_payload())
    assert (order.event_id, order.transaction_id, order.amount) == ("e-1", "t-1", 2 * 250 + 895)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b"1" * 5000,
        order_payload()[:-1],
        order_payload() + b"x",
        order_payload().replace(b'"eventID"', b'"eventID": "e-0", "eventID"'),
        order_payload().replace(b'"price": 250', b'"price": 250, "price": 1'),
    ],
)
def test_what_is_no_json_object_is_refused(payload: bytes) -> None:
    with pytest.raises(MessageRefused) as refusal:
        OrderCreated.read(payload)
    assert refusal.value.code == "malformed_order"


@pytest.mark.parametrize(
    "changes",
    [
        {"userID": "grace"},
        {"amount": 1},
        {"eventID": None},
        {"eventID": ""},
        {"eventID": "e" * 201},
        {"transactionID": 1},
        {"utcTime": "yesterday"},
        {"utcTime": "2026-01-01T00:00:00+01:00"},
        {"utcTime": 1767225600},
        {"items": []},
        {"items": {}},
        {"items": [LINE] * 101},
        {"items": [None]},
        {"items": [{"itemID": "pen", "quantity": 2}]},
        {"items": [{**LINE, "discount": 1}]},
        {"items": [{**LINE, "itemID": 7}]},
        *({"items": [{**LINE, "quantity": quantity}]} for quantity in (0, -1, 10_001, 1.0, "1", True, None)),
        *({"items": [{**LINE, "price": price}]} for price in (-1, 2.5, "250", False, 10**9, None)),
    ],
)
def test_an_order_with_anything_else_in_it_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageRefused) as refusal:
        OrderCreated.read(order_payload(**changes))
    assert refusal.value.code == "malformed_order"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e3", "1E400"])
def test_numbers_that_are_no_whole_ones_are_refused(number: str) -> None:
    with pytest.raises(MessageRefused):
        OrderCreated.read(json.dumps(json.loads(order_payload())).replace("250", number).encode())
