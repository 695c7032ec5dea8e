"""Answers every error with a problem document (RFC 9457), which also has the request's id in the log."""

import logging

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from peerseal.errors import MalformedToken, PeersealError, TokenError
from peerseal.protocol import jose
from peerseal.protocol.problem_document import Problem, problem, problem_of
from peerseal.protocol.tokens.bearer import bearer_token
from peerseal.runtime.log_lines import fields
from peerseal.verify.context import REQUEST_ID, new_request_id, valid_request_id
from registry.web.metrics import count_refusal

log = logging.getLogger(__name__)

_HTTP_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    411: "length_required",
    413: "body_too_large",
    414: "target_too_long",
    415: "unsupported_media_type",
    429: "too_many_refusals",
    431: "headers_too_large",
}


_ABSENT = frozenset({"service_not_found", "key_not_found", "tile_not_found", "block_not_found", "part_not_found"})
"""Codes of answers that a public document does not exist. A caller can invent names, so caches may keep the answer."""
_FOR_A_SECOND = "public, max-age=1, no-transform"


def answer_errors(app: Flask) -> None:
    """Has the application answer all errors with the functions of this module."""
    app.register_error_handler(PeersealError, _refused)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, _unexpected)


def _refused(error: PeersealError) -> Response:
    if error.status >= 500 and error.retry_after is None:
        return _unexpected(error)
    request_id = log_refusal(error.status, error.code, str(error), _bearer())
    response = _response(problem_of(error, request_id=request_id), request_id)
    if error.code in _ABSENT and request.method in ("GET", "HEAD") and "Authorization" not in request.headers:
        response.headers["Cache-Control"] = _FOR_A_SECOND
    return response


def http_error(error: HTTPException) -> Response:
    """The answer to an error of HTTP itself, which is counted and logged."""
    status = error.code or 500
    code = code_of(status)
    request_id = log_refusal(status, code, error.name, _bearer())
    response = _response(problem(status, code, request_id=request_id), request_id)
    for name, value in error.get_headers():
        if name in ("Allow", "Retry-After"):
            response.headers[name] = value
    return response


def code_of(status: int) -> str:
    """The code of an error of HTTP itself."""
    return _HTTP_CODES.get(status, "bad_request" if status < 500 else "internal_error")


def _unexpected(error: Exception) -> Response:
    request_id = log_failure(error)
    return _response(problem(500, "internal_error", request_id=request_id), request_id)


def log_failure(error: Exception) -> str:
    """Counts and logs an error of our own, and returns the request's id."""
    count_refusal("internal_error")
    request_id = _request_id()
    named = fields(code="internal_error", method=request.method, endpoint=request.endpoint, request_id=request_id)
    log.error("failed method=%s request_id=%s", request.method, request_id, exc_info=error, extra=named)
    return request_id


def _response(found: Problem, request_id: str) -> Response:
    return Response(found.body, found.status, {**found.headers, "X-Request-Id": request_id})


def log_refusal(status: int, code: str, detail: str, unverified_token: str) -> str:
    """Counts and logs a refusal, and returns the request's id. Of the caller's token the log contains only the kid."""
    count_refusal(code)
    request_id = _request_id()
    level = logging.WARNING if status >= 500 else logging.INFO
    message = "refused status=%d code=%s method=%s endpoint=%s unverified_kid=%s detail=%r request_id=%s"
    kid = _unverified_kid(unverified_token)
    members = {"status": status, "code": code, "method": request.method, "endpoint": request.endpoint}
    named = fields(**members, unverified_kid=kid, request_id=request_id)
    log.log(level, message, *members.values(), repr(kid) if kid else "-", detail, request_id, extra=named)
    return request_id


def _request_id() -> str:
    """The caller's, which its own log has, if it is short and plain; else a new one."""
    return valid_request_id(request.headers.get(REQUEST_ID)) or new_request_id()


def _bearer() -> str:
    try:
        return bearer_token(request.headers.get("Authorization"))
    except TokenError:
        return ""


def _unverified_kid(token: str) -> str | None:
    try:
        return jose.parse_header(token.partition(".")[0].encode("latin-1")).kid[:400]
    except (MalformedToken, UnicodeEncodeError):
        return None
