"""For load balancers and orchestrators."""

from flask import Blueprint, Response

from registry.web.wire import private_json, registry

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> Response:
    """This process answers. It does not ask the database: a restart would not mend that."""
    return private_json({"status": "ok"})


@blueprint.get("/readyz")
def readyz() -> Response:
    """Whether calls can be answered: database, schema, and keys."""
    checks = registry().readiness()
    return private_json({"ready": all(checks.values()), **checks}, 200 if all(checks.values()) else 503)
