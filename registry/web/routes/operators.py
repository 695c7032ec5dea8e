"""What only operators may do or see."""

from flask import Blueprint, Response

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

blueprint = Blueprint("operators", __name__, url_prefix="/v1")

DEFAULT_TTL = 600
"""Seconds that a join token lives where nothing else is asked for."""


@blueprint.get("/services")
def services() -> Response:
    """A page of the services."""
    operator(Role.VIEWER)
    return private_json(registry().records.services(parameter("after") or "", number("limit") or None))


@blueprint.get("/audit")
def audit() -> Response:
    """A page of the audit trail."""
    operator(Role.VIEWER)
    return private_json(registry().audit.page(number("after"), number("limit") or None))


@blueprint.post("/join-tokens")
def create_join_token() -> Response:
    """Makes a join token, which stands in this answer and nowhere else."""
    by = operator(Role.OPERATOR).by
    body = json_body()
    only(body, "service", "ttl", "uses")
    ttl, uses = member(body, "ttl", int, DEFAULT_TTL), member(body, "uses", int, 1)
    made = registry().join_tokens.create(member(body, "service", str), ttl, uses, by)
    response = private_json({"token": made.token, **public_members(made.record)}, 201)
    response.headers["Location"] = location("operators.withdraw_join_token", token_id=made.record.id)
    return response


@blueprint.get("/join-tokens")
def join_tokens() -> Response:
    """A page of the join tokens, past ones too, without their secrets."""
    operator(Role.VIEWER)
    return private_json(registry().join_tokens.page(parameter("after") or "", number("limit") or None))


@blueprint.delete("/join-tokens/<token_id:token_id>")
def withdraw_join_token(token_id: str) -> Response:
    """Makes a join token useless."""
    registry().join_tokens.withdraw(token_id, operator(Role.OPERATOR).by)
    return no_content()
