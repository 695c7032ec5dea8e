"""Strict parsing of ``OrderCreated``: a publisher's signature proves who wrote the payload, not that it is valid."""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from peerseal.errors import MessageRefused

MAX_LINES, MAX_QUANTITY, MAX_PRICE = 100, 10_000, 100_000_000
_TRANSACTION = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,199}")
"""The id becomes part of a URL: only unreserved characters (RFC 3986 section 2.3)."""


@dataclass(frozen=True, slots=True)
class OrderCreated:
    """The payload. ``amount`` is in cents."""

    event_id: str
    transaction_id: str
    amount: int

    @classmethod
    def read(cls, payload: bytes) -> Self:
        """From ``{"eventID", "transactionID", "utcTime", "items": [{"itemID", "quantity", "price"}…]}``, without
        any other member. Raises MessageRefused."""
        order = _members(_json(payload), "eventID", "transactionID", "utcTime", "items")
        _check_time(_text(order["utcTime"]))
        items = order["items"]
        if not isinstance(items, list) or not 0 < len(items) <= MAX_LINES:
            raise _malformed("no items, or too many")
        transaction = _text(order["transactionID"])
        if not _TRANSACTION.fullmatch(transaction):
            raise _malformed("a transactionID that cannot stand in a URL as it is")
        return cls(_text(order["eventID"]), transaction, sum(_cost(item) for item in items))


def _cost(item: Any) -> int:
    line = _members(item, "itemID", "quantity", "price")
    _text(line["itemID"])
    return _number(line["quantity"], 1, MAX_QUANTITY) * _number(line["price"], 0, MAX_PRICE)


def _json(payload: bytes) -> Any:
    try:
        return json.loads(payload.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _malformed("no JSON") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without repeated members: readers disagree on which of two counts."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands twice")
    return members


def _members(value: Any, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != set(names):
        raise _malformed(f"not exactly {', '.join(names)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise _malformed("no text of 1 to 200 characters")
    return value


def _number(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _malformed(f"no whole number from {least} to {most}")
    return value


def _check_time(text: str) -> None:
    try:
        datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError as error:
        raise _malformed("no time in UTC") from error


def _malformed(what: str) -> MessageRefused:
    return MessageRefused("malformed_order", what)
