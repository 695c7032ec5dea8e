"""The people who can log in."""

import hmac
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Person:
    """``name`` becomes ``sub`` in tokens; ``scopes`` are the scopes that a token of this person may have."""

    name: str
    full_name: str
    scopes: frozenset[str]

    def get_user_id(self) -> str:
        """Authlib asks for it."""
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
"""The scopes of a customer, which programs may ask for."""

PEOPLE = {
    person.name: person
    for person in (
        Person("ada", "Ada Lovelace", CUSTOMER_SCOPES),
        Person("grace", "Grace Hopper", CUSTOMER_SCOPES),
        Person("katherine", "Katherine Johnson", CUSTOMER_SCOPES | {"orders:approve"}),
    )
}


def logged_in(name: str, password: str, expected: str | None) -> Person | None:
    """The person who gives the ``expected`` password, which all demo users share; None for a wrong or missing one."""
    right = expected is not None and hmac.compare_digest(_bytes(password), _bytes(expected))
    person = PEOPLE.get(name)  # after the comparison, which takes the same time for every name
    return person if right else None


def _bytes(text: str) -> bytes:
    """JSON may contain half of a surrogate pair."""
    return text.encode("utf-8", "surrogatepass")
