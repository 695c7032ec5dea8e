"""The root's statements about lost entries."""

from flask import Blueprint, Response

from registry.services.documents.answer_cache import PublicAnswer
from registry.web.wire import published, registry

blueprint = Blueprint("histories", __name__, url_prefix="/v1")


@blueprint.get("/history")
def history() -> Response:
    """All statements: a client asks for them when the registry has another ledger than the client remembers."""
    body, now = registry().histories.published(), int(registry().clock())
    return published(PublicAnswer.of(body, "application/json", 0, 0, now, now), "no-cache")
