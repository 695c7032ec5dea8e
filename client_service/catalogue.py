"""The items and their prices. This service sets the price of an order, never the buyer."""

from dataclasses import dataclass
from typing import Any

PRICES = {"pen": 250, "notebook": 895, "slide-rule": 4900, "telescope": 129_900}
"""By item, in cents."""

MAX_LINES, MAX_QUANTITY = 100, 1000


class BadOrder(Exception):
    """An order that cannot be priced; the text is for the buyer."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an order. ``price`` is of one piece, in cents."""

    item: str
    quantity: int
    price: int

    def to_json(self) -> dict[str, Any]:
        """``{"itemID", "quantity", "price"}``."""
        return {"itemID": self.item, "quantity": self.quantity, "price": self.price}


def priced(order: Any) -> list[Line]:
    """The lines of ``{"items": [{"itemID", "quantity"}]}``, each with its price. Raises BadOrder, also for any other
    member: a price or a user in the body is refused, not ignored."""
    if not isinstance(order, dict) or order.keys() != {"items"} or not isinstance(order["items"], list):
        raise BadOrder('An order is {"items": [{"itemID": "…", "quantity": 1}]}, and nothing else.')
    if not 0 < len(order["items"]) <= MAX_LINES:
        raise BadOrder(f"An order has 1 to {MAX_LINES} items.")
    return [_line(item) for item in order["items"]]


def _line(item: Any) -> Line:
    if not isinstance(item, dict) or item.keys() != {"itemID", "quantity"}:
        raise BadOrder('An item is {"itemID": "…", "quantity": 1}, and nothing else.')
    name, quantity = item["itemID"], item["quantity"]
    if not isinstance(name, str) or name not in PRICES:
        raise BadOrder(f"Unknown item; the items are {', '.join(PRICES)}.")
    if type(quantity) is not int or not 0 < quantity <= MAX_QUANTITY:
        raise BadOrder(f"A quantity is a whole number from 1 to {MAX_QUANTITY}.")
    return Line(name, quantity, PRICES[name])
