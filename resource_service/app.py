"""Profiles, for services that may read them. Every route is closed unless it says otherwise.

Run it with ``gunicorn 'resource_service.app:create_app()'``; the settings are Peerseal's own (``PEERSEAL_SERVICE``, …).
"""

from typing import Any

from flask import Flask, Response, jsonify, request

import peerseal
import peerseal.flask
from peerseal.flask import current_peer

ALLOW = {"client-service": {"profiles:read"}}
"""Who may call, with which scopes. Nobody else gets in, however well registered."""

PROFILES = {
    "1": {"id": "1", "name": "Ada Lovelace", "city": "London"},
    "2": {"id": "2", "name": "Grace Hopper", "city": "New York"},
    "3": {"id": "3", "name": "Katherine Johnson", "city": "Hampton"},
}


def create_app() -> Flask:
    """The service, with its key made and registered, or about to be, as the environment says."""
    identity = peerseal.Identity.from_env()
    identity.start()
    return build_app(identity)


def build_app(identity: peerseal.Identity) -> Flask:
    """The service in the name of ``identity``, which the caller starts."""
    app = Flask(__name__)
    auth = peerseal.flask.PeerAuth(app, identity, allow=ALLOW)

    @app.get("/")
    @auth.public
    def index() -> dict[str, Any]:
        """What this service is."""
        return {"service": identity.id, "callers": sorted(ALLOW)}

    @app.get("/my-public-credentials")
    @auth.public
    def my_public_credentials() -> dict[str, str]:
        """The key that this service signs with now, for anybody to compare with the registry's."""
        return identity.credentials.to_json()

    @app.get("/profiles/<id>")
    @auth.require(scope="profiles:read")
    def profile(id: str) -> dict[str, str] | Response:
        """One profile, and who asked."""
        if id not in PROFILES:
            return problem(404, "profile_not_found", "There is no such profile.")
        return {**PROFILES[id], "caller": current_peer.service}

    @app.post("/profiles/search")
    @auth.require(scope="profiles:read")
    def search() -> dict[str, Any] | Response:
        """The profiles whose name holds the text in the body. The caller's signature covers that body."""
        wanted = request.get_json(silent=True)
        if not isinstance(wanted, dict) or not isinstance(wanted.get("name"), str):
            return problem(400, "bad_search", 'The body is {"name": "…"}.')
        found = [profile for profile in PROFILES.values() if wanted["name"].lower() in profile["name"].lower()]
        return {"profiles": found, "caller": current_peer.service}

    return app


def problem(status: int, code: str, detail: str) -> Response:
    """An error as RFC 9457 writes it."""
    response = jsonify(title=code.replace("_", " "), status=status, code=code, detail=detail)
    response.status_code, response.mimetype = status, "application/problem+json"
    return response
