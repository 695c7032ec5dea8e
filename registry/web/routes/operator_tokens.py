"""Operator tokens, for admins."""

from flask import Blueprint, Response

from registry.domain.errors import BadRequest
from registry.services.access.operators import Role
from registry.storage.queries.tokens import public_members
from registry.web.wire import (
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

blueprint = Blueprint("operator_tokens", __name__, url_prefix="/v1/operator-tokens")


@blueprint.post("")
def create() -> Response:
    """Makes an operator token, which stands in this answer and nowhere else."""
    maker = operator(Role.ADMIN)
    body = json_body()
    only(body, "role", "ttl")
    role, ttl = _role(member(body, "role", str)), member(body, "ttl", int)
    record, token = registry().operators.create(role, ttl, maker.by, maker.role)
    response = private_json({"token": token, **public_members(record)}, 201)
    response.headers["Location"] = location("operator_tokens.revoke", token_id=record.id)
    return response


@blueprint.get("")
def listed() -> Response:
    """A page of the operator tokens, past ones too, without their secrets."""
    operator(Role.ADMIN)
    return private_json(registry().operators.page(parameter("after") or "", number("limit") or None))


@blueprint.delete("/<token_id:token_id>")
def revoke(token_id: str) -> Response:
    """Makes an operator token useless."""
    registry().operators.revoke(token_id, operator(Role.ADMIN).by)
    return no_content()


def _role(label: str) -> Role:
    try:
        return Role.of(label)
    except ValueError:
        raise BadRequest("invalid_parameter", "no such role") from None
