"""The domain's settings, the registry's own keys, and the operators."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flask import Blueprint, Response, flash

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger.checkpoint import ledger_jwk, signed_note_key
from peerseal.protocol.policies import DomainSettings
from registry.console.policy_draft import readable
from registry.console.rendering import link, page, redirect
from registry.console.request import act, field, is_new_form, number_field, operator, signed_in
from registry.domain.errors import BadRequest, NotFound, PreconditionFailed, RoleRefused
from registry.domain.policy import explain_domain, settings_from
from registry.services.access.operators import Role
from registry.services.authority.authority import RENEW_BEFORE, Authority
from registry.services.documents.policies import Setting
from registry.web.wire import parameter, registry, role_named

blueprint = Blueprint("settings", __name__)

OPERATORS = 50
"""Rows of one page of operator tokens."""
DAYS = (1, 7, 30, 90, 365)
"""Lifetimes that the form for a new operator token offers."""
USUAL_DAYS = 90
_DAY = 86_400


@blueprint.get("/settings")
def show() -> Response:
    """The domain's settings, and for admins a form that replaces them."""
    operator()
    return _domain_page()


@blueprint.post("/settings")
def save() -> Response:
    """Replaces the domain's settings, if the entry that the admin saw still holds."""
    by = act(Role.ADMIN)
    text, seen = field("settings", 2 * registry().settings.limits.policy_body), number_field("entry")
    try:
        done = _saved(strict_json_object(text), seen, by)
    except (BadRequest, MalformedToken) as error:
        return _domain_page(400, text, str(error))
    if done is None:
        conflict = "Another operator replaced them meanwhile. Compare, and save again"
        return _domain_page(PreconditionFailed.status, text, conflict)
    flash(f"The settings are those of entry {done.seq}.", "done")
    return redirect(link("console.settings.show"))


def _saved(members: Mapping[str, Any], seen: int, by: Mapping[str, str]) -> Setting[DomainSettings] | None:
    """The settings in force, which are the typed ones; None where others were set since ``seen``. Raises BadRequest or
    MalformedToken."""
    try:
        return registry().policies.set_domain(members, {seen}, by)
    except PreconditionFailed:
        stored = registry().policies.domain()
        typed = settings_from(members, registry().authority.in_force().domain)
        return stored if stored.value == typed else None  # the same form, sent twice


def _domain_page(status: int = 200, typed: str | None = None, refused: str | None = None) -> Response:
    setting = registry().policies.domain()
    text = readable(setting.value.to_json())
    return page(
        "settings.html",
        status,
        entry=setting.seq,
        sentences=explain_domain(setting.value, setting.seq),
        text=text,
        typed=text if typed is None else typed,
        refused=refused,
        terminal=(
            "peerseal-registry domain explain",
            "peerseal-registry domain get --json > settings.json",
            f"peerseal-registry domain set settings.json --if-match {setting.seq}",
        ),
    )


# ---- the registry's own keys


class _Key(NamedTuple):
    """A key as the page shows it, and whether this node signs with it."""

    name: str
    signs: bool


@blueprint.get("/settings/keys")
def keys() -> Response:
    """Root, signing and ledger keys, and what to do about them where the root key is."""
    operator()
    authority = registry().authority.in_force()
    return page(
        "settings_keys.html",
        document=authority.keys,
        pin=authority.pin,
        ends_soon=authority.keys.expires_at - registry().clock() < RENEW_BEFORE,
        signing=[_signing(authority, key) for key in authority.keys.signing_keys],
        ledger=_ledger_keys(authority),
        terminal=(
            "peerseal-registry root request signing ledger --out request.json",
            "peerseal-registry root sign request.json --root-key root-key.pem --out new.jwt",
            "peerseal-registry root publish new.jwt",
        ),
    )


def _signing(authority: Authority, key: PublicKey) -> _Key:
    return _Key(key.thumbprint, key == authority.signing_key.public)


def _ledger_keys(authority: Authority) -> list[_Key]:
    own = ledger_jwk(authority.ledger_key.public_key())
    return [_Key(signed_note_key(authority.domain, jwk), jwk == own) for jwk in authority.keys.ledger_keys]


# ---- operators


@blueprint.get("/settings/operators")
def operators() -> Response:
    """A page of the operator tokens, past ones too."""
    operator(Role.ADMIN)
    return _operators_page()


@blueprint.post("/settings/operators")
def create() -> Response:
    """Makes an operator token. Only this answer contains it."""
    maker = operator(Role.ADMIN)
    if _came_by_issuer():
        raise RoleRefused("a token would outlive the issuer: make it with an operator token, or at a terminal")
    if not is_new_form():
        return redirect(link("console.settings.operators"))
    ttl = number_field("days") * _DAY
    record, token = registry().operators.create(role_named(field("role")), ttl, maker.by, maker.role)
    return _operators_page(201, made=record, token=token)


def _came_by_issuer() -> bool:
    """Whether the operators' issuer named this person."""
    session = signed_in()
    return session is not None and session.name is not None


def _operators_page(status: int = 200, **made: object) -> Response:
    after = parameter("after") or ""
    found = registry().operators.page(after, OPERATORS)
    most = registry().settings.limits.operator_ttl // _DAY
    return page(
        "operators.html",
        status,
        after=after,
        rows=found["operator_tokens"],
        names=registry().operators.names([row["id"] for row in found["operator_tokens"]]),
        next=found["next"],
        may_make=not _came_by_issuer(),
        roles=[role.label for role in Role],
        days=[days for days in DAYS if days <= most],
        usual_days=min(USUAL_DAYS, most),
        terminal=(
            "peerseal-registry operator-token list",
            "peerseal-registry operator-token create --role operator --ttl 90d",
            "peerseal-registry operator-token revoke TOKEN_ID",
        ),
        **made,
    )


@blueprint.get("/settings/operators/<token_id:token_id>/revoke")
def confirm(token_id: str) -> Response:
    """Asks for the id before a token is revoked."""
    operator(Role.ADMIN)
    return _revoke_page(token_id)


@blueprint.post("/settings/operators/<token_id:token_id>/revoke")
def revoke(token_id: str) -> Response:
    """Revokes an operator token, whose id was typed."""
    by = act(Role.ADMIN)
    typed = field("confirm")
    if typed != token_id:
        return _revoke_page(token_id, 400, typed)
    try:
        registry().operators.revoke(token_id, by)
    except NotFound:
        flash(f"Operator token {token_id} was revoked before, or is not kept any more.", "notice")
    else:
        flash(f"Operator token {token_id} is revoked, and its sessions have ended.", "done")
    return redirect(link("console.settings.operators"))


def _revoke_page(token_id: str, status: int = 200, typed: str | None = None) -> Response:
    return page(
        "operator_revoke.html",
        status,
        token=registry().operators.find(token_id),
        typed=typed,
        terminal=(f"peerseal-registry operator-token revoke {token_id}",),
    )
