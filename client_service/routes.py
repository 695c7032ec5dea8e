"""``GET /``: every route, with an HTTPie line that a person can type as it stands."""

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Blueprint, Flask, request

import peerseal

View = TypeVar("View", bound=Callable[..., Any])

AS_USER = '"Authorization:Bearer $TOKEN"'
"""HTTPie's argument for a user's token, which the shell puts in."""

_ARGUMENTS = "__httpie__"


def httpie(arguments: str) -> Callable[[View], View]:
    """A decorator: what a call of this route needs, behind its URL."""

    def mark(view: View) -> View:
        setattr(view, _ARGUMENTS, arguments)
        return view

    return mark


def blueprint(app: Flask, identity: peerseal.Identity) -> Blueprint:
    """The index of ``app``."""
    routes = Blueprint("index", __name__)

    @routes.get("/")
    def index() -> dict[str, Any]:
        """Every route of this service, with a line to try it."""
        return {"service": identity.id, "routes": described(app, request.host_url.rstrip("/"))}

    return routes


def described(app: Flask, url: str) -> list[dict[str, str]]:
    """Method, path, meaning and an HTTPie line of every route."""
    found = []
    for rule in app.url_map.iter_rules():
        if rule.endpoint == "static":
            continue
        view = app.view_functions[rule.endpoint]
        method = "POST" if "POST" in (rule.methods or ()) else "GET"
        line = f"http {method} {url}{rule.rule.replace('<id>', '1')} {getattr(view, _ARGUMENTS, '')}".rstrip()
        found.append({"method": method, "path": rule.rule, "what": (view.__doc__ or "").strip(), "try": line})
    return found
