"""Policies and the domain's settings: signed for all callers, and as operators write them."""

import re
from typing import Any

from flask import Blueprint, Response, request

from peerseal.errors import CallerNotAllowed, MissingToken
from peerseal.protocol.policies import ANYONE, CallPolicy, DomainSettings
from registry.domain.errors import BadRequest, PreconditionRequired
from registry.services.access.operators import Operator, Role, is_operator_token
from registry.services.documents.policies import Setting, setting_members
from registry.web.wire import (
    NO_TRANSFORM,
    bearer_token,
    calling_service,
    entity_tags,
    json_body,
    number,
    operator,
    private_json,
    published,
    registry,
)

blueprint = Blueprint("policies", __name__, url_prefix="/v1")

RESTRICTED = "private, no-store"
UNKNOWN_SERVICE = "no key of this service was ever registered; is that the service's name?"
"""A policy may exist before its service. It may also be for a misspelt name."""
_LAST = 10**18 - 1
_ENTRY = re.compile(r"0|[1-9][0-9]{0,17}")


@blueprint.get("/services/<service>/policy.jwt")
def policy_document(service: str) -> Response:
    """Who may call the service, signed; with ``?seq=M`` as of entry M or later. Only the service, the services that it
    names, and operators may read a restricted policy."""
    rendered = registry().documents.policy(service, number("seq"))
    if rendered.readers is None:
        return published(rendered)
    _check_reader(rendered.readers)
    return published(rendered, RESTRICTED)


@blueprint.get("/domain.jwt")
def domain_document() -> Response:
    """The domain's settings, signed; with ``?seq=M`` as of entry M or later."""
    return published(registry().documents.domain(number("seq")))


@blueprint.get("/services/<service>/policy")
def policy(service: str) -> Response:
    """The policy as `set_policy` takes it, with the ETag that a change has to name."""
    _operator(Role.VIEWER)
    return _answer(registry().policies.policy(service))


@blueprint.put("/services/<service>/policy")
def set_policy(service: str) -> Response:
    """Sets who may call the service."""
    by = _operator(Role.OPERATOR).by
    seen, body = _seen(), _body()
    done = registry().policies.set_policy(service, body, seen, by)
    known = done.value is None or registry().records.has_keys(service)
    return _answer(done, None if known else UNKNOWN_SERVICE)


@blueprint.get("/domain")
def domain() -> Response:
    """The domain's settings as `set_domain` takes them, with the ETag that a change has to name."""
    _operator(Role.VIEWER)
    return _answer(registry().policies.domain())


@blueprint.put("/domain")
def set_domain() -> Response:
    """Replaces the domain's settings."""
    by = _operator(Role.ADMIN).by
    seen, body = _seen(), _body()
    return _answer(registry().policies.set_domain(body, seen, by))


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


def _answer(setting: Setting[CallPolicy | None] | Setting[DomainSettings], warning: str | None = None) -> Response:
    more = {} if warning is None else {"warning": warning}
    response = private_json({**setting_members(setting.value), "entry": setting.seq, **more})
    response.headers["ETag"] = f'"{setting.seq}"'
    response.headers["Cache-Control"] = f"no-store, {NO_TRANSFORM}"
    return response
