"""For load balancers and orchestrators."""

from flask import Blueprint, Response

from registry.domain.errors import BadRequest
from registry.web.wire import parameter, private_json, registry

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> Response:
    """This process answers. It does not ask the database: a restart would not mend that."""
    return private_json({"status": "ok"})


@blueprint.get("/readyz")
def readyz() -> Response:
    """Whether calls that read can be answered; with ``?for=write`` whether all can."""
    purpose = parameter("for")
    if purpose not in (None, "write"):
        raise BadRequest("invalid_parameter", "for is other than write")
    found = registry().readiness()
    ready = found.can_write if purpose == "write" else found.can_read
    members = {"ready": ready, "can_read": found.can_read, "can_write": found.can_write}
    return private_json({**members, **found.reading, **found.writing}, 200 if ready else 503)
