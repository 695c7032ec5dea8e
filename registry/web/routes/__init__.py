"""The routes: each parses a call, asks a use case, and renders the answer."""

from registry.web.routes import documents, exchange, keys, monitoring, openapi, operators, policies

BLUEPRINTS = (
    *documents.BLUEPRINTS,
    exchange.blueprint,
    keys.blueprint,
    *monitoring.BLUEPRINTS,
    openapi.blueprint,
    *operators.BLUEPRINTS,
    policies.blueprint,
)
