"""The federation: which foreign trust domains the own services may believe, each under the root that was told.

No page asks a foreign registry: what it serves is compared with the root where `peerseal-registry federation` runs, and
by each service that believes it.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Final

from flask import Blueprint, Response, flash, request

from peerseal.errors import DocumentRefused, InvalidName, MalformedToken
from peerseal.protocol.documents.federation import MAX_DOMAINS, FederatedDomain, Federation
from registry.console.federation_draft import Draft
from registry.console.rendering import link, page, redirect
from registry.console.request import act, field, number_field, operator
from registry.domain.errors import BadRequest, NotFound, PreconditionFailed
from registry.domain.federation import federation_from, without
from registry.services.access.operators import Role
from registry.services.documents.policies import Setting
from registry.web.wire import parameter, registry

blueprint = Blueprint("federation", __name__)

SHOWN: Final = 10
"""Foreign domains of one page."""
NAMED: Final = 12
"""Services, or scopes, that are shown at once; more of them are folded."""
SHOWN_CALLS: Final = 50
"""Calls that end with a removal, of those that its page lists."""
_REFUSED = (BadRequest, NotFound, InvalidName, MalformedToken, DocumentRefused)


@blueprint.get("/settings/federation")
def show() -> Response:
    """The domains, and for admins the form that adds one; with ``?change=`` it has what holds for that domain."""
    operator()
    known = registry().federations.current().value.of(parameter("change") or "")
    return _page(Draft.of(known[0]) if known else Draft())


@blueprint.post("/settings/federation")
def add() -> Response:
    """Believes a domain, or replaces its URLs and limits, if the federation that the admin saw still holds."""
    by, seen = act(Role.ADMIN), number_field("entry")
    draft = Draft.read(request.form)
    try:
        wanted = draft.added_to(registry().federations.current().value, registry().clock())
        done = _replaced(wanted, seen, by)
    except _REFUSED as error:
        return _page(draft, 400, str(error))
    if done is None:
        conflict = "Another operator changed the federation meanwhile. Compare, and add again"
        return _page(draft, PreconditionFailed.status, conflict)
    flash(f"The federation is that of entry {done.seq}.", "done")
    return redirect(link("console.federation.show"))


def _replaced(wanted: Federation, seen: int, by: Mapping[str, str]) -> Setting[Federation] | None:
    """The federation in force, which is the wanted one; None where another one was set since ``seen``."""
    try:
        return registry().federations.replace(wanted.to_json(), {seen}, by)
    except PreconditionFailed:
        stored, authority = registry().federations.current(), registry().authority.in_force()
        same = stored.value == federation_from(wanted.to_json(), authority.domain, authority.pin)
        return stored if same else None  # the same form, sent twice


def _page(draft: Draft, status: int = 200, refused: str | None = None) -> Response:
    after, now = parameter("after") or "", registry().federations.believed()
    domains = [one for one in now.registries if one.registry.domain > after]
    names = sorted({one.registry.domain for one in domains})
    last = names[SHOWN - 1] if len(names) > SHOWN else None
    return page(
        "federation.html",
        status,
        entry=now.setting.seq,
        believed=[one for one in domains if last is None or one.registry.domain <= last],
        total=len({one.domain for one in now.setting.value.domains}),
        most=MAX_DOMAINS,
        after=after,
        next=last,
        named=NAMED,
        typed=draft,
        refused=refused,
        terminal=(
            "peerseal-registry federation list",
            "peerseal-registry federation accept FILE --pin PIN --service NAME --scopes 'SCOPE SCOPE'",
            "peerseal-registry federation add DOMAIN --url URL --pin PIN",
            "peerseal-registry federation remove DOMAIN",
        ),
    )


@blueprint.get("/settings/federation/<domain>/remove")
def confirm(domain: str) -> Response:
    """What ends with the trust in a domain, or with ``?root=`` in one of its two roots, and the form."""
    operator(Role.ADMIN)
    return _remove_page(domain, parameter("root") or "")


@blueprint.post("/settings/federation/<domain>/remove")
def remove(domain: str) -> Response:
    """Takes the trust away. The name of the domain was typed."""
    by, root, typed = act(Role.ADMIN), field("root"), field("confirm", 300)
    if typed != domain:
        return _remove_page(domain, root, 400, typed)
    found = registry().federations.current()
    try:
        wanted = without(found.value, domain, root or None)
    except NotFound as error:
        flash(f"Nothing was changed: {error}.", "notice")
    else:
        done = registry().federations.replace(wanted.to_json(), {found.seq}, by)
        left = done.value.of(domain)
        told = f"is believed under the root {left[0].root} alone" if left else "is not believed any more"
        flash(f"{domain} {told}, by entry {done.seq} of the ledger.", "done")
    return redirect(link("console.federation.show"))


def _remove_page(domain: str, root: str, status: int = 200, typed: str | None = None) -> Response:
    """Raises NotFound where the domain is not believed, or not under that root."""
    found = registry().federations.current().value
    left = without(found, domain, root or None).of(domain)
    graph, _ = registry().trust_graphs.current()
    calls = () if left else graph.calls_from(domain)
    return page(
        "federation_remove.html",
        status,
        federated=domain,
        going=_going(found.of(domain), left),
        left=left,
        root=root,
        calls=list(islice(calls, SHOWN_CALLS + 1)),
        shown=SHOWN_CALLS,
        named=NAMED,
        typed=typed,
        terminal=(f"peerseal-registry federation remove {domain}{f' --root {root}' if root else ''}",),
    )


def _going(before: tuple[FederatedDomain, ...], left: tuple[FederatedDomain, ...]) -> list[FederatedDomain]:
    return [one for one in before if one not in left]
