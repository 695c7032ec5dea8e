"""The domain document of the demo: the issuer of users' tokens, and the rights of each service."""

from collections.abc import Mapping
from typing import Any

DOMAIN = "demo.internal"
CLIENT = "client-service"
RESOURCE = "resource-service"
INVOICING = "invoicing"
CASES = "case-service"
LEGACY = "legacy-shop"
"""A program without the SDK: it gets its events from the registry's token exchange."""
LOGIN_ISSUER = "https://login.demo.internal"
"""The name of the identity provider as an issuer."""
TOPIC = "OrderCreated"
DEAD_LETTERS = f"{TOPIC}.dlq"
EVENTS_AUDIENCE = "jobs.example.com"
SCOPE = "trigger_invoicing"
"""The one purpose of an order's event."""
DERIVED = [{"minter": minter, "from": "orders:write", "to": [SCOPE]} for minter in (CLIENT, LEGACY)]
"""A user's token without ``trigger_invoicing`` yields an order's event at the edge and in the exchange."""
PUBLISHERS = (CLIENT, LEGACY, "registry")
"""The publishers of orders that are believed. The registry signs events of the exchange, in the name of legacy-shop."""


def domain_settings(login: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The input of ``peerseal-registry domain set``. ``login`` has the identity provider's other members, such as
    ``jwks`` or ``ca``, if one runs; ``more`` has further members."""
    issuers = [] if login is None else [{"issuer": LOGIN_ISSUER, "audience": CLIENT, **login}]
    exchange = {LEGACY: {EVENTS_AUDIENCE: [SCOPE]}}
    granted = {"minters": [CLIENT, INVOICING], "derived_scopes": DERIVED, "exchange": exchange}
    return {**granted, "issuers": issuers, **more}
