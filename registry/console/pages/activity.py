"""Activity: the ledger and the operators' audit trail as one list, the newest first, and live where scripts run."""

from typing import Any, Final

from flask import Blueprint, Response

from peerseal.protocol.ledger import entries
from registry.console.rendering import by_text, json_answer, link, page, time_text
from registry.console.request import operator
from registry.services.insight.activity import WINDOW, Event, Filter, Position
from registry.storage.queries import audit
from registry.web.wire import parameter, registry

blueprint = Blueprint("activity", __name__)

TYPES: Final = (
    entries.KEY_ADMITTED,
    entries.KEY_RETIRED,
    entries.KEY_REVOKED,
    entries.POLICY_SET,
    entries.DOMAIN_SET,
    entries.FEDERATION_SET,
    entries.JOIN_TOKEN_CREATED,
    entries.JOIN_TOKEN_WITHDRAWN,
    entries.OPERATOR_CREATED,
    entries.OPERATOR_REVOKED,
    audit.APPLICANT_REJECTED,
    audit.SIGNED_IN,
    audit.SIGNED_OUT_EVERYWHERE,
    entries.REGISTRY_CREATED,
    entries.REGISTRY_KEYS_ISSUED,
    entries.REGISTRY_RESTORED,
    entries.HISTORY_DECLARED,
)
"""The types that the page offers as filters, the frequent ones first."""


@blueprint.get("/activity")
def show() -> Response:
    """A page of events; with ``?before=`` the ones before that position."""
    operator()
    only, before = _filter(), parameter("before")
    found = registry().activity.older(Position.read(before) if before else None, only)
    return page(
        "activity.html",
        rows=[_row(event) for event in found.events],
        only=only,
        filters=_members(only),
        types=TYPES,
        window=WINDOW,
        older=link("console.activity.show", before=str(found.end), **_members(only)) if found.more else None,
        live=None if before else link("console.activity.newer", **_members(only)),
        head=found.head,
        terminal=("peerseal-registry audit",),
    )


@blueprint.get("/activity.json")
def newer() -> Response:
    """``{"rows": […], "after", "more"}``: the events after the position ``?after=``, oldest first, as the page's script
    adds them."""
    operator()
    found = registry().activity.newer(Position.read(parameter("after") or ""), _filter())
    return json_answer({"rows": [_row(event) for event in found.events], "after": str(found.end), "more": found.more})


def _filter() -> Filter:
    return Filter(parameter("type"), parameter("service"), parameter("operator"))


def _members(only: Filter) -> dict[str, str]:
    found = {"type": only.type, "service": only.service, "operator": only.operator}
    return {name: value for name, value in found.items() if value}


def _row(event: Event) -> dict[str, Any]:
    """An event as the page and its script show it: texts, and links, null where there is none."""
    of_operator = (event.by or {}).get("operator")
    return {
        "time": event.time,
        "time_text": time_text(event.time),
        "type": event.type,
        "type_link": link("console.activity.show", type=event.type),
        "service": event.service,
        "service_link": event.service and link("console.activity.show", service=event.service),
        "subject": None if event.subject == of_operator else event.subject,
        "said": event.said,
        "by": "unknown: the entry was altered" if event.by is None else by_text(event.by),
        "by_link": of_operator and link("console.activity.show", operator=of_operator),
        "seq": event.seq,
        "seq_link": None if event.seq is None else link("console.ledger.entry", seq=event.seq),
    }
