"""Cases, which a third service stores. It is called for the user of the current transaction."""

import logging
from typing import Any
from urllib.parse import quote

import requests
from flask import Blueprint, Response

import peerseal
import peerseal.requests
from peerseal.errors import CallNotMade
from peerseal.flask import PeerAuth, current_peer
from resource_service.problems import problem
from resource_service.transaction import needed_transaction

CASE_SERVICE = "case-service"
LIMITS = peerseal.CallLimits(read_timeout=2.5, deadline=4.0, max_running=4, max_waiting=2, longest_wait=0.25)
"""Our callers wait for 6 seconds. 2 of a worker's 8 threads stay free for requests without case-service."""

log = logging.getLogger("resource_service.cases")


def blueprint(auth: PeerAuth, third: peerseal.requests.PeerSession) -> Blueprint:
    """The cases. ``third`` calls case-service; its requests carry the transaction of the request that is served."""
    routes = Blueprint("cases", __name__)

    @routes.get("/cases/<id>")
    @auth.require(scope="trigger_invoicing", transaction=True)
    def case(id: str) -> dict[str, Any] | Response:
        """The case of a transaction, within that very transaction. case-service opens it at the first request."""
        if id != needed_transaction().id:
            return problem(404, "case_not_found", "There is no such case in this transaction.")
        return asked(third, "PUT", f"/cases/{quote(id, safe='')}")

    @routes.get("/cases")
    @auth.require(scope="cases:read", transaction=True)
    def list_cases() -> dict[str, Any] | Response:
        """The user's cases, the newest first."""
        return asked(third, "GET", "/cases")

    return routes


def asked(third: peerseal.requests.PeerSession, method: str, path: str) -> dict[str, Any] | Response:
    """case-service's answer, with this service's part of the chain in front."""
    transaction = needed_transaction()
    try:
        answer = third.request(method, path)
        if answer.status_code != 200:
            return refused(answer)
        told = answer.json()
        chain = [{"service": "resource-service", "caller": current_peer.service, "user": transaction.user}]
        told["chain"] = chain + told["chain"]
    except CallNotMade as error:
        return unavailable(error.code, str(error.retry_after))
    except (requests.RequestException, KeyError, TypeError) as error:
        log.warning("transaction %s: case-service gives no answer: %s", transaction.id, error)
        return unavailable("case_service_unreachable")
    return dict(told)


def refused(answer: requests.Response) -> Response:
    """The answer for a refusal of case-service: 404 for a missing case; any other refusal is a defect."""
    try:
        code = str(answer.json()["code"])
    except (requests.JSONDecodeError, KeyError, TypeError):
        code = f"HTTP {answer.status_code}"
    if (answer.status_code, code) == (404, "case_not_found"):
        return problem(404, code, "There is no such case in this transaction.")
    log.warning("case-service refuses: %s", code)
    return problem(502, "case_service_refused", f"case-service says: {code}.")


def unavailable(code: str, retry_after: str = "5") -> Response:
    """A 503 that asks the client to retry after that many seconds."""
    response = problem(503, code, "case-service does not answer now.")
    response.headers["Retry-After"] = retry_after
    return response
