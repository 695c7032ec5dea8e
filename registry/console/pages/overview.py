"""The overview: how the registry is, and what waits for an operator."""

from flask import Blueprint, Response

from registry.console.rendering import page

blueprint = Blueprint("overview", __name__)


@blueprint.get("/")
def show() -> Response:
    """The page."""
    return page("overview.html", terminal=("peerseal-registry status",))
