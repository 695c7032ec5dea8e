"""Keys: registering, reading and ending them."""

from typing import Any

from flask import Blueprint, Response

from peerseal.errors import CallerNotAllowed, MissingToken
from peerseal.protocol.names import service_id, split_kid
from registry.domain.admission import FirstCome, Joined, Right, Vouched
from registry.domain.errors import BadRequest
from registry.services.end_keys import Reason
from registry.services.operators import Role, is_operator_token
from registry.web.wire import (
    bearer_token,
    calling_service,
    json_body,
    location,
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
    """Registers the key that proves itself in the body. The answer is the key statement, fresh from the entry."""
    body = json_body()
    only(body, "proof", "join")
    right = _right(service, body)
    admitted = registry().admission.admit(service, member(body, "proof", str), right)
    record, publisher = admitted.record, registry().publisher
    if admitted.new:
        rendered = publisher.new_statement(record)
    else:
        rendered = publisher.statement(service, record.thumbprint, record.admitted_seq)
    response = Response(rendered.body, 201 if admitted.new else 200, content_type=rendered.content_type)
    response.headers["Location"] = location("keys.read", service=service, thumbprint=record.thumbprint)
    return response


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
    """Ends a key: an operator any, a service's key only itself."""
    token = bearer_token()
    if token is None:
        raise MissingToken("neither an operator nor the key itself")
    reason = _reason()
    if is_operator_token(token):
        registry().ending.end(service, thumbprint, reason, operator(Role.OPERATOR).by)
    else:
        registry().ending.end(service, thumbprint, reason, _the_very_key(token, service, thumbprint), token)
    return no_content()


def _right(service: str, body: dict[str, Any]) -> Right | None:
    """What the request says to have a right by. One thing at most: which one counted would be a guess."""
    token, join = bearer_token(), body.get("join")
    if token is not None and join is not None:
        raise BadRequest("malformed_body", "a join token and a voucher at once")
    if token is not None:
        peer = calling_service(token)
        if peer.service != service:
            raise CallerNotAllowed(f"{peer.id} registers keys for itself only")
        return Vouched(split_kid(peer.kid)[1], token)
    if join is not None:
        parts = member(body, "join", dict)
        only(parts, "id", "mac")
        return Joined(member(parts, "id", str), member(parts, "mac", str))
    return FirstCome() if registry().settings.dev else None


def _the_very_key(token: str, service: str, thumbprint: str) -> dict[str, str]:
    """How an entry names the calling key, which must be the one in the path. Its sisters it cannot end: a thief of one
    key would end them all."""
    peer = calling_service(token)
    kid = f"{service_id(registry().authority.current().domain, service)}/{thumbprint}"
    if peer.kid != kid:
        raise CallerNotAllowed(f"{peer.kid} can end only itself")
    return {"self": kid}


def _reason() -> Reason:
    try:
        return Reason(parameter("reason") or "")
    except ValueError:
        raise BadRequest("invalid_parameter", "reason must be retired or compromised") from None
