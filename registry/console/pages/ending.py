"""The end of a key: what falls with it is shown first, and the service's name is typed to confirm."""

from flask import Blueprint, Response, flash, request

from registry.console.rendering import link, page, redirect
from registry.console.request import act, field, operator
from registry.domain.errors import BadRequest
from registry.services.access.operators import Role
from registry.services.keys.records import Reason
from registry.web.wire import registry

blueprint = Blueprint("ending", __name__)

_PATH = "/services/<service>/keys/<thumbprint:thumbprint>/revoke"
_SHOWN = 50
"""Keys that fall, of those that the page lists."""
_REASONS = (Reason.COMPROMISED, Reason.RETIRED)


@blueprint.get(_PATH)
def show(service: str, thumbprint: str) -> Response:
    """What ends with the key, and the form."""
    operator(Role.OPERATOR)
    return _page(service, thumbprint, reason=request.args.get("reason"))


@blueprint.post(_PATH)
def end(service: str, thumbprint: str) -> Response:
    """Revokes or retires the key. A second call changes nothing."""
    by, reason = act(), _reason()
    registry().records.key(service, thumbprint)  # raises NotFound: a pending key is rejected elsewhere
    if field("service") != service:
        return _page(service, thumbprint, f"Nothing was changed: type {service} to confirm.", 400, reason)
    ended = registry().ending.end(service, thumbprint, reason, by)
    done = "retired" if reason is Reason.RETIRED else "revoked"
    if ended:
        flash(f"{len(ended)} {'key is' if len(ended) == 1 else 'keys are'} {done}.", "done")
    else:
        flash(f"Nothing was changed: the key was {done} before.", "notice")
    return redirect(link("console.ending.show", service=service, thumbprint=thumbprint))


def _reason() -> Reason:
    text = field("reason")
    if text not in _REASONS:
        raise BadRequest("invalid_parameter", f"reason is {text!r:.40}, expected retired or compromised")
    return Reason(text)


def _page(
    service: str, thumbprint: str, refused: str | None = None, status: int = 200, reason: str | None = None
) -> Response:
    key = registry().records.key(service, thumbprint)
    kid = key["kid"]
    return page(
        "ending.html",
        status,
        service=service,
        thumbprint=thumbprint,
        key=key,
        falling=registry().records.falling(service, thumbprint, _SHOWN),
        refused=refused,
        reason=reason,
        typed=request.form,
        terminal=(f"peerseal-registry revoke {kid}", f"peerseal-registry revoke {kid} --reason retired"),
    )
