"""``POST /oauth2/token``: the token exchange and client credentials. Its errors are OAuth's (RFC 6749 section 5.2), not
problem documents."""

from collections.abc import Mapping
from http import HTTPStatus

from flask import Blueprint, Response, request

from peerseal.protocol.policies import DomainSettings
from registry.domain.errors import NotFound
from registry.domain.exchange import (
    CLIENT_CREDENTIALS,
    GRANT,
    JWT,
    AccessWanted,
    ExchangeRefused,
    ExchangeWanted,
    Issued,
    needed,
    read_form,
)
from registry.web.problems import log_refusal
from registry.web.wire import body, private_json, registry

blueprint = Blueprint("exchange", __name__)

_FORM = "application/x-www-form-urlencoded"


@blueprint.post("/oauth2/token")
def token() -> Response:
    """An event token for a user's token (RFC 8693), or an access token in the client's own name (RFC 6749 4.4)."""
    settings, form = registry().policies.domain().value, dict[str, str]()
    if not (settings.exchange or settings.access_tokens):
        raise NotFound("exchange_off", "no operator turned the token endpoint on")
    try:
        form = read_form(_form())
        answer = _granted(form, settings)
    except ExchangeRefused as refusal:
        return _refused(refusal, form.get("client_assertion", ""))
    answer.headers["Pragma"] = "no-cache"  # RFC 6749 section 5.1
    return answer


def _granted(form: Mapping[str, str], settings: DomainSettings) -> Response:
    """Raises ExchangeRefused."""
    grant_type = needed(form, "grant_type")
    if grant_type == GRANT and settings.exchange:
        wanted = ExchangeWanted.read(form)
        _check_authorization()
        return _answer(registry().exchange.exchange(wanted, settings.exchange), issued_token_type=JWT)
    if grant_type == CLIENT_CREDENTIALS and settings.access_tokens:
        access = AccessWanted.read(form)
        _check_authorization()
        return _answer(registry().access_tokens.issue(access, settings.access_tokens))
    raise ExchangeRefused("unsupported_grant_type", "the grant is unknown, or no operator turned it on")


def _check_authorization() -> None:
    if "Authorization" in request.headers:  # RFC 6749 section 2.3
        raise ExchangeRefused(
            "invalid_request", "the client proves itself in two ways: an Authorization header and a client assertion"
        )


def _answer(issued: Issued, **members: str) -> Response:
    shared = {"access_token": issued.token, "token_type": "Bearer"}
    return private_json({**shared, "expires_in": issued.expires_in, "scope": issued.scope, **members})


def _form() -> bytes:
    if request.mimetype != _FORM or request.headers.get("Content-Encoding"):
        raise ExchangeRefused(
            "invalid_request", f"the body is {request.mimetype or 'of no type'}; expected is {_FORM}, not encoded"
        )
    return body()


def _refused(refusal: ExchangeRefused, unverified: str) -> Response:
    """The code and its meaning. It quotes nothing of the request."""
    members = {"error": refusal.code, "error_description": _DESCRIPTIONS[refusal.code]}
    answer = private_json(members, refusal.status)
    answer.headers["X-Request-Id"] = log_refusal(refusal.status, refusal.code, str(refusal), unverified)
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        answer.headers["WWW-Authenticate"] = 'Bearer error="invalid_client"'
    return answer


_DESCRIPTIONS = {
    "invalid_request": "A parameter is missing, given twice, or not of its form.",
    "invalid_client": "The client assertion does not prove a service of this domain.",
    "invalid_grant": "The subject token is not good.",
    "invalid_scope": "Not what the domain's settings, and a user's token that is exchanged for one scope, allow.",
    "invalid_target": "The domain's settings grant this client nothing for that audience or resource.",
    "unsupported_grant_type": "Another grant than those that an operator turned on here.",
}
