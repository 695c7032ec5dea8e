"""Keys: registering, reading and ending them."""

from typing import Any

from flask import Blueprint, Response

from peerseal.errors import CallerNotAllowed, MissingToken
from peerseal.protocol.names import service_id, split_kid
from registry.domain.admission import FirstCome, Joined, Right, Vouched
from registry.domain.errors import BadRequest
from registry.domain.keys import Applicant
from registry.domain.lifecycle import check_ends_itself
from registry.services.access.operators import Role, is_operator_token
from registry.services.keys.end_keys import Reason
from registry.web.routes.operators import pending
from registry.web.wire import (
    admitted_key,
    bearer_token,
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

blueprint = Blueprint("keys", __name__, url_prefix="/v1/services/<service>/keys")


@blueprint.post("")
def register(service: str) -> Response:
    """Registers the key whose proof of possession is in the body. The answer is the key statement."""
    body = json_body()
    only(body, "proof", "join", "oidc")
    right, proof = _right(service, body), member(body, "proof", str)
    if right is None and registry().settings.applicants:
        applied = registry().applicants.apply(service, proof)
        return pending(applied) if isinstance(applied, Applicant) else admitted_key(applied)
    return admitted_key(registry().admission.admit(service, proof, right))


@blueprint.get("")
def listed(service: str) -> Response:
    """A page of the service's keys, past ones too."""
    return private_json(registry().records.keys(service, number("after"), number("limit") or None))


@blueprint.get("/<thumbprint:thumbprint>")
def read(service: str, thumbprint: str) -> Response:
    """One key's record."""
    return private_json(registry().records.key(service, thumbprint))


@blueprint.delete("/<thumbprint:thumbprint>")
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
