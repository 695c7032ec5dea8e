"""What anybody may see of this service."""

from collections.abc import Sequence
from typing import Any

from flask import Blueprint

import peerseal
from peerseal.flask import PeerAuth


def blueprint(auth: PeerAuth, identity: peerseal.Identity, callers: Sequence[str]) -> Blueprint:
    """The open routes."""
    routes = Blueprint("about", __name__)

    @routes.get("/")
    @auth.public
    def index() -> dict[str, Any]:
        """What this service is."""
        return {"service": identity.id, "callers": callers}

    @routes.get("/my-public-credentials")
    @auth.public
    def my_public_credentials() -> dict[str, str]:
        """The key that this service signs with now, for anybody to compare with the registry's."""
        return identity.credentials.to_json()

    return routes
