"""What anyone may fetch about services: signed sets, plain sets, key statements, changes."""

from collections.abc import Iterator
from contextlib import contextmanager

from flask import Blueprint, Response, request

from registry.domain.errors import BadRequest
from registry.gate import step_aside
from registry.web.counting import WAITING
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
    """Which services changed after entry ``since``; with ``?wait=S`` as soon as one did, and after S seconds anyway."""
    limits, since, wait = registry().settings.limits, number("since"), number("wait")
    if wait > limits.wait:
        raise BadRequest("invalid_parameter", f"wait is longer than {limits.wait} seconds")
    feed = registry().changes
    return published(feed.after(since, wait, network(), _waiting) if wait else feed.since(since), "no-cache")


@contextmanager
def _waiting() -> Iterator[None]:
    """While this call waits others are served, and it is counted apart."""
    step_aside(request.environ)
    with WAITING.track_inprogress():
        yield
