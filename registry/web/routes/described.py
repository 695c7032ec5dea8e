"""What the registry says of its own interface, to programs and to people."""

import time
from functools import cache

from flask import Blueprint, Response

from peerseal.protocol.encoding import canonical_json
from registry.services.documents.answer_cache import PublicAnswer
from registry.web.openapi.document import document
from registry.web.openapi.page import POLICY, page
from registry.web.wire import published, registry

blueprint = Blueprint("described", __name__)


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """The OpenAPI 3.1 document."""
    return published(_openapi(registry().settings.external_prefix))


@blueprint.get("/docs")
def docs() -> Response:
    """The same as a page."""
    response = published(_page())
    response.headers["Content-Security-Policy"] = POLICY
    return response


@cache
def _openapi(prefix: str) -> PublicAnswer:
    return _lasting(canonical_json(document(prefix)), "application/json")


@cache
def _page() -> PublicAnswer:
    return _lasting(page(document()).encode("utf-8"), "text/html; charset=utf-8")


def _lasting(body: bytes, content_type: str) -> PublicAnswer:
    now = int(time.time())
    return PublicAnswer.of(body, content_type, 0, 0, now, now)
