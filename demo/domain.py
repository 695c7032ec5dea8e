"""The settings of the demo's trust domain: who issues users' tokens, and which service may do what for users."""

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
"""Who issues users' tokens: the identity provider, by that name."""
TOPIC = "OrderCreated"
DEAD_LETTERS = f"{TOPIC}.dlq"
EVENTS_AUDIENCE = "jobs.example.com"
SCOPE = "trigger_invoicing"
"""The one purpose of an order's event."""
DERIVED = [{"minter": minter, "from": "orders:write", "to": [SCOPE]} for minter in (CLIENT, LEGACY)]
"""What a token without ``trigger_invoicing`` is good for at the edge and in the exchange: an order's event, and nothing
else."""
PUBLISHERS = (CLIENT, LEGACY, "registry")
"""Who is believed about orders. An event of the exchange is the registry's, in the name of legacy-shop."""


def domain_settings(login: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """What ``peerseal-registry domain set`` takes. ``login`` are the identity provider's other members, such
    as ``jwks`` or ``ca``, where one runs; ``more`` are further members."""
    issuers = [] if login is None else [{"issuer": LOGIN_ISSUER, "audience": CLIENT, **login}]
    exchange = {LEGACY: {EVENTS_AUDIENCE: [SCOPE]}}
    granted = {"minters": [CLIENT, INVOICING], "derived_scopes": DERIVED, "exchange": exchange}
    return {**granted, "issuers": issuers, **more}
