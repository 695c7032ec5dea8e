"""Operators' calls: services, the audit trail, applicants, tokens, policies, the domain's settings and the federation.

Policies, the domain's settings and the federation are also read as signed documents, by all callers.
"""

import re
from typing import Any

from flask import Blueprint, Response, request

from peerseal.errors import CallerNotAllowed, MissingToken
from peerseal.protocol.policies import ANYONE, CallPolicy
from registry.domain.errors import BadRequest, PreconditionRequired
from registry.domain.federation import unbelieved
from registry.domain.keys import Applicant
from registry.services.access.operators import Operator, Role, is_operator_token
from registry.services.documents.policies import AnySetting, setting_members
from registry.storage.queries.tokens import public_members
from registry.web.published import NO_TRANSFORM, entity_tags, published
from registry.web.wire import (
    admitted_key,
    bearer_token,
    calling_service,
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
    role_named,
)

operators_blueprint = Blueprint("operators", __name__, url_prefix="/v1")
tokens_blueprint = Blueprint("operator_tokens", __name__, url_prefix="/v1/operator-tokens")
applicants_blueprint = Blueprint("applicants", __name__, url_prefix="/v1")
policies_blueprint = Blueprint("policies", __name__, url_prefix="/v1")
BLUEPRINTS = (operators_blueprint, tokens_blueprint, applicants_blueprint, policies_blueprint)

RESTRICTED = "private, no-store"
UNKNOWN_SERVICE = "no key of this service was ever registered; is that the service's name?"
"""A policy may exist before its service. It may also be for a misspelt name."""
_LAST = 10**18 - 1
_ENTRY = re.compile(r"0|[1-9][0-9]{0,17}")

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
    role, ttl = role_named(member(body, "role", str)), member(body, "ttl", int)
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


@policies_blueprint.get("/services/<service>/policy.jwt")
def policy_document(service: str) -> Response:
    """Who may call the service, signed; with ``?seq=M`` as of entry M or later. Only the service, the services that it
    names, and operators may read a restricted policy."""
    rendered = registry().documents.policy(service, number("seq"))
    if rendered.readers is None:
        return published(rendered)
    _check_reader(rendered.readers)
    return published(rendered, RESTRICTED)


@policies_blueprint.get("/domain.jwt")
def domain_document() -> Response:
    """The domain's settings, signed; with ``?seq=M`` as of entry M or later."""
    return published(registry().documents.domain(number("seq")))


@policies_blueprint.get("/federation.jwt")
def federation_document() -> Response:
    """The foreign trust domains that are believed, signed; with ``?seq=M`` as of entry M or later."""
    return published(registry().documents.federation(number("seq")))


@policies_blueprint.get("/services/<service>/policy")
def policy(service: str) -> Response:
    """The policy as `set_policy` takes it, with the ETag that a change has to name."""
    _operator(Role.VIEWER)
    return _answer(registry().policies.policy(service))


@policies_blueprint.put("/services/<service>/policy")
def set_policy(service: str) -> Response:
    """Sets who may call the service."""
    by = _operator(Role.OPERATOR).by
    seen, body = _seen(), _body()
    done = registry().policies.set_policy(service, body, seen, by)
    return _answer(done, None if done.value is None else _warning(service, done.value))


def _warning(service: str, policy: CallPolicy) -> str | None:
    """What may be a mistake in a policy, if anything."""
    if not registry().records.has_keys(service):
        return UNKNOWN_SERVICE
    own = registry().authority.current().domain
    foreign = unbelieved(policy.allow, own, lambda: registry().federations.current().value)
    return f"not believed, so none of their services may call: {', '.join(foreign)}" if foreign else None


@policies_blueprint.get("/domain")
def domain() -> Response:
    """The domain's settings as `set_domain` takes them, with the ETag that a change has to name."""
    _operator(Role.VIEWER)
    return _answer(registry().policies.domain())


@policies_blueprint.put("/domain")
def set_domain() -> Response:
    """Replaces the domain's settings."""
    by = _operator(Role.ADMIN).by
    seen, body = _seen(), _body()
    return _answer(registry().policies.set_domain(body, seen, by))


@policies_blueprint.get("/federation")
def federation() -> Response:
    """The foreign trust domains that are believed, as `set_federation` takes them, with the ETag that a change has to
    name."""
    _operator(Role.VIEWER)
    return _answer(registry().federations.current())


@policies_blueprint.put("/federation")
def set_federation() -> Response:
    """Replaces them all."""
    by = _operator(Role.ADMIN).by
    seen, body = _seen(), _body()
    return _answer(registry().federations.replace(body, seen, by))


def _operator(needs: Role) -> Operator:
    """The operator who calls. A service's token is refused with CallerNotAllowed, even for its own policy: a thief of
    one key could otherwise change it. Raises also as `registry.web.wire.operator`."""
    token = bearer_token()
    if token is not None and not is_operator_token(token) and token.count(".") == 2:
        raise CallerNotAllowed(f"{calling_service(token).id} is no operator")
    return operator(needs)


def _check_reader(readers: frozenset[str]) -> None:
    token = bearer_token()
    if token is None:
        raise MissingToken("the policy is restricted")
    if is_operator_token(token):
        operator(Role.VIEWER)
        return
    peer = calling_service(token)
    if peer.id not in readers and ANYONE not in readers:
        raise CallerNotAllowed(f"{peer.id} may not read a policy that does not name it")


def _seen() -> frozenset[int]:
    """The entries that If-Match names. ``*`` names none, because it would replace a setting that the operator has not
    seen. Raises PreconditionRequired."""
    named = request.headers.get("If-Match")
    if not named:
        raise PreconditionRequired("If-Match has to name the ETag of what is to be replaced")
    return frozenset(int(tag) for tag in entity_tags(named) if _ENTRY.fullmatch(tag))


def _body() -> dict[str, Any]:
    """The body without the members ``entry`` and ``warning`` of an answer: If-Match names the replaced entry."""
    members = json_body()
    if type(members.pop("warning", "")) is not str:
        raise BadRequest("malformed_body", "member warning is not a string")
    entry = members.pop("entry", 0)
    if type(entry) is not int or not 0 <= entry <= _LAST:
        raise BadRequest("malformed_body", "member entry is not the number of an entry")
    return members


def _answer(setting: AnySetting, warning: str | None = None) -> Response:
    more = {} if warning is None else {"warning": warning}
    response = private_json({**setting_members(setting.value), "entry": setting.seq, **more})
    response.headers["ETag"] = f'"{setting.seq}"'
    response.headers["Cache-Control"] = f"no-store, {NO_TRANSFORM}"
    return response
