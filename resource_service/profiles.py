"""Routes that services may call with a user or without one."""

import logging
from typing import Any

from flask import Blueprint, Response

import peerseal
from peerseal.flask import PeerAuth, current_peer
from resource_service.problems import posted_json, problem

log = logging.getLogger("resource_service")

PROFILES = {
    "1": {"id": "1", "name": "Ada Lovelace", "city": "London"},
    "2": {"id": "2", "name": "Grace Hopper", "city": "New York"},
    "3": {"id": "3", "name": "Katherine Johnson", "city": "Hampton"},
}


def blueprint(auth: PeerAuth) -> Blueprint:
    """The profiles."""
    routes = Blueprint("profiles", __name__)

    @routes.get("/profiles/<id>")
    @auth.require(scope="profiles:read")
    def profile(id: str) -> dict[str, Any] | Response:
        """One profile, with the calling service and the user, if there is one."""
        if id not in PROFILES:
            return problem(404, "profile_not_found", "There is no such profile.")
        transaction = peerseal.current_transaction()
        user = transaction and transaction.user
        purpose = current_peer.ctx.get("purpose")  # the caller signed it, as it signed the whole request
        log.info("profile %s told to %s for user %r, purpose %r", id, current_peer.service, user, purpose)
        return {**PROFILES[id], "caller": current_peer.service, "user": user}

    @routes.post("/profiles/search")
    @auth.require(scope="profiles:read")
    def search() -> dict[str, Any] | Response:
        """The profiles whose name contains the text in the body. The caller's signature covers that body."""
        wanted = posted_json()
        if not isinstance(wanted, dict) or not isinstance(wanted.get("name"), str):
            return problem(400, "bad_search", 'The body is {"name": "…"}.')
        found = [profile for profile in PROFILES.values() if wanted["name"].lower() in profile["name"].lower()]
        return {"profiles": found, "caller": current_peer.service}

    return routes
