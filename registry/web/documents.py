"""What anyone may fetch about services: signed sets, plain sets, key statements, changes."""

from flask import Blueprint, Response

from registry.domain.errors import BadRequest
from registry.web.wire import number, published, registry

blueprint = Blueprint("documents", __name__, url_prefix="/v1")


@blueprint.get("/services/<service>/jwks.jwt")
def signed_key_set(service: str) -> Response:
    """The signed JWK Set; with ``?seq=M`` as of entry M or later."""
    return published(registry().publisher.signed_key_set(service, number("seq")))


@blueprint.get("/services/<service>/jwks.json")
def plain_key_set(service: str) -> Response:
    """The current keys for any JWT library."""
    return published(registry().publisher.plain_key_set(service, number("seq")))


@blueprint.get("/services/<service>/keys/<thumbprint:thumbprint>.jwt")
def key_statement(service: str, thumbprint: str) -> Response:
    """The key statement; with ``?seq=M`` as of entry M or later."""
    return published(registry().publisher.statement(service, thumbprint, number("seq")))


@blueprint.get("/changes")
def changes() -> Response:
    """Which services changed after entry ``since``. ``wait`` is understood, and answered at once."""
    limits = registry().settings.limits
    if number("wait") > limits.wait:
        raise BadRequest("invalid_parameter", f"wait is longer than {limits.wait} seconds")
    return published(registry().changes.since(number("since")), "no-cache")
