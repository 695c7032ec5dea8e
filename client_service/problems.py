"""Problem documents (RFC 9457), also for Peerseal's own errors."""

from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from werkzeug.exceptions import HTTPException

import peerseal
from peerseal.errors import InsufficientScope, MissingToken, TokenError


def problem(status: int, code: str, detail: str, **more: str) -> Response:
    """An error with its stable code; ``more`` are further members."""
    response = jsonify(title=code.replace("_", " "), status=status, code=code, detail=detail, **more)
    response.status_code, response.mimetype = status, "application/problem+json"
    return response


def posted_json() -> Any:
    """The body of the request as JSON; None where it is no JSON, or is nested too deeply to be read."""
    try:
        return request.get_json(silent=True)
    except RecursionError:
        return None


def handle_errors(app: Flask) -> None:
    """Registers the answers for errors that the routes raise, and for requests without a route."""
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(TokenError, _no_user)
    app.register_error_handler(InsufficientScope, _not_allowed)
    app.register_error_handler(peerseal.PeersealError, _not_now)


def http_error(error: HTTPException) -> Response | HTTPException:
    """Flask's own refusals, such as 404 and 405, with a code made from their name. Redirects stay as they are."""
    if error.code is None or error.code < 400:
        return error
    response = problem(error.code, error.name.lower().replace(" ", "_"), error.description or error.name)
    response.headers.extend([header for header in error.get_headers() if header[0] == "Allow"])
    return response


def _no_user(error: TokenError) -> Response:
    """The user's token is missing, or proves nothing (RFC 6750 section 3)."""
    current_app.logger.info("no user: %s: %s", error.code, error)
    missing = isinstance(error, MissingToken)
    detail = "Log in with POST /authenticate." if missing else "The user's token is not good."
    response = problem(401, error.code, detail)
    response.headers["WWW-Authenticate"] = "Bearer" if missing else 'Bearer error="invalid_token"'
    return response


def _not_allowed(error: InsufficientScope) -> Response:
    """The user's token does not allow this."""
    current_app.logger.info("not allowed: %s", error)
    response = problem(403, error.code, "The user's token does not allow this.")
    response.headers["WWW-Authenticate"] = 'Bearer error="insufficient_scope"'
    return response


def _not_now(error: peerseal.PeersealError) -> Response:
    """This service cannot use or replace its key, or cannot verify users, since the registry is down or refuses."""
    current_app.logger.warning("%s: %s", error.code, error)
    response = problem(503, error.code, "This service cannot sign calls or verify users now.")
    response.headers["Retry-After"] = "5"
    return response
