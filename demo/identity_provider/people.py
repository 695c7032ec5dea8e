"""The people who can log in."""

import hmac
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Person:
    """``name`` becomes ``sub`` in tokens; ``scopes`` is what a token of this person may hold."""

    name: str
    full_name: str
    scopes: frozenset[str]

    def get_user_id(self) -> str:
        """For Authlib."""
        return self.name


CUSTOMER_SCOPES = frozenset(
    {
        "openid",
        "profile",
        "profiles:read",
        "orders:read",
        "orders:write",
        "invoices:read",
        "cases:read",
        "trigger_invoicing",
    }
)
"""What a token of a customer may hold, and programs may ask for."""

PEOPLE = {
    person.name: person
    for person in (
        Person("ada", "Ada Lovelace", CUSTOMER_SCOPES),
        Person("grace", "Grace Hopper", CUSTOMER_SCOPES),
        Person("katherine", "Katherine Johnson", CUSTOMER_SCOPES | {"orders:approve"}),
    )
}


def logged_in(name: str, password: str, expected: str | None) -> Person | None:
    """The person who shows the ``expected`` password, which all share; None for another one, or where none is set."""
    right = expected is not None and hmac.compare_digest(_bytes(password), _bytes(expected))
    person = PEOPLE.get(name)  # after the comparison, which takes the same time for every name
    return person if right else None


def _bytes(text: str) -> bytes:
    """JSON may hold half of a surrogate pair."""
    return text.encode("utf-8", "surrogatepass")
