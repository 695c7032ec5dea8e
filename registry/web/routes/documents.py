"""What anyone may fetch about services: signed sets, plain sets, key statements, changes."""

from flask import Blueprint, Response, request

from registry.domain.errors import BadRequest
from registry.web.awaited import Later, told
from registry.web.limiting import network
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
    """Which services changed after entry ``since``; with ``?wait=S`` as soon as one did, and after S seconds anyway,
    where the server has room for calls that wait."""
    feed, waited = registry().changes, told(request.environ)
    if waited is not None:
        return published(feed.answer_to(waited), "no-cache")
    limits, since, wait = registry().settings.limits, number("since"), number("wait")
    if wait > limits.wait:
        raise BadRequest("invalid_parameter", f"wait is longer than {limits.wait} seconds")
    place = feed.wait(since, network()) if wait and request.is_multithread else None
    return published(feed.since(since), "no-cache") if place is None else Later(place, wait)
