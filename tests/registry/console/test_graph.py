"""The trust graph: who may call whom, and what a service reaches."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from peerseal.protocol.policies import CallPolicy
from registry.console.pages import graph as graph_page
from registry.domain.policy import text_of
from registry.domain.trust_graph import TrustGraph
from registry.services.insight.trust_graph import TrustGraphs
from registry.services.use_case import Node
from registry.storage.queries import services
from registry.storage.revisions import revisions
from registry.storage.tables import policies
from tests.registry.console.browser import Browser
from tests.registry.driver import BY, DOMAIN, Driver
from tests.support.federation import PARTNER
from tests.support.keys import key

STATIC = Path(graph_page.__file__).parents[1] / "static"


def allow(registry: Driver, callee: str, *, restricted: bool = False, **callers: list[str]) -> None:
    """Sets the policy of a service; ``anyone`` stands for ``"*"``."""
    named = {"*" if caller == "anyone" else caller: scopes for caller, scopes in callers.items()}
    seen = {registry.registry.policies.policy(callee).seq}
    registry.registry.policies.set_policy(callee, {"allow": named, "restricted": restricted}, seen, BY)


def chain(registry: Driver) -> None:
    """web → shop → billing → ledger, and status for anyone."""
    allow(registry, "shop", web=["orders:read", "orders:write"])
    allow(registry, "billing", shop=["charge"])
    allow(registry, "ledger", billing=[])
    allow(registry, "status", anyone=["status:read"])


def drawing(browser: Browser, **query: str) -> dict[str, Any]:
    answer = browser.client.get("/console/graph.json", query_string=query)
    assert answer.status_code == 200, answer.data
    found: dict[str, Any] = answer.get_json()
    return found


def calls_of(drawn: dict[str, Any]) -> set[tuple[str, str, tuple[str, ...]]]:
    nodes, scopes = drawn["nodes"], drawn["scopes"]
    return {(nodes[caller], nodes[callee], tuple(scopes[number])) for caller, callee, number in drawn["calls"]}


# ---- the page


def test_without_a_policy_the_page_says_what_is_missing(registry: Driver, viewer: Browser) -> None:
    registry.joined(key(), "shop")
    assert viewer.open("/console/graph").status_code == 200
    assert "No service has a policy with a caller" in viewer.text()
    assert "graph.js" in viewer.page


def test_all_calls_are_listed_with_their_scopes(registry: Driver, viewer: Browser) -> None:
    chain(registry)
    viewer.open("/console/graph")
    text = viewer.text()
    assert "5 services, 4 calls" in text
    assert "shop billing charge" in text
    assert "web shop orders:read orders:write" in text
    assert "billing ledger no scope" in text
    assert "anyone status status:read" in text


def test_one_service_is_shown_with_its_callers_callees_and_reach_and_an_unknown_one_is_told_so(
    registry: Driver, viewer: Browser
) -> None:
    chain(registry)
    viewer.open("/console/graph", of="shop")
    text = viewer.text()
    assert "Callers of shop Caller Callee Scopes web shop orders:read orders:write" in text
    assert "Callees of shop Caller Callee Scopes shop billing charge anyone status status:read" in text
    assert "3 services, the nearest first." in text
    assert "billing 1 shop → billing" in text
    assert "ledger 2 shop → billing → ledger" in text
    assert "status 1 shop → as anyone → status" in text
    viewer.open("/console/graph", of="shopp")
    assert "No policy is of shopp , and none names it." in viewer.text()
    viewer.open("/console/graph", of="web")
    assert "It has no policy: its code alone decides." in viewer.text()


def test_minters_and_clients_of_the_exchange_are_pointed_out(registry: Driver, viewer: Browser) -> None:
    chain(registry)
    settings = {"minters": ["web"], "issuers": [], "exchange": {"shop": {"billing-events": ["charge"]}}}
    registry.registry.policies.set_domain(settings, {0}, BY)
    viewer.open("/console/graph", of="web")
    assert "can speak for users" in viewer.text()
    viewer.open("/console/graph", of="shop")
    assert "may exchange users' tokens" in viewer.text()


def test_the_list_is_paged_by_callee(registry: Driver, viewer: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    chain(registry)
    monkeypatch.setattr(graph_page, "LISTED", 2)
    viewer.open("/console/graph")
    assert "/console/graph?after=ledger" in viewer.page
    viewer.open("/console/graph", after="ledger")
    assert "web shop" in viewer.text()
    assert "shop billing" not in viewer.text()
    viewer.open("/console/graph", of="shop")
    assert "3 services, the nearest first; the first 2 are listed." in viewer.text()


def test_a_change_of_a_policy_shows_at_once_and_a_restricted_one_is_marked(registry: Driver, viewer: Browser) -> None:
    chain(registry)
    viewer.open("/console/graph")
    registry.joined(key(), "other")
    allow(registry, "billing", cart=["charge"], restricted=True)
    viewer.open("/console/graph", of="billing")
    assert "cart billing restricted charge" in viewer.text()
    assert "shop billing" not in viewer.text()
    seen = {registry.registry.policies.policy("billing").seq}
    registry.registry.policies.set_policy("billing", {"allow": None}, seen, BY)
    viewer.open("/console/graph", of="cart")
    assert "none names it" in viewer.text()


def test_policies_that_cannot_be_read_are_told_and_hide_no_other(registry: Driver, viewer: Browser) -> None:
    chain(registry)
    bodies = ["{", "[]", '{"allow": {"../x": []}}', "[" * 5000, ""]
    with registry.store.write() as connection:
        rows = [{"service": f"lost-{number}", "seq": 1, "body": body} for number, body in enumerate(bodies)]
        connection.execute(insert(policies), rows)
    viewer.open("/console/graph")
    assert "The policies of 5 services cannot be read, and are missing here, such as that of lost-0" in viewer.text()
    assert "web shop" in viewer.text()


def test_a_graph_with_more_calls_than_are_kept_says_that_it_is_incomplete(
    registry: Driver, viewer: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain(registry)
    of = registry.registry
    node = Node(of.store, revisions(of.store.engine), of.authority, of.ledger, of.settings.limits, registry.clock)
    monkeypatch.setattr(of, "trust_graphs", TrustGraphs(node, most=2))
    viewer.open("/console/graph")
    assert "some policies are missing here" in viewer.text()
    assert "2 calls" in viewer.text()


def test_xss_no_scope_or_parameter_becomes_markup(registry: Driver, viewer: Browser) -> None:
    hostile = """<script>alert(1)</script>"'\u202e"""
    body = json.dumps({"allow": {f"{DOMAIN}/shop": ["<script>"]}})
    with registry.store.write() as connection:  # no scope can be written so: the row is altered
        connection.execute(insert(policies).values(service=hostile, seq=1, body=body))
    for query in ({}, {"of": hostile}, {"of": "shop"}, {"after": hostile}, {"of": "javascript:alert(1)"}):
        assert viewer.open("/console/graph", **query).status_code == 200
        assert "<script>" not in viewer.page
        assert 'href="javascript:' not in viewer.page
    assert viewer.client.get("/console/graph.json").content_type == "application/json"


def test_parameters_are_bounded_and_only_a_plain_name_stands_in_the_line_for_a_terminal(viewer: Browser) -> None:
    viewer.open("/console/graph", of="shop; rm -rf ~")
    assert "peerseal-registry policy get SERVICE" in viewer.text()
    viewer.open("/console/graph", of="shop")
    assert "peerseal-registry policy get shop" in viewer.text()
    assert viewer.open("/console/graph", of="x" * 101).status_code == 400
    assert viewer.open("/console/graph?of=a&of=b").status_code == 400
    assert viewer.open("/console/graph.json?of=" + "x" * 101).status_code == 400


def test_a_stranger_gets_neither_page_nor_data(registry: Driver, stranger: Browser) -> None:
    chain(registry)
    for path in ("/console/graph", "/console/graph.json"):
        assert stranger.client.get(path).status_code == 303


# ---- the data of the drawing


def test_the_drawing_has_all_calls_or_those_around_one_service_and_is_bounded(
    registry: Driver, viewer: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain(registry)
    assert calls_of(drawing(viewer)) == {
        ("web", "shop", ("orders:read", "orders:write")),
        ("shop", "billing", ("charge",)),
        ("billing", "ledger", ()),
        ("*", "status", ("status:read",)),
    }
    allow(registry, "unrelated", stranger=[])
    around = {("shop", "billing"), ("billing", "ledger"), ("*", "status")}
    assert {(caller, callee) for caller, callee, _ in calls_of(drawing(viewer, of="billing"))} == around
    monkeypatch.setattr(graph_page, "DRAWN", 3)
    found = drawing(viewer)
    assert (len(found["calls"]), found["more"]) == (3, True)


# ---- the graph itself


def test_reach_follows_named_callers_and_anyone_by_shortest_paths() -> None:
    graph = TrustGraph({"b": {"a": ()}, "c": {"b": (), "a": ()}, "d": {"c": ()}, "open": {"*": ()}, "e": {"open": ()}})
    found = {reached.service: (reached.distance, reached.path) for reached in graph.reached_from("a").nearest(9)}
    assert found == {
        "b": (1, ("a", "b")),
        "c": (1, ("a", "c")),
        "open": (1, ("a", "*", "open")),
        "d": (2, ("a", "c", "d")),
        "e": (2, ("a", "*", "open", "e")),
    }


def test_reach_ends_in_cycles_and_never_names_its_start() -> None:
    graph = TrustGraph({"a": {"b": (), "*": ()}, "b": {"a": ()}})
    assert list(graph.reached_from("a").distances) == ["a", "b"]
    assert graph.reached_from("nothing").nearest(1)[0].path == ("nothing", "*", "a")


def test_reach_is_bounded_and_says_so() -> None:
    graph = TrustGraph({f"{number + 1}": {f"{number}": ()} for number in range(1000)})
    reach = graph.reached_from("0", most=10)
    assert (len(reach), reach.more) == (10, True)
    assert reach.nearest(3)[-1].path == ("0", "1", "2", "3")
    wide = TrustGraph({f"{number}": {"*": ()} for number in range(100)}).reached_from("x", most=10)
    assert (len(wide), wide.more) == (10, True)
    exact = TrustGraph({"b": {"a": ()}}).reached_from("a", most=1)
    assert (len(exact), exact.more) == (1, False)


def test_a_rule_that_names_the_caller_counts_before_that_of_anyone() -> None:
    graph = TrustGraph({"shop": {"*": ("read",), "web": ("write",)}})
    assert [tuple(call) for call in graph.calls_by("web")] == [("web", "shop", ("write",))]
    assert [tuple(call) for call in graph.calls_by("other")] == [("*", "shop", ("read",))]


def test_the_first_look_reads_page_by_page(registry: Driver) -> None:
    body = text_of(CallPolicy({f"{DOMAIN}/shop": frozenset(("read",))}))
    names = [f"s{number:04}" for number in range(2500)]
    with registry.store.write() as connection:
        connection.execute(insert(policies), [{"service": name, "seq": 1, "body": body} for name in names])
        for name in names:
            services.changed(connection, name, 1)
    graph = registry.registry.trust_graphs.current().graph
    assert (graph.size, len(graph.callees["shop"]), graph.services) == (2500, 2500, 2501)


# ---- services of other trust domains


BILLING = "partner.example/billing"


def believe(registry: Driver, **changes: Any) -> None:
    seen = {registry.registry.federations.current().seq}
    registry.registry.federations.replace({"domains": [{**PARTNER, **changes}]}, seen, BY)


def test_calls_of_a_domain_that_is_not_believed_are_shown_as_kept_out(registry: Driver, viewer: Browser) -> None:
    allow(registry, "orders", **{BILLING: ["orders:read"], "web": ["orders:read"]})
    viewer.open("/console/graph")
    told = f"{BILLING} foreign orders orders:read ✗ kept out the trust domain partner.example is not believed"
    assert told in viewer.text()
    assert viewer.text().count("kept out") == 1
    believe(registry)
    viewer.open("/console/graph")
    assert f"{BILLING} foreign orders orders:read" in viewer.text()
    assert "kept out" not in viewer.text()


def test_services_and_scopes_that_the_federation_does_not_name_are_shown_as_kept_out(
    registry: Driver, viewer: Browser
) -> None:
    believe(registry)
    allow(registry, "orders", **{BILLING: ["orders:read", "orders:write"], "partner.example/shop": []})
    viewer.open("/console/graph")
    assert "✗ kept out the federation lets no scope orders:write in" in viewer.text()
    assert "no scope ✗ kept out the federation does not name shop of partner.example" in viewer.text()


def test_a_foreign_service_has_a_page_that_leads_to_the_federation_and_to_no_service_of_ours(
    registry: Driver, viewer: Browser
) -> None:
    believe(registry)
    allow(registry, "orders", **{BILLING: ["orders:read"]})
    allow(registry, "status", anyone=["status:read"])
    allow(registry, "ledger", orders=[])
    viewer.open("/console/graph", of=BILLING)
    assert "A service of another trust domain" in viewer.text()
    assert 'href="/console/settings/federation"' in viewer.page.partition("<main")[2]
    assert "/console/services/partner" not in viewer.page
    assert "3 services, the nearest first" in viewer.text()  # as the callee's caller, anyone's callees are reached
    assert f"{BILLING} → orders → as anyone → status" in viewer.text()


def test_a_foreign_service_that_is_kept_out_reaches_nothing(registry: Driver, viewer: Browser) -> None:
    allow(registry, "orders", **{BILLING: ["orders:read"]})
    viewer.open("/console/graph", of=BILLING)
    assert "No call of it is let in: the trust domain partner.example is not believed." in viewer.text()
    assert "No service, while the federation keeps it out." in viewer.text()


def test_an_id_that_no_policy_names_is_unknown(viewer: Browser) -> None:
    for of in (BILLING, "no such/<script>"):
        assert viewer.open("/console/graph", of=of).status_code == 200
        assert "and none names it" in viewer.text()
        assert "<script>" not in viewer.page


# ---- the layout, by the page's own script


def node(script: str) -> Any:
    """What the script prints as JSON, with `layout.js` imported as ``lib``."""
    command = ["node", "--input-type=module", "--eval"]
    source = f"import * as lib from {json.dumps((STATIC / 'layout.js').as_uri())};\n{script}"
    ended = subprocess.run([*command, source], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is missing")


@needs_node
def test_callers_stand_left_of_their_callees_and_cycles_end() -> None:
    script = """
    const calls = [[0, 1], [1, 2], [2, 3], [0, 3], [3, 1], [4, 4]];
    const { x, y } = lib.layout(5, calls);
    console.log(JSON.stringify({ x: [...x], places: new Set([...x].map((at, n) => `${at}/${y[n]}`)).size }));
    """
    found = node(script)
    assert found["x"][0] < found["x"][1] < found["x"][2] < found["x"][3]
    assert found["places"] == 5


@needs_node
def test_two_thousand_services_and_ten_thousand_calls_get_places_of_their_own() -> None:
    script = """
    let seed = 7;
    const any = (n) => (seed = (seed * 1103515245 + 12345) % 2147483648) % n;
    const calls = Array.from({ length: 10000 }, () => [any(2000), any(2000), 0]);
    const { x, y, width, height } = lib.layout(2000, calls);
    const places = new Set([...x].map((at, n) => `${at}/${y[n]}`)).size;
    const inside = [...x].every((at, n) => at >= 0 && at < width && y[n] >= 0 && y[n] < height);
    console.log(JSON.stringify({ places, inside, empty: lib.layout(0, []).width > 0 }));
    """
    assert node(script) == {"places": 2000, "inside": True, "empty": True}


@needs_node
def test_a_cycle_of_all_services_is_not_drawn_as_one_long_row() -> None:
    script = """
    const calls = Array.from({ length: 2000 }, (_, n) => [n, (n + 1) % 2000, 0]);
    const { x, y, width, height } = lib.layout(2000, calls);
    const places = new Set([...x].map((at, n) => `${at}/${y[n]}`)).size;
    console.log(JSON.stringify({ places, broad: width > 5 * height }));
    """
    assert node(script) == {"places": 2000, "broad": False}


@needs_node
def test_the_script_reaches_what_the_server_reaches(registry: Driver, viewer: Browser) -> None:
    chain(registry)
    allow(registry, "web", ledger=[], **{"partner.example/billing": []})
    allow(registry, "last", status=[], **{"partner.example/shop": []})
    drawn = drawing(viewer)
    script = f"""
    const drawn = {json.dumps(drawn)};
    const near = lib.neighbours(drawn.nodes.length, drawn.calls);
    const reached = (name) => [...lib.reach(drawn.nodes.indexOf(name), near, anyone, foreign)];
    const anyone = drawn.nodes.indexOf("*");
    const foreign = (place) => drawn.nodes[place].includes("/");
    const named = drawn.nodes.filter((name) => name !== "*");
    const found = named.map((name) => [name, reached(name).map((place) => drawn.nodes[place])]);
    console.log(JSON.stringify(Object.fromEntries(found)));
    """
    graph = registry.registry.trust_graphs.current().graph
    expected = {name: set(graph.reached_from(name).distances) - {name} for name in drawn["nodes"] if name != "*"}
    assert {name: set(reached) for name, reached in node(script).items()} == expected


def test_a_path_is_shown_whole_and_a_long_one_by_its_ends() -> None:
    names = [f"s{number}" for number in range(11)]
    assert graph_page.path_text(["a", "*", "b"]) == "a → as anyone → b"
    assert graph_page.path_text(names) == " → ".join(names)
    assert graph_page.path_text([*names, "last"]) == "s0 → s1 → s2 → s3 → s4 → 2 more → s7 → s8 → s9 → s10 → last"
