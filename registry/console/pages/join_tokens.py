"""Join tokens: listed without their secrets, made and shown once, and withdrawn."""

import shlex
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, flash, request

from peerseal.errors import InvalidName
from registry.console.rendering import link, page, redirect
from registry.console.request import act, field, is_new_form, number_field, operator
from registry.domain.errors import BadRequest, NotFound
from registry.services.keys.rights import NewJoinToken
from registry.storage.queries.tokens import public_members
from registry.web.wire import parameter, registry

blueprint = Blueprint("join_tokens", __name__)

_PAGE = 50
_LIFETIMES = (("10 minutes", 600), ("1 hour", 3_600), ("1 day", 86_400), ("7 days", 604_800))


@blueprint.get("/join-tokens")
def show() -> Response:
    """The tokens, past ones too, and the form for a new one."""
    operator()
    return _page()


@blueprint.post("/join-tokens")
def create() -> Response:
    """Makes a token. Only this answer contains it: it is not redirected, so the token is in no address or cookie."""
    by = act()
    if not is_new_form():
        return redirect(link("console.join_tokens.show"))
    try:
        service, ttl, uses = field("service"), number_field("ttl"), number_field("uses")
        made = registry().join_tokens.create(service, ttl, uses, by)
    except (InvalidName, BadRequest) as error:
        return _page(str(error), error.status)
    return page(
        "join_token_made.html",
        token=made.token,
        made=public_members(made.record),
        line=_line(made),
        terminal=(f"peerseal-registry join-token create {service} --ttl {ttl}s --uses {uses}", "peerseal join"),
    )


@blueprint.post("/join-tokens/<token_id:token_id>/withdraw")
def withdraw(token_id: str) -> Response:
    """Makes a token useless."""
    by = act()
    try:
        registry().join_tokens.withdraw(token_id, by)
    except NotFound:
        flash(f"Join token {token_id} was withdrawn before, or is not kept any more.", "notice")
    else:
        flash(f"Join token {token_id} is withdrawn. Keys that it admitted stay.", "done")
    return redirect(link("console.join_tokens.show"))


def _page(refused: str | None = None, status: int = 200) -> Response:
    after, limits = parameter("after") or "", registry().settings.limits
    found = registry().join_tokens.page(after, _PAGE)
    lifetimes = [(name, ttl) for name, ttl in _LIFETIMES if ttl <= limits.join_ttl]
    now = registry().clock()
    return page(
        "join_tokens.html",
        status,
        tokens=[{**row, "state": _state(row, now)} for row in found["join_tokens"]],
        after=after,
        next=found["next"],
        refused=refused,
        typed=request.form,
        lifetimes=lifetimes or [(f"{limits.join_ttl} seconds", limits.join_ttl)],
        most_uses=limits.join_uses,
        terminal=(
            "peerseal-registry join-token create SERVICE --ttl 10m --uses 1",
            "peerseal-registry join-token list",
            "peerseal-registry join-token revoke ID",
        ),
    )


def _state(row: Mapping[str, Any], now: float) -> str:
    if row["withdrawn"]:
        return "withdrawn"
    if row["expires_at"] <= now:
        return "expired"
    return "spent" if row["used"] >= row["uses"] else "active"


def _line(made: NewJoinToken) -> str:
    """Settings for the service's host, ready to paste into a shell or an environment file."""
    values = {
        "PEERSEAL_SERVICE": made.record.service,
        "PEERSEAL_JOIN_TOKEN": made.token,
        "PEERSEAL_REGISTRY_URL": _address() + registry().settings.external_prefix,
        "PEERSEAL_REGISTRY_PIN": registry().authority.current().pin,
    }
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items())


def _address() -> str:
    """The registry's address as the operator's browser knows it. A proxy that ends TLS changes the scheme and may
    change the host of the request, but not the browser's Origin."""
    origin = request.headers.get("Origin", "")
    return origin if origin.startswith(("https://", "http://")) else request.host_url.rstrip("/")
