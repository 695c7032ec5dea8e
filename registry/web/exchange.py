"""``POST /oauth2/token``: the token exchange, with OAuth's answers instead of problem documents (RFC 6749)."""

from http import HTTPStatus

from flask import Blueprint, Response, request

from registry.domain.exchange import JWT, ExchangeRefused, Wanted
from registry.web.problems import log_refusal
from registry.web.wire import body, private_json, registry

blueprint = Blueprint("exchange", __name__)

_FORM = "application/x-www-form-urlencoded"


@blueprint.post("/oauth2/token")
def token() -> Response:
    """An event token for a user's token (RFC 8693)."""
    exchange, wanted = registry().exchange, None
    grants = exchange.grants()
    try:
        wanted = Wanted.read(_form())
        if "Authorization" in request.headers:  # RFC 6749 section 2.3
            raise ExchangeRefused("invalid_request", "a client that proves itself in two ways")
        exchanged = exchange.exchange(wanted, grants)
    except ExchangeRefused as refusal:
        return _refused(refusal, wanted)
    answer = private_json(
        {
            "access_token": exchanged.token,
            "issued_token_type": JWT,
            "token_type": "Bearer",
            "expires_in": exchanged.expires_in,
            "scope": exchanged.scope,
        }
    )
    answer.headers["Pragma"] = "no-cache"  # RFC 6749 section 5.1
    return answer


def _form() -> bytes:
    if request.mimetype != _FORM or request.headers.get("Content-Encoding"):
        raise ExchangeRefused("invalid_request", "not a form")
    return body()


def _refused(refusal: ExchangeRefused, wanted: Wanted | None) -> Response:
    """The code and its meaning, and nothing of the request."""
    members = {"error": refusal.code, "error_description": _SAID[refusal.code]}
    answer = private_json(members, refusal.status)
    unverified = wanted.assertion if wanted else ""
    answer.headers["X-Request-Id"] = log_refusal(refusal.status, refusal.code, str(refusal), unverified)
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        answer.headers["WWW-Authenticate"] = 'Bearer error="invalid_client"'
    return answer


_SAID = {
    "invalid_request": "A parameter is missing, given twice, or not of its form.",
    "invalid_client": "The client assertion does not prove a service of this domain.",
    "invalid_grant": "The subject token is not good.",
    "invalid_scope": "Not exactly one scope that the user's token and the domain's settings allow.",
    "invalid_target": "The domain's settings grant this client nothing for that audience.",
    "unsupported_grant_type": "Only the token exchange is known here.",
}
