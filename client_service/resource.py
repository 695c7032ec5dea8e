"""What is passed on from resource-service, which is called with signed requests, the user's identity along."""

from typing import Any
from urllib.parse import quote

import requests
from flask import Blueprint, Response, current_app

import peerseal
import peerseal.requests
from client_service.problems import problem
from client_service.routes import AS_USER, httpie
from client_service.users import Users

TIMEOUT = 10  # seconds for one answer of resource-service


def blueprint(users: Users, resource: peerseal.requests.PeerSession) -> Blueprint:
    """Profiles for everybody, and the user's invoices. ``resource`` signs what it sends."""
    routes = Blueprint("resource", __name__)

    @routes.get("/profiles/<id>")
    def profile(id: str) -> Response:
        """One profile of resource-service. With a user's token it learns for whom."""
        if id in (".", ".."):  # in a path they mean something else
            return problem(404, "profile_not_found", "There is no such profile.")
        with peerseal.carrying(users.transaction(users.current(), "profiles:read")):
            purpose = {"purpose": "profile page"}  # signed, so that resource-service can rely on it in its records
            return fetched(resource, f"/profiles/{quote(id, safe='')}", ctx=purpose)

    @routes.get("/invoices")
    @httpie(AS_USER)
    def invoices() -> Response:
        """The user's invoices, from resource-service. Amounts are in cents."""
        with peerseal.carrying(users.transaction(users.needed(), "invoices:read")):
            return fetched(resource, "/invoices")

    return routes


def fetched(resource: peerseal.requests.PeerSession, path: str, **options: Any) -> Response:
    """resource-service's answer as this service's own."""
    try:
        return pass_on(resource.get(path, timeout=TIMEOUT, **options))
    except requests.RequestException:
        current_app.logger.warning("resource-service cannot be reached", exc_info=True)
        return problem(503, "resource_unreachable", "resource-service cannot be reached now.")


def pass_on(answer: requests.Response) -> Response:
    """A refusal is no answer for a person: it says what went wrong between the services, with the code that
    resource-service gave."""
    if answer.status_code in (200, 404):
        return Response(answer.content, answer.status_code, content_type=answer.headers.get("Content-Type"))
    code = code_of(answer)
    if answer.status_code == 503:
        refusal = problem(503, "resource_unavailable", f"resource-service says: {code}.", resource_code=code)
        refusal.headers["Retry-After"] = answer.headers.get("Retry-After", "5")
        return refusal
    return problem(502, "resource_refused", f"resource-service says: {code}.", resource_code=code)


def code_of(answer: requests.Response) -> str:
    """The ``code`` of a problem document, or the bare status where the answer is none."""
    try:
        return str(answer.json()["code"])
    except (requests.JSONDecodeError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
