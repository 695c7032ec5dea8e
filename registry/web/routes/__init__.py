"""The routes: each parses a call, asks a use case, and renders the answer."""

from registry.web.routes import documents, error_codes, front, keys, openapi, operators

BLUEPRINTS = (
    front.blueprint,
    *documents.BLUEPRINTS,
    *keys.BLUEPRINTS,
    openapi.blueprint,
    error_codes.blueprint,
    *operators.BLUEPRINTS,
)
