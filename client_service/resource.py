"""Routes that forward to resource-service, with signed requests that carry the user."""

from typing import Any
from urllib.parse import quote

import requests
from flask import Blueprint, Response, current_app

import peerseal
import peerseal.requests
from client_service.problems import problem
from client_service.routes import AS_USER, httpie
from client_service.users import Users
from peerseal.errors import CallNotMade, ResponseRefused

LIMITS = peerseal.CallLimits(max_running=8, max_waiting=4, longest_wait=0.25)
"""Of a worker's 16 threads, 4 are left for requests that do not need resource-service."""


def blueprint(users: Users, resource: peerseal.requests.PeerSession) -> Blueprint:
    """Profiles for any caller, and the user's invoices and cases. ``resource`` signs what it sends."""
    routes = Blueprint("resource", __name__)

    @routes.get("/profiles/<id>")
    def profile(id: str) -> Response:
        """One profile of resource-service. With a user's token it learns for whom."""
        if id in (".", ".."):  # these change the meaning of a path
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

    @routes.get("/cases")
    @httpie(AS_USER)
    def cases() -> Response:
        """The user's cases, which a third service keeps, and who called whom to get them."""
        with peerseal.carrying(users.transaction(users.needed(), "cases:read")):
            return fetched(resource, "/cases")

    return routes


def fetched(resource: peerseal.requests.PeerSession, path: str, **options: Any) -> Response:
    """Forwards resource-service's answer. While resource-service does not answer, calls fail at once."""
    try:
        return pass_on(resource.get(path, **options))
    except CallNotMade as error:
        current_app.logger.info("%s: %s", error.code, error)
        return unavailable(error.code, "resource-service is not called now.", str(error.retry_after))
    except ResponseRefused as error:  # it is a RequestException as well
        current_app.logger.warning("resource-service's answer is refused: %s", error)
        return problem(502, "answer_refused", "The answer is not proven to be resource-service's.", reason=error.code)
    except requests.RequestException as error:
        current_app.logger.warning("resource-service cannot be reached: %s", error)
        return unavailable("resource_unreachable", "resource-service cannot be reached now.")


def pass_on(answer: requests.Response) -> Response:
    """The answer to a person for a refusal of resource-service, with the code that it gave."""
    if answer.status_code in (200, 404):
        return Response(answer.content, answer.status_code, content_type=answer.headers.get("Content-Type"))
    code = code_of(answer)
    detail = f"resource-service says: {code}."
    if answer.status_code == 503:
        return unavailable("resource_unavailable", detail, answer.headers.get("Retry-After", "5"), resource_code=code)
    return problem(502, "resource_refused", detail, resource_code=code)


def unavailable(code: str, detail: str, retry_after: str = "5", **more: str) -> Response:
    """A 503 that asks the client to retry after that many seconds."""
    answer = problem(503, code, detail, **more)
    answer.headers["Retry-After"] = retry_after
    return answer


def code_of(answer: requests.Response) -> str:
    """The ``code`` of a problem document, or the bare status where the answer is none."""
    try:
        return str(answer.json()["code"])
    except (requests.JSONDecodeError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
