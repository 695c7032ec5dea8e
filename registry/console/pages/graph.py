"""The trust graph: who may call whom by the policies, and what the theft of a service's key reaches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from flask import Blueprint, Response

from peerseal.protocol.documents.federation import Federation
from peerseal.protocol.policies import ANYONE
from registry.console.rendering import json_answer, link, page
from registry.console.request import operator
from registry.domain.errors import BadRequest
from registry.domain.federation import refusal, refusal_of_service
from registry.domain.trust_graph import Call, TrustGraph, is_foreign
from registry.web.wire import parameter, registry

blueprint = Blueprint("graph", __name__)

LISTED: Final = 200
"""Rows of each list of the page."""
DRAWN: Final = 20_000
"""Calls of one drawing: a browser draws as many in about a second."""
_LONGEST: Final = 100
_PATH_ENDS: Final = 5
"""Services at either end of a long path that are named."""


class Listed(NamedTuple):
    """The first rows of a list, and the number of all."""

    rows: list[Call]
    number: int


@blueprint.get("/graph")
def show() -> Response:
    """The calls of all services, some at a time; with ``?of=`` those of one service, and what it reaches."""
    operator()
    graph, seq = registry().trust_graphs.current()
    of = _service("of")
    values = _of_one(graph, of) if of else _of_all(graph, _service("after"))
    return page(
        "graph.html",
        graph=graph,
        seq=seq,
        of=of,
        anyone=ANYONE,
        foreign=is_foreign,
        kept_out=_kept_out(registry().federations.current().value),
        listed=LISTED,
        drawing=link("console.graph.drawing", **({"of": of} if of else {})),
        terminal=(_terminal(of, values),),
        **values,
    )


@blueprint.get("/graph.json")
def drawing() -> Response:
    """``{"nodes": [name], "calls": [[caller, callee, scopes]], "scopes": [[scope]], "more"}`` for the script that
    draws: numbers are places in the lists. With ``?of=`` the callers of one service, and what it reaches."""
    operator()
    graph, _ = registry().trust_graphs.current()
    of = _service("of")
    calls = _calls_around(graph, of) if of else graph.calls()
    return json_answer({**drawn(islice(calls, DRAWN)), "more": next(calls, None) is not None})


def _terminal(of: str, values: Mapping[str, Any]) -> str:
    if values.get("outside"):
        return f"peerseal-registry policy explain {of} SERVICE SCOPE"
    return f"peerseal-registry policy get {of if _is_plain(of) else 'SERVICE'}"


def _kept_out(federation: Federation) -> Callable[[Call], str | None]:
    """Says what the federation keeps out of a call that a policy allows; nothing of a call of the own domain."""

    def say(call: Call) -> str | None:
        if not is_foreign(call.caller):
            return None
        if reason := refusal_of_service(federation, call.caller):
            return reason
        scopes = [scope for scope in call.scopes if refusal(federation, call.caller, scope)]
        return f"the federation lets no scope {', '.join(scopes)} in" if scopes else None

    return say


def drawn(calls: Iterable[Call]) -> dict[str, Any]:
    """The calls in numbers."""
    nodes, scopes = dict[str, int](), dict[tuple[str, ...], int]()
    edges = [
        [
            nodes.setdefault(call.caller, len(nodes)),
            nodes.setdefault(call.callee, len(nodes)),
            scopes.setdefault(call.scopes, len(scopes)),
        ]
        for call in calls
    ]
    return {"nodes": list(nodes), "calls": edges, "scopes": [list(each) for each in scopes]}


def _calls_around(graph: TrustGraph, of: str) -> Iterator[Call]:
    yield from graph.calls_of(of)
    for caller in (ANYONE, *graph.reached_from(of).distances):
        callees = graph.callees.get(caller, {})
        yield from (Call(caller, callee, callees[callee]) for callee in sorted(callees) if callee != of)


def _of_all(graph: TrustGraph, after: str) -> dict[str, Any]:
    """A page of the calls: whole callees, as many as have some `LISTED` calls together."""
    rows, last = list[Call](), None
    for callee in graph.after(after):
        if len(rows) >= LISTED:
            return {"calls": rows, "after": after, "next": last}
        rows += islice(graph.calls_of(callee), LISTED)
        last = callee
    return {"calls": rows, "after": after, "next": None}


def _of_one(graph: TrustGraph, of: str) -> dict[str, Any]:
    settings = registry().policies.domain().value
    own = of if is_foreign(of) else f"{registry().authority.in_force().domain}/{of}"
    reach = graph.reached_from(of)
    outside = of in graph.callees and is_foreign(of)
    return {
        "known": graph.knows(of),
        "outside": outside,
        "refused": refusal_of_service(registry().federations.current().value, of) if outside else None,
        "has_policy": of in graph.policies,
        "callers": _first(graph.calls_of(of)),
        "callees": _first(graph.calls_by(of)),
        "reach": reach,
        "reached": reach.nearest(LISTED),
        "path_text": path_text,
        "mints": own in settings.minters,
        "exchanges": own in settings.exchange,
    }


def path_text(path: Sequence[str]) -> str:
    """A path in one line; of a long one its ends."""
    steps = ["as anyone" if step == ANYONE else step for step in path]
    if (left_out := len(steps) - 2 * _PATH_ENDS) > 1:
        steps[_PATH_ENDS:-_PATH_ENDS] = [f"{left_out} more"]
    return " → ".join(steps)


def _first(rows: Iterable[Call]) -> Listed:
    found = list(rows)
    return Listed(found[:LISTED], len(found))


def _service(name: str) -> str:
    """A query parameter; blank where it is missing. Raises BadRequest."""
    text = (parameter(name) or "").strip()
    if len(text) > _LONGEST:
        raise BadRequest("invalid_parameter", f"{name} has more than {_LONGEST} characters")
    return text


def _is_plain(service: str) -> bool:
    """Whether a name can stand in a command line as it is."""
    return service.isascii() and service.replace("-", "").replace(".", "").isalnum()
