"""``POST /oauth2/token``: the token exchange, with OAuth's answers instead of problem documents (RFC 6749)."""

import logging
from http import HTTPStatus

from flask import Blueprint, Response, request

from peerseal.protocol.encoding import canonical_json
from registry.domain.exchange import JWT, ExchangeRefused
from registry.web import counting
from registry.web.wire import body, private_json, registry

log = logging.getLogger(__name__)

blueprint = Blueprint("exchange", __name__)

_FORM = "application/x-www-form-urlencoded"


@blueprint.post("/oauth2/token")
def token() -> Response:
    """An event token for a user's token (RFC 8693)."""
    if request.mimetype != _FORM or request.headers.get("Content-Encoding"):
        return _refused(ExchangeRefused("invalid_request", "not a form"))
    if "Authorization" in request.headers:
        return _refused(ExchangeRefused("invalid_request", "clients prove themselves by assertion only"))
    try:
        exchanged = registry().exchange.exchange(body())
    except ExchangeRefused as refusal:
        return _refused(refusal)
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


def _refused(refusal: ExchangeRefused) -> Response:
    """The code and its meaning, and nothing of the request."""
    counting.refused(refusal.code)
    log.info("refused status=%d code=%s endpoint=%s detail=%r", refusal.status, refusal.code, "exchange", str(refusal))
    members = {"error": refusal.code, "error_description": _SAID[refusal.code]}
    answer = Response(canonical_json(members), refusal.status, content_type="application/json")
    answer.headers["Cache-Control"] = "no-store"
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
