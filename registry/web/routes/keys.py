"""Services' calls: registering, reading and ending keys, and the token endpoint.

The token endpoint is ``POST /oauth2/token``: the token exchange and client credentials. Its errors are OAuth's (RFC
6749 section 5.2), not problem documents.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Response, request

from peerseal.errors import CallerNotAllowed, MissingToken
from peerseal.protocol.names import service_id, split_kid
from peerseal.protocol.policies import DomainSettings
from registry.domain.admission import FirstCome, Joined, Right, Vouched
from registry.domain.errors import BadRequest, NotFound
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
from registry.domain.keys import Applicant
from registry.domain.lifecycle import check_ends_itself
from registry.services.access.operators import Role, is_operator_token
from registry.services.keys.records import Reason
from registry.web.problems import log_refusal
from registry.web.routes.operators import pending
from registry.web.wire import (
    admitted_key,
    bearer_token,
    body,
    calling_service,
    json_body,
    member,
    no_content,
    number,
    only,
    operator,
    parameter,
    private_json,
    registry,
)

keys_blueprint = Blueprint("keys", __name__, url_prefix="/v1/services/<service>/keys")
exchange_blueprint = Blueprint("exchange", __name__)
BLUEPRINTS = (exchange_blueprint, keys_blueprint)

_FORM = "application/x-www-form-urlencoded"


@keys_blueprint.post("")
def register(service: str) -> Response:
    """Registers the key whose proof of possession is in the body. The answer is the key statement."""
    body = json_body()
    only(body, "proof", "join", "oidc")
    right, proof = _right(service, body), member(body, "proof", str)
    if right is None and registry().settings.applicants:
        applied = registry().applicants.apply(service, proof)
        return pending(applied) if isinstance(applied, Applicant) else admitted_key(applied)
    return admitted_key(registry().admission.admit(service, proof, right))


@keys_blueprint.get("")
def listed(service: str) -> Response:
    """A page of the service's keys, past ones too."""
    return private_json(registry().records.keys(service, number("after"), number("limit") or None))


@keys_blueprint.get("/<thumbprint:thumbprint>")
def read(service: str, thumbprint: str) -> Response:
    """One key's record."""
    return private_json(registry().records.key(service, thumbprint))


@keys_blueprint.delete("/<thumbprint:thumbprint>")
def end(service: str, thumbprint: str) -> Response:
    """Ends a key: an operator may end any, a service's key only itself."""
    token = bearer_token()
    if token is None:
        raise MissingToken("neither an operator nor the key itself")
    reason = _reason()
    if is_operator_token(token):
        registry().ending.end(service, thumbprint, reason, operator(Role.OPERATOR).by)
    else:
        registry().ending.end(service, thumbprint, reason, _caller_itself(token, service, thumbprint), token)
    return no_content()


def _right(service: str, body: dict[str, Any]) -> Right | None:
    """The right that the request claims: one at most, so that it is clear which one counts."""
    token, join, oidc = bearer_token(), body.get("join"), body.get("oidc")
    if sum(right is not None for right in (token, join, oidc)) > 1:
        raise BadRequest("malformed_body", "more than one of a voucher, a join token and a platform's token")
    if token is not None:
        peer = calling_service(token)
        if peer.service != service:
            raise CallerNotAllowed(f"{peer.id} registers keys for itself only")
        return Vouched(split_kid(peer.kid)[1], token)
    if join is not None:
        parts = member(body, "join", dict)
        only(parts, "id", "mac")
        return Joined(member(parts, "id", str), member(parts, "mac", str))
    if oidc is not None:
        return registry().platforms.attest(service, member(body, "oidc", str))
    return FirstCome() if registry().settings.dev else None


def _caller_itself(token: str, service: str, thumbprint: str) -> dict[str, str]:
    """The calling key, as an entry names it. It must be the key in the path."""
    peer = calling_service(token)
    kid = f"{service_id(registry().authority.current().domain, service)}/{thumbprint}"
    check_ends_itself(peer.kid, kid)
    return {"self": kid}


def _reason() -> Reason:
    try:
        return Reason(parameter("reason") or "")
    except ValueError:
        raise BadRequest("invalid_parameter", "reason must be retired, compromised or rejected") from None


@exchange_blueprint.post("/oauth2/token")
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
