"""Activity: the ledger and the audit trail as one list."""

import re
from html import escape, unescape
from typing import Any

from sqlalchemy import insert, update

from peerseal.protocol.ledger import entries as entry_types
from registry.console.pages.activity import TYPES
from registry.services.access.operators import Role
from registry.services.insight.activity import SHOWN, WINDOW
from registry.storage.queries import audit as acts
from registry.storage.queries.ledger import Change, append
from registry.storage.tables import audit, entries
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import browser_of
from tests.registry.driver import BY, Clock, Driver
from tests.support.federation import PARTNER
from tests.support.keys import key
from tests.support.root_witnesses import name_witnesses

HOSTILE = """<script>alert(1)</script>"'javascript:alert(1)\u202e"""


def rows(browser: Browser) -> list[str]:
    """The rows of the list, newest first."""
    body = browser.page.partition('<tbody id="events">')[2].partition("</tbody>")[0]
    return body.split("<tr>")[1:]


def news(browser: Browser, after: str, **query: str) -> dict[str, Any]:
    answer = browser.client.get("/console/activity.json", query_string={"after": after, **query})
    assert answer.status_code == 200, answer.data
    found: dict[str, Any] = answer.get_json()
    return found


def head(browser: Browser) -> str:
    return browser.page.partition('data-after="')[2].partition('"')[0]


def grow(registry: Driver, *types: str, service: str | None = None) -> None:
    changes = [Change(kind, service, by=BY) for kind in types]
    with registry.store.write() as connection:
        append(connection, int(registry.clock()), *changes)


def follow(browser: Browser, rel: str) -> bool:
    """Follows the link with that relation, if there is one."""
    _, found, rest = browser.page.partition(f'rel="{rel}" href="')
    if found:
        assert browser.open(unescape(rest.partition('"')[0])).status_code == 200
    return bool(found)


def test_entries_and_acts_without_an_entry_are_one_list_newest_first(
    registry: Driver, viewer: Browser, clock: Clock
) -> None:
    clock.forward(1)
    registry.joined(key(), "billing")
    clock.forward(1)
    browser_of(registry, Role.OPERATOR).open("/console/activity")
    viewer.open("/console/activity")
    found = rows(viewer)
    kinds = ["signed_in", "operator_created", "key_admitted", "join_token_created", "signed_in", "operator_created"]
    assert [kind in row for kind, row in zip(kinds, found, strict=False)] == [True] * 6
    assert "registry_created" in found[-1]


def test_an_act_that_made_an_entry_is_listed_once(registry: Driver, operator: Browser) -> None:
    held = registry.joined(key(), "billing")
    registry.operator_ends(held, "billing")
    operator.open("/console/activity", type="key_revoked")
    assert len(rows(operator)) == 1


def test_an_entry_about_a_token_names_it(registry: Driver, viewer: Browser) -> None:
    registry.join_token("billing")
    made = registry.registry.join_tokens.page("")["join_tokens"][0]["id"]
    viewer.open("/console/activity", type="join_token_created")
    assert [made in row for row in rows(viewer)] == [True]
    viewer.open("/console/activity", type="operator_created")
    assert all("<code>" in row for row in rows(viewer))


def test_entries_about_the_registry_itself_are_told_in_words(registry: Driver, viewer: Browser, clock: Clock) -> None:
    viewer.open("/console/activity")
    clock.forward(1)
    before = head(viewer)
    believed = registry.registry.federations.replace({"domains": [PARTNER]}, {0}, BY)
    registry.registry.federations.replace({"domains": []}, {believed.seq}, BY)
    name_witnesses(registry, "w.example", needed=1)
    told = [
        "version 2 of the root's document, 1 of 1 witnesses needed (w.example)",
        "no foreign trust domain is believed",
        "believed are partner.example",
    ]
    viewer.open("/console/activity")
    assert [words in unescape(row) for words, row in zip(told, rows(viewer), strict=False)] == [True] * 3
    assert [row["said"] for row in reversed(news(viewer, before)["rows"])] == told


def test_pages_go_back_to_the_first_entry_and_lose_no_event(registry: Driver, viewer: Browser, clock: Clock) -> None:
    viewer.open("/console/activity")  # while the clock is right
    for number in range(2 * SHOWN):
        clock.now += (-1) ** number * number  # the clocks of nodes differ
        grow(registry, f"made_{number}")
        with registry.store.write() as connection:
            values = {"time": int(clock()), "by": '{"operator":"x"}', "act": f"act_{number}", "subject": "s"}
            connection.execute(insert(audit).values(seq=None if number % 3 else number + 1, **values))
    clock.now = float(int(registry.registry.clock()))
    viewer.open("/console/activity")
    seen = rows(viewer)
    while follow(viewer, "next"):
        seen += rows(viewer)
    for number in range(2 * SHOWN):
        assert sum(f">made_{number}<" in row for row in seen) == 1
        assert sum(f">act_{number}<" in row for row in seen) == (1 if number % 3 else 0)
    assert "registry_created" in seen[-1]


def test_filters_are_links_by_type_service_and_operator(registry: Driver, viewer: Browser) -> None:
    registry.joined(key(), "billing")
    registry.joined(key(), "shop")
    viewer.open("/console/activity", service="billing")
    assert rows(viewer)
    assert all("billing" in row for row in rows(viewer))
    viewer.open("/console/activity", service="billing", type="key_admitted")
    assert len(rows(viewer)) == 1
    record, _ = registry.registry.operators.create(Role.VIEWER, 600)
    registry.registry.operators.revoke(record.id, {"operator": "0123456789abcdef"})
    viewer.open("/console/activity")
    assert "/console/activity?operator=0123456789abcdef" in viewer.page
    viewer.open("/console/activity", operator="0123456789abcdef")
    assert len(rows(viewer)) == 1
    assert "operator_revoked" in rows(viewer)[0]


def test_a_rejected_applicant_is_found_under_its_service(registry: Driver, viewer: Browser) -> None:
    with registry.store.write() as connection:
        for service in ("shop", "shop-2"):
            values = {"time": 1, "by": '{"operator":"x"}', "act": "applicant_rejected", "seq": None}
            connection.execute(insert(audit).values(subject=f"acme.internal/{service}/{'A' * 43}", **values))
    viewer.open("/console/activity", service="shop")
    assert len(rows(viewer)) == 1


def test_a_filtered_list_looks_at_the_newest_entries_alone_and_says_so(registry: Driver, viewer: Browser) -> None:
    registry.joined(key(), "old")
    grow(registry, *["policy_set"] * WINDOW, service="new")
    viewer.open("/console/activity", service="old")
    assert rows(viewer) == []
    assert "None of the newest events is one of those." in viewer.text()
    assert "the newest 2,000 entries" in viewer.text()
    assert news(viewer, "0.0", service="old")["rows"] == []


def test_new_events_come_once_and_in_order(registry: Driver, viewer: Browser) -> None:
    viewer.open("/console/activity")
    after = head(viewer)
    assert news(viewer, after) == {"rows": [], "after": after, "more": False}
    registry.joined(key(), "billing")
    found = news(viewer, after)
    assert [row["type"] for row in found["rows"]] == ["join_token_created", "key_admitted"]
    assert found["rows"][1]["service"] == "billing"
    assert news(viewer, found["after"])["rows"] == []
    assert [row["type"] for row in news(viewer, after, type="key_admitted")["rows"]] == ["key_admitted"]


def test_many_new_events_come_in_bounded_answers(registry: Driver, viewer: Browser) -> None:
    viewer.open("/console/activity")
    after, seen = head(viewer), list[str]()
    grow(registry, *(f"made_{number}" for number in range(2 * SHOWN + 1)))
    more = True
    while more:
        found = news(viewer, after)
        assert len(found["rows"]) <= SHOWN
        seen += [row["type"] for row in found["rows"]]
        after, more = found["after"], found["more"]
    assert seen == [f"made_{number}" for number in range(2 * SHOWN + 1)]


def test_an_older_page_is_not_live(registry: Driver, viewer: Browser) -> None:
    grow(registry, *["made"] * SHOWN)
    viewer.open("/console/activity")
    assert "activity.js" in viewer.page
    assert follow(viewer, "next")
    assert "activity.js" not in viewer.page


def test_an_altered_entry_is_shown_as_altered(registry: Driver, viewer: Browser) -> None:
    with registry.store.write() as connection:
        connection.execute(update(entries).where(entries.c.seq == 1).values(body=b"{"))
    viewer.open("/console/activity")
    assert "unknown: the entry was altered" in rows(viewer)[-1]


def test_xss_no_text_of_the_ledger_or_the_trail_becomes_markup(registry: Driver, viewer: Browser) -> None:
    with registry.store.write() as connection:
        append(connection, 1, Change(HOSTILE[:40], HOSTILE, HOSTILE, by={HOSTILE: HOSTILE, "operator": HOSTILE}))
        values = {"time": 1, "by": '{"operator":"<script>"}', "act": "<script>", "subject": HOSTILE, "seq": None}
        connection.execute(insert(audit).values(**values))
    for query in ({}, {"service": HOSTILE}, {"type": HOSTILE}, {"operator": HOSTILE}):
        assert viewer.open("/console/activity", **query).status_code == 200
        assert "<script>" not in viewer.page
        assert 'href="javascript:' not in viewer.page
    viewer.open("/console/activity")
    assert escape(HOSTILE, quote=False)[:20] in viewer.page
    answer = viewer.client.get("/console/activity.json?after=0.0")
    assert answer.content_type == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert all(
        row["service_link"] is None or row["service_link"].startswith("/console/") for row in answer.json["rows"]
    )


def test_a_wrong_position_or_filter_is_refused_and_one_of_the_future_shows_the_newest(viewer: Browser) -> None:
    wrong = ("before=x", "before=1", "before=1.2.3", "before=-1.1", f"before={'9' * 99}.1", f"service={'x' * 301}")
    for query in wrong:
        assert viewer.open(f"/console/activity?{query}").status_code == 400
    assert viewer.open("/console/activity?before=999999999.999999999").status_code == 200
    assert rows(viewer)


def test_a_script_that_asks_without_a_session_does_not_decide_where_the_sign_in_leads(
    registry: Driver, stranger: Browser
) -> None:
    answer = stranger.client.get("/console/activity.json?after=0.0", headers={"Sec-Fetch-Mode": "cors"})
    assert answer.status_code == 303
    assert stranger.sign_in(registry.registry.operators.create(Role.VIEWER, 600)[1]).request.path == "/console/"


def test_each_type_of_entry_and_act_is_offered_as_a_filter() -> None:
    types = {value for module in (entry_types, acts) for name, value in vars(module).items() if is_type(name, value)}
    assert set(TYPES) == types


def is_type(name: str, value: object) -> bool:
    return name.isupper() and isinstance(value, str) and re.fullmatch(r"[a-z]+(_[a-z]+)+", value) is not None
