"""Operators' calls: services, the audit trail, applicants, join tokens and operator tokens."""

from flask import Blueprint, Response

from registry.domain.errors import BadRequest
from registry.domain.keys import Applicant
from registry.services.access.operators import Role
from registry.storage.queries.tokens import public_members
from registry.web.wire import (
    admitted_key,
    created,
    json_body,
    member,
    no_content,
    number,
    only,
    operator,
    page,
    private_json,
    registry,
)

operators_blueprint = Blueprint("operators", __name__, url_prefix="/v1")
tokens_blueprint = Blueprint("operator_tokens", __name__, url_prefix="/v1/operator-tokens")
applicants_blueprint = Blueprint("applicants", __name__, url_prefix="/v1")
BLUEPRINTS = (operators_blueprint, tokens_blueprint, applicants_blueprint)

DEFAULT_TTL = 600
"""Seconds that a join token lives where the request names no other lifetime."""


@operators_blueprint.get("/services")
def services() -> Response:
    """A page of the services."""
    operator(Role.VIEWER)
    return page(registry().records.services)


@operators_blueprint.get("/audit")
def audit() -> Response:
    """A page of the audit trail."""
    operator(Role.VIEWER)
    return private_json(registry().audit.page(number("after"), number("limit") or None))


@operators_blueprint.post("/join-tokens")
def create_join_token() -> Response:
    """Makes a join token. Only this answer contains it."""
    by = operator(Role.OPERATOR).by
    body = json_body()
    only(body, "service", "ttl", "uses")
    ttl, uses = member(body, "ttl", int, DEFAULT_TTL), member(body, "uses", int, 1)
    made = registry().join_tokens.create(member(body, "service", str), ttl, uses, by)
    members = {"token": made.token, **public_members(made.record)}
    return created(members, "operators.withdraw_join_token", token_id=made.record.id)


@operators_blueprint.get("/join-tokens", endpoint="join_tokens")
def list_join_tokens() -> Response:
    """A page of the join tokens, past ones too, without their secrets."""
    operator(Role.VIEWER)
    return page(registry().join_tokens.page)


@operators_blueprint.delete("/join-tokens/<token_id:token_id>")
def withdraw_join_token(token_id: str) -> Response:
    """Withdraws a join token."""
    registry().join_tokens.withdraw(token_id, operator(Role.OPERATOR).by)
    return no_content()


@tokens_blueprint.post("")
def create() -> Response:
    """Makes an operator token. Only this answer contains it."""
    maker = operator(Role.ADMIN)
    body = json_body()
    only(body, "role", "ttl")
    role, ttl = _role(member(body, "role", str)), member(body, "ttl", int)
    record, token = registry().operators.create(role, ttl, maker.by, maker.role)
    members = {"token": token, **public_members(record)}
    return created(members, "operator_tokens.revoke", token_id=record.id)


@tokens_blueprint.get("")
def listed() -> Response:
    """A page of the operator tokens, past ones too, without their secrets."""
    operator(Role.ADMIN)
    return page(registry().operators.page)


@tokens_blueprint.delete("/<token_id:token_id>")
def revoke(token_id: str) -> Response:
    """Revokes an operator token."""
    registry().operators.revoke(token_id, operator(Role.ADMIN).by)
    return no_content()


@applicants_blueprint.get("/applicants")
def waiting() -> Response:
    """A page of the applicants that wait for an operator."""
    operator(Role.VIEWER)
    return page(registry().applicants.page)


@applicants_blueprint.post("/services/<service>/keys/<thumbprint:thumbprint>/approve")
def approve(service: str, thumbprint: str) -> Response:
    """Admits an applicant. The answer is the key statement."""
    return admitted_key(registry().applicants.approve(service, thumbprint, operator(Role.OPERATOR).by))


def pending(applicant: Applicant) -> Response:
    """The answer to an applicant: 202, and nothing signed. A document that the registry signed under this kid would
    vouch for a key that no operator admitted."""
    return private_json(registry().applicants.answer(applicant), 202)


def _role(label: str) -> Role:
    try:
        return Role.of(label)
    except ValueError:
        raise BadRequest("invalid_parameter", f"role is {label!r:.40}; expected viewer, operator or admin") from None
