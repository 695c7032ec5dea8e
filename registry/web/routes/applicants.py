"""Applicants: who waits, and who gets in. They apply by registering (`registry.web.routes.keys`)."""

from flask import Blueprint, Response

from registry.domain.keys import Applicant
from registry.services.access.operators import Role
from registry.web.wire import admitted_key, number, operator, parameter, private_json, registry

blueprint = Blueprint("applicants", __name__, url_prefix="/v1")


@blueprint.get("/applicants")
def waiting() -> Response:
    """A page of those that wait."""
    operator(Role.VIEWER)
    return private_json(registry().applicants.page(parameter("after") or "", number("limit") or None))


@blueprint.post("/services/<service>/keys/<thumbprint:thumbprint>/approve")
def approve(service: str, thumbprint: str) -> Response:
    """Admits an applicant. The answer is the key statement."""
    return admitted_key(registry().applicants.approve(service, thumbprint, operator(Role.OPERATOR).by))


def pending(applicant: Applicant) -> Response:
    """The answer to an applicant: 202, and nothing signed. The registry's signature under a kid would say something
    about a key that nobody admitted."""
    return private_json(registry().applicants.answer(applicant), 202)
