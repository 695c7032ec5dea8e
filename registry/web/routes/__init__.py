"""The routes: each parses a call, asks a use case, and renders the answer."""

from registry.web.routes import documents, front, keys, openapi, operators

BLUEPRINTS = (
    front.blueprint,
    *documents.BLUEPRINTS,
    *keys.BLUEPRINTS,
    openapi.blueprint,
    *operators.BLUEPRINTS,
)
