"""Services, one service with its keys, and one key with its vouchers: viewers may look at all of them.

The acts on keys and policies have pages of their own, to which operators find links here.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

from flask import Blueprint, Response, request

from peerseal.errors import InvalidName
from peerseal.protocol.names import check_thumbprint, make_kid, service_id, split_service_id
from peerseal.protocol.policies import ANYONE
from registry.console.rendering import link, page, redirect
from registry.console.request import operator
from registry.console.timeline import time_line
from registry.domain.errors import BadRequest, LedgerContradicted
from registry.domain.keys import KeyRecord, KeyState
from registry.domain.vouching import trees, voucher_of
from registry.services.access.operators import Role
from registry.services.keys.service_views import ENTRIES, ROWS
from registry.web.wire import number, parameter, registry

blueprint = Blueprint("services", __name__)

CALLERS: Final = 200
"""Callers of one service that are listed."""
CALLEES: Final = 50
"""Callees on a page of those that one service may call."""
_DEPTH: Final = 5
"""Branches below one another in a tree of keys that are shown: narrow screens have no room for more."""
_LONGEST: Final = 400
"""Characters of a search: more than a kid has."""


@blueprint.get("/services")
def listed() -> Response:
    """A page of the services. A search for one service or key leads to its page."""
    operator()
    sought = request.args.get("q", "").replace("\0", "").strip()[:_LONGEST]
    after = parameter("after") or ""
    found = registry().service_views.find(sought) if sought and not after else None
    if found is not None and found.thumbprint is not None:
        where = link("console.services.show", service=found.service, key=found.thumbprint)
        return redirect(f"{where}#key-{found.thumbprint}")
    if found is not None:
        return redirect(link("console.services.show", service=found.service))
    rows, more = registry().service_views.services(after, sought)
    if sought and not after and len(rows) == 1:
        return redirect(link("console.services.show", service=rows[0].name))
    return page(
        "services.html",
        rows=rows,
        sought=sought,
        after=after,
        next=rows[-1].name if more else None,
        terminal=("peerseal-registry services", "peerseal-registry keys"),
    )


@blueprint.get("/services/<service>")
def show(service: str) -> Response:
    """A service; with ``?key=`` with that key highlighted."""
    operator()
    sought = _thumbprint(parameter("key"))
    view = registry().service_views.service(service, sought)
    return page(
        "service.html",
        **_about(service),
        **_keys(view.page.keys),
        view=view,
        sought=sought,
        trees=trees(view.page.keys, _DEPTH),
        policy=_policy(service),
        callees=_callees(service, parameter("callees") or ""),
        anyone=ANYONE,
        instances_shown=ROWS,
        entries_shown=ENTRIES,
        terminal=(
            f"peerseal-registry keys {service}",
            f"peerseal-registry policy get {service}",
            f"peerseal-registry policy explain CALLER {service} SCOPE",
        ),
    )


@blueprint.get("/services/<service>/keys")
def keys(service: str) -> Response:
    """A page of the service's keys, newest first."""
    operator()
    before = number("before")
    found = registry().service_views.keys(service, before)
    commands = (f"peerseal-registry keys {service}",)
    about = {**_about(service), **_keys(found.keys)}
    return page("service_keys.html", **about, older=found.older, before=before, terminal=commands)


@blueprint.get("/services/<service>/keys/<thumbprint:thumbprint>")
def key(service: str, thumbprint: str) -> Response:
    """One key."""
    operator()
    view = registry().service_views.key(service, thumbprint)
    members = registry().records.key(service, thumbprint)
    state, about = view.record.state(registry().clock()), _about(service)
    where = {"service": service, "thumbprint": thumbprint}
    return page(
        "key.html",
        **about,
        view=view,
        members=members,
        state=state,
        rows=ROWS,
        statement=link("documents.key_statement", **where),
        pem=link("asap.active_key", domain=about["domain_name"], **where) if state is KeyState.ACTIVE else None,
        terminal=(f"peerseal-registry keys {service}", f"peerseal-registry revoke {members['kid']}"),
    )


def _about(service: str) -> dict[str, Any]:
    """What all pages about a service need."""
    domain, now = registry().authority.in_force().domain, registry().clock()
    return {
        "service": service,
        "domain_name": domain,
        "kid": lambda thumbprint: make_kid(service_id(domain, service), thumbprint),
        "state_of": lambda record: record.state(now).value,
        "voucher_of": voucher_of,
        "can_end": operator().role >= Role.OPERATOR,
    }


def _keys(records: Sequence[KeyRecord]) -> dict[str, Any]:
    """A page of keys, and their time line."""
    return {"keys": records, "line": time_line(records, registry().clock()) if records else None}


def _policy(service: str) -> dict[str, Any]:
    """Who may call the service, in short. A policy that differs from the ledger is reported, and not shown."""
    try:
        found = registry().policies.policy(service)
    except LedgerContradicted as error:
        return {"trouble": str(error)}
    if found.value is None:
        return {"seq": 0, "callers": None}
    domain, allow = registry().authority.in_force().domain, found.value.allow
    callers = [_caller(name, allow, domain) for name in sorted(allow)[:CALLERS]]
    return {
        "seq": found.seq,
        "callers": callers,
        "others": len(allow) - len(callers),
        "restricted": found.value.restricted,
    }


def _callees(service: str, after: str) -> dict[str, Any]:
    """A page of the services that this one may call by their policies, after the name ``after``."""
    graph, _ = registry().trust_graphs.current()
    found = list(islice(graph.calls_by(service, after), CALLEES + 1))
    rows, more = found[:CALLEES], len(found) > CALLEES
    return {"rows": rows, "after": after, "next": rows[-1].callee if more else None, "complete": graph.complete}


def _caller(name: str, allow: Mapping[str, Any], domain: str) -> dict[str, Any]:
    """A caller with its scopes. ``service`` is its name where it is a service of this domain."""
    owner, service = (None, None) if name == ANYONE else split_service_id(name)
    return {
        "name": name,
        "anyone": name == ANYONE,
        "service": service if owner == domain else None,
        "scopes": sorted(allow[name]),
    }


def _thumbprint(text: str | None) -> str | None:
    """The thumbprint in the query, if any. Raises BadRequest."""
    try:
        return None if text is None else check_thumbprint(text)
    except InvalidName as error:
        raise BadRequest("invalid_parameter", f"key: {error}") from error
