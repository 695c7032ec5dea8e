"""Profiles for people, fetched from resource-service with signed requests.

Run it with ``gunicorn 'client_service.app:create_app()'``. Beside Peerseal's own settings (``PEERSEAL_SERVICE``, …):

- ``RESOURCE_SERVICE_URL``: where resource-service is (``http://resource-service``);
- ``CLIENT_OPERATOR_SECRET`` or ``CLIENT_OPERATOR_SECRET_FILE``: what ``POST /refresh-my-credentials`` asks for in the
  header ``Operator-Secret``. Without it nobody can use that route.
"""

import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from flask import Flask, Response, current_app, jsonify, request

import peerseal

TIMEOUT = 10  # seconds for one answer of resource-service


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The service, with its key made and registered, or about to be, as the environment says."""
    identity = peerseal.Identity.from_env()
    identity.start()
    resource_url = environ.get("RESOURCE_SERVICE_URL", "http://resource-service")
    return build_app(identity, resource_url, operator_secret(environ))


def operator_secret(environ: Mapping[str, str]) -> str | None:
    """The secret of whoever may have the key replaced; None where none is set."""
    if path := environ.get("CLIENT_OPERATOR_SECRET_FILE"):
        return Path(path).read_text().strip() or None
    return environ.get("CLIENT_OPERATOR_SECRET") or None


def build_app(identity: peerseal.Identity, resource_url: str, secret: str | None) -> Flask:
    """The service in the name of ``identity``, which the caller starts."""
    app = Flask(__name__)
    resource = identity.session("resource-service", resource_url)

    @app.get("/")
    def index() -> dict[str, Any]:
        """Every route of this service, with a line to try it."""
        return {"service": identity.id, "routes": described_routes()}

    @app.get("/my-public-credentials")
    def my_public_credentials() -> dict[str, str]:
        """The key that this service signs with now."""
        return identity.credentials.to_json()

    @app.post("/refresh-my-credentials")
    def refresh_my_credentials() -> dict[str, str] | Response:
        """Publishes a new key, which signs after a lead time, and shows it. For the operator."""
        given = request.headers.get("Operator-Secret", "")
        if secret is None or not hmac.compare_digest(given.encode(), secret.encode()):
            return problem(403, "operator_secret_required", "Send the operator's secret in Operator-Secret.")
        return identity.rotate().to_json()

    @app.get("/profiles/<id>")
    def profile(id: str) -> Response:
        """One profile of resource-service, which is called with a signed request."""
        if id in (".", ".."):  # in a path they mean something else
            return problem(404, "profile_not_found", "There is no such profile.")
        try:
            return pass_on(resource.get(f"/profiles/{quote(id, safe='')}", timeout=TIMEOUT))
        except requests.RequestException:
            current_app.logger.warning("resource-service cannot be reached", exc_info=True)
            return problem(503, "resource_unreachable", "resource-service cannot be reached now.")

    @app.errorhandler(peerseal.PeersealError)
    def no_key(error: peerseal.PeersealError) -> Response:
        """Our own key cannot be used or replaced now: the registry is away, or refuses."""
        current_app.logger.warning("%s: %s", error.code, error)
        return problem(503, error.code, "This service cannot use its own key now.")

    return app


def described_routes() -> list[dict[str, str]]:
    """Method, path, meaning and an HTTPie line of every route of the current application."""
    routes = []
    for rule in current_app.url_map.iter_rules():
        method = "POST" if "POST" in (rule.methods or ()) else "GET"
        if rule.endpoint != "static":
            what = (current_app.view_functions[rule.endpoint].__doc__ or "").strip()
            path = rule.rule.replace("<id>", "1")
            secret = " Operator-Secret:$CLIENT_OPERATOR_SECRET" if method == "POST" else ""
            line = f"http {method} {request.host_url.rstrip('/')}{path}{secret}"
            routes.append({"method": method, "path": rule.rule, "what": what, "try": line})
    return routes


def pass_on(answer: requests.Response) -> Response:
    """resource-service's answer as this service's own. A refusal is no answer for a person: it says what went wrong
    between the services, with the code that resource-service gave."""
    if answer.status_code in (200, 404):
        return Response(answer.content, answer.status_code, content_type=answer.headers.get("Content-Type"))
    resource_code = code_of(answer)
    if answer.status_code == 503:
        refusal = problem(503, "resource_unavailable", f"resource-service says: {resource_code}.", resource_code)
        refusal.headers["Retry-After"] = answer.headers.get("Retry-After", "5")
        return refusal
    return problem(502, "resource_refused", f"resource-service says: {resource_code}.", resource_code)


def code_of(answer: requests.Response) -> str:
    """The ``code`` of a problem document, or the bare status where the answer is none."""
    try:
        return str(answer.json()["code"])
    except (requests.JSONDecodeError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"


def problem(status: int, code: str, detail: str, resource_code: str | None = None) -> Response:
    """An error as RFC 9457 writes it."""
    members = {"title": code.replace("_", " "), "status": status, "code": code, "detail": detail}
    response = jsonify(members | ({"resource_code": resource_code} if resource_code else {}))
    response.status_code, response.mimetype = status, "application/problem+json"
    return response
