"""Errors as RFC 9457 writes them."""

from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException


def posted_json() -> Any:
    """The body of the request as JSON; None where it is no JSON, or is nested too deeply to be read."""
    try:
        return request.get_json(silent=True)
    except RecursionError:
        return None


def problem(status: int, code: str, detail: str) -> Response:
    """An error with its stable code."""
    response = jsonify(title=code.replace("_", " "), status=status, code=code, detail=detail)
    response.status_code, response.mimetype = status, "application/problem+json"
    return response


def handle_errors(app: Flask) -> None:
    """Answer for requests that no route takes."""
    app.register_error_handler(HTTPException, http_error)


def http_error(error: HTTPException) -> Response | HTTPException:
    """Flask's own refusals, such as 404 and 405, with a code made from their name. Redirects stay as they are."""
    if error.code is None or error.code < 400:
        return error
    response = problem(error.code, error.name.lower().replace(" ", "_"), error.description or error.name)
    response.headers.extend([header for header in error.get_headers() if header[0] == "Allow"])
    return response
