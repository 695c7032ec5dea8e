"""The policy editor of the console: two ways to type a policy, a review, conflicts, and `explain`."""

import json
import re
from html import unescape
from typing import Any

import pytest

from peerseal.protocol.keys import KeyPair
from peerseal.protocol.policies import CallPolicy
from registry.console.policy_draft import difference
from registry.services.access.operators import Role
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import browser_of
from tests.registry.driver import BY, Driver, entries_of
from tests.support.federation import PARTNER

PAGE = "/console/services/billing/policy"
SCRIPT = "<script>alert(1)</script>\"'\u202e"


def stored(registry: Driver) -> tuple[int, Any]:
    """The entry and the policy in force, as JSON."""
    setting = registry.registry.policies.policy("billing")
    return setting.seq, None if setting.value is None else setting.value.to_json()


def put(registry: Driver, allow: dict[str, list[str]] | None, **more: bool) -> int:
    """Sets the policy, as another operator does. Returns its entry."""
    seen = stored(registry)[0]
    return registry.registry.policies.set_policy("billing", {"allow": allow, **more}, {seen}, BY).seq


def fields(browser: Browser) -> dict[str, str]:
    """The hidden fields of the last form on the page: of the review, those that save."""
    found = re.findall(r'type="hidden" name="(how|seen|policy)" value="([^"]*)"', browser.page)
    return {name: unescape(value) for name, value in found}


def rows(browser: Browser, path: str, *given: tuple[str, str], **more: str) -> Any:
    """Sends the form with the rows, as its last row too, which is empty."""
    callers, scopes = [caller for caller, _ in given], [granted for _, granted in given]
    form: Any = {"how": "rows", "seen": fields(browser).get("seen", "0"), **more}
    return browser.send(path, **{**form, "caller": [*callers, ""], "scopes": [*scopes, ""]})


def typed_rows(browser: Browser) -> list[tuple[str, str]]:
    found = re.findall(r'name="(?:caller|scopes)" value="([^"]*)" aria-label', browser.page)
    values = [unescape(value) for value in found]
    return list(zip(values[::2], values[1::2], strict=True))


def as_json(browser: Browser, path: str, text: str, **more: str) -> Any:
    return browser.send(path, how="json", policy=text, **{"seen": fields(browser).get("seen", "0"), **more})


def test_a_policy_of_rows_is_reviewed_and_saved(registry: Driver, operator: Browser) -> None:
    registry.joined(KeyPair.generate("ES256"), "billing")
    operator.open(PAGE)
    assert "No policy: what the code of billing allows decides alone" in operator.text()
    assert "was ever registered" not in operator.text()
    rows(operator, f"{PAGE}/review", ("shop", "invoices:read  invoices:write"), ("*", "health"), restricted="on")
    assert stored(registry) == (0, None)
    assert "any service of the domain may call billing" in operator.text()
    answer = operator.send(PAGE, **fields(operator))
    assert (answer.status_code, answer.request.method, answer.request.path) == (200, "GET", PAGE)
    allow = {"*": ["health"], "acme.internal/shop": ["invoices:read", "invoices:write"]}
    seq, policy = stored(registry)
    assert policy == {"allow": allow, "restricted": True}
    assert f"is that of entry {seq}" in operator.text()
    assert typed_rows(operator) == [("*", "health"), ("acme.internal/shop", "invoices:read invoices:write"), ("", "")]


def test_the_change_is_in_the_operators_name(registry: Driver, operator: Browser) -> None:
    operator.open(PAGE)
    as_json(operator, f"{PAGE}/review", '{"allow": {"shop": []}}')
    operator.send(PAGE, **fields(operator))
    [name] = re.findall(r"operator <code>([0-9a-f]{16})</code>", operator.page)
    assert entries_of(registry.store)[-1].by == {"operator": name}


def test_a_policy_of_json_is_the_same_one(registry: Driver, operator: Browser) -> None:
    operator.open(PAGE)
    as_json(operator, f"{PAGE}/review", '{"allow": {"shop": ["read"]}}')
    operator.send(PAGE, **fields(operator))
    assert stored(registry)[1] == {"allow": {"acme.internal/shop": ["read"]}, "restricted": False}


def test_each_form_shows_what_was_typed_in_the_other(registry: Driver, operator: Browser) -> None:
    operator.open(PAGE)
    rows(operator, f"{PAGE}/edit", ("shop", "read"))
    area = operator.page.partition("<textarea")[2].partition(">")[2].partition("</textarea>")[0]
    assert json.loads(unescape(area)) == {"allow": {"acme.internal/shop": ["read"]}, "restricted": False}
    as_json(operator, f"{PAGE}/edit", '{"allow": {"audit": ["write"], "shop": []}, "restricted": true}')
    assert typed_rows(operator) == [("acme.internal/audit", "write"), ("acme.internal/shop", ""), ("", "")]
    assert 'name="restricted" checked' in operator.page
    assert stored(registry) == (0, None)


def test_the_review_shows_added_and_removed_lines_in_words_too(registry: Driver, operator: Browser) -> None:
    put(registry, {"shop": ["read"], "audit": ["read"]})
    operator.open(PAGE)
    rows(operator, f"{PAGE}/review", ("shop", "write"), ("audit", "read"))
    text = operator.text()
    assert '− removed "read"' in text
    assert '+ added "write"' in text
    assert 'unchanged "acme.internal/shop": [' in text


def test_a_review_without_a_change_says_so_and_offers_no_save(registry: Driver, operator: Browser) -> None:
    put(registry, {"shop": ["read"]})
    operator.open(PAGE)
    rows(operator, f"{PAGE}/review", ("acme.internal/shop", "read"))
    assert "Nothing changes: this policy is in force" in operator.text()
    assert ">Save<" not in operator.page


def test_a_policy_is_removed_and_an_empty_one_closes_the_service(registry: Driver, operator: Browser) -> None:
    put(registry, {"shop": ["read"]})
    operator.open(PAGE)
    rows(operator, f"{PAGE}/review")
    assert "After this, no service may call billing" in operator.text()
    operator.open(PAGE)
    as_json(operator, f"{PAGE}/review", fields(operator)["policy"])
    assert "After this, billing has no policy" in operator.text()
    operator.send(PAGE, **fields(operator))
    assert "The policy of billing is removed" in operator.text()
    assert stored(registry) == (0, None)


def test_a_conflict_shows_both_policies_and_keeps_what_was_typed(registry: Driver, operator: Browser) -> None:
    put(registry, {"shop": ["read"]})
    operator.open(PAGE)
    rows(operator, f"{PAGE}/review", ("shop", "read write"))
    mine = fields(operator)
    theirs = put(registry, {"shop": ["read"], "audit": ["read"]})
    assert operator.send(PAGE, **mine).status_code == 412
    text = operator.text()
    assert f"Nothing was saved: entry {theirs} set another policy" in text
    assert '− removed "acme.internal/audit": [' in text
    assert stored(registry)[0] == theirs
    again = fields(operator)
    assert again["policy"] == mine["policy"]
    operator.send(PAGE, **again)
    assert stored(registry)[1] == {"allow": {"acme.internal/shop": ["read", "write"]}, "restricted": False}


def test_a_conflict_is_shown_at_the_review_already_and_editing_goes_on(registry: Driver, operator: Browser) -> None:
    operator.open(PAGE)
    theirs = put(registry, {"audit": ["read"]})
    rows(operator, f"{PAGE}/review", ("shop", "read"))
    assert f"entry {theirs} set another policy since you began" in operator.text()
    operator.send(f"{PAGE}/edit", **fields(operator))
    assert typed_rows(operator) == [("acme.internal/shop", "read"), ("", "")]
    assert fields(operator)["seen"] == str(theirs)


def test_a_policy_that_is_saved_twice_is_saved_once(registry: Driver, operator: Browser) -> None:
    operator.open(PAGE)
    rows(operator, f"{PAGE}/review", ("shop", "read"))
    form = fields(operator)
    operator.send(PAGE, **form)
    entries = entries_of(registry.store)
    assert operator.send(PAGE, **form).status_code == 200
    assert f"is that of entry {stored(registry)[0]}" in operator.text()
    assert entries_of(registry.store) == entries


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ([(SCRIPT, "read")], "not a service id"),
        ([("javascript:alert(1)", "read")], "not a service name"),
        ([("shop", SCRIPT)], "not a scope"),
        ([("shop", "read read")], "not a list of different texts"),
        ([("shop", "read"), ("shop", "write")], "the caller shop is given twice"),
        ([("shop", "read"), ("acme.internal/shop", "write")], "the caller acme.internal/shop is given twice"),
        ([("other.example/", "read")], "not a service id"),
        ([("", "read")], "a row has scopes (read) and no caller"),
    ],
)
def test_a_wrong_row_is_named_and_what_was_typed_is_kept(
    registry: Driver, operator: Browser, given: list[tuple[str, str]], cause: str
) -> None:
    for path in ("edit", "review"):
        operator.open(PAGE)
        assert rows(operator, f"{PAGE}/{path}", *given).status_code == 400
        refusals = re.findall(r'class="refusal" role="alert">([^<]*)', operator.page)
        assert [cause in unescape(refusal) for refusal in refusals] == [True]
        assert typed_rows(operator) == [*given, ("", "")]
        assert "<script>alert" not in operator.page
    assert stored(registry) == (0, None)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"allow": {}, "allow": {}}', '{"allow": []}', '{"allow": {}, "more": 1}', f"</textarea>{SCRIPT}"],
)
def test_wrong_json_is_refused_and_kept(registry: Driver, operator: Browser, text: str) -> None:
    operator.open(PAGE)
    assert as_json(operator, f"{PAGE}/review", text).status_code == 400
    area = operator.page.partition("<textarea")[2].partition(">")[2].partition("</textarea>")[0]
    assert unescape(area).removeprefix("\n") == text
    assert "<script>alert" not in operator.page
    assert as_json(operator, PAGE, text).status_code == 400
    assert stored(registry) == (0, None)


def test_what_is_refused_is_corrected_where_it_was_typed_and_the_other_form_does_not_lose_it(
    operator: Browser,
) -> None:
    operator.open(PAGE)
    rows(operator, f"{PAGE}/review", ("No name", "read"))
    assert ("Edit as rows" in operator.page, "Edit as JSON" in operator.page) == (True, False)
    operator.open(PAGE)
    as_json(operator, f"{PAGE}/review", "{")
    assert ("Edit as rows" in operator.page, "Edit as JSON" in operator.page) == (False, True)


def test_a_policy_that_is_too_large_is_refused_with_its_size(registry: Driver, operator: Browser) -> None:
    operator.open(PAGE)
    given = [(f"service-{number}", "some:scope") for number in range(1_000)]
    rows(operator, f"{PAGE}/review", *given)
    assert operator.send(PAGE, **fields(operator)).status_code == 400
    assert "bytes with full service names, 32768 are allowed" in operator.text()
    assert stored(registry) == (0, None)


@pytest.mark.parametrize("form", [{"seen": "x"}, {"seen": ""}, {"seen": "-1"}, {"seen": "1", "caller": "shop"}])
def test_a_form_that_is_not_ours_changes_nothing(registry: Driver, operator: Browser, form: dict[str, str]) -> None:
    for path in (PAGE, f"{PAGE}/review", f"{PAGE}/edit"):
        operator.open(PAGE)
        assert operator.send(path, **{"how": "rows", **form}).status_code == 400
    assert stored(registry) == (0, None)


def test_explain_answers_by_the_policy_in_force(registry: Driver, viewer: Browser) -> None:
    viewer.open(f"{PAGE}/explain", caller="shop", scope="read")
    assert "Yes: no policy" in viewer.text()
    seq = put(registry, {"shop": ["read"], "*": ["health"]})
    for caller, scope, said in (
        ("shop", "read", f'Yes: allowed by rule "acme.internal/shop": [read] of entry {seq}'),
        ("shop", "write", 'No: denied because rule "acme.internal/shop": [read]'),
        ("audit", "health", 'Yes: allowed by rule "*"'),
        ("other.example/shop", "read", "No: denied because the trust domain other.example is not believed"),
        (SCRIPT, "read", "not a service id"),
        ("shop", SCRIPT, "not a scope"),
        ("", "", "not a service name"),
    ):
        assert viewer.open(f"{PAGE}/explain", caller=caller, scope=scope).status_code == 200
        assert said in viewer.text()
        assert "<script>alert" not in viewer.page


def test_explain_answers_by_what_is_typed_before_it_is_saved(registry: Driver, operator: Browser) -> None:
    put(registry, {"shop": ["read"]})
    operator.open(PAGE)
    for caller, scope, said in (
        ("audit", "write", "Yes: the rule for acme.internal/audit, as typed, has this scope"),
        ("audit", "read", "No: the rule for acme.internal/audit, as typed, does not have this scope"),
        ("shop", "read", "No: no rule, as typed, names this caller"),
        ("sh op", "read", "not a service name"),
    ):
        asked = {"explain": "1", "asked_caller": caller, "asked_scope": scope}
        assert rows(operator, f"{PAGE}/edit", ("audit", "write"), **asked).status_code == 200
        assert said in operator.text()
        assert ("acme.internal/audit", "write") in typed_rows(operator)
    assert stored(registry)[1] == {"allow": {"acme.internal/shop": ["read"]}, "restricted": False}


def test_the_pages_script_gets_the_same_answer_as_json(registry: Driver, operator: Browser) -> None:
    operator.open(PAGE)
    form = operator.page
    for given, caller, answer in (
        (("audit", "write"), "audit", (True, "Yes: the rule for acme.internal/audit, as typed, has this scope.")),
        (("*", "read"), "audit", (False, "No: the rule for *, as typed, does not have this scope.")),
        (("audit", "write write"), "audit", (False, "The policy as typed is not valid: malformed_body: scopes are")),
        (("audit", "write"), SCRIPT, (False, "Not a question: not a service id")),
    ):
        operator.page = form
        found = rows(operator, f"{PAGE}/try", given, asked_caller=caller, asked_scope="write")
        assert (found.content_type, found.headers["Cache-Control"]) == ("application/json", "no-store")
        assert found.get_json()["allowed"] is answer[0]
        assert found.get_json()["said"].startswith(answer[1])
    assert stored(registry) == (0, None)


def test_a_service_without_keys_is_marked(viewer: Browser) -> None:
    viewer.open(PAGE)
    assert "No key of billing was ever registered" in viewer.text()


@pytest.mark.parametrize("service", ["registry", "%3Cscript%3E", "Billing", "x" * 200])
def test_a_name_that_no_service_can_have_has_no_page(operator: Browser, service: str) -> None:
    assert operator.open(f"/console/services/{service}/policy").status_code == 400
    assert "<script>" not in operator.page


def test_a_viewer_reads_and_changes_nothing(registry: Driver, viewer: Browser) -> None:
    put(registry, {"shop": ["read"]}, restricted=True)
    before = stored(registry)
    viewer.open(PAGE)
    assert "acme.internal/shop" in viewer.text()
    assert "Review" not in viewer.text()
    assert "<textarea" not in viewer.page
    form = {"how": "json", "seen": str(before[0]), "policy": '{"allow": null}'}
    for path in (PAGE, f"{PAGE}/review", f"{PAGE}/edit", f"{PAGE}/try"):
        viewer.open(PAGE)
        assert viewer.send(path, **form).status_code == 403
    assert stored(registry) == before


def test_an_admin_may_do_what_an_operator_may(registry: Driver) -> None:
    admin = browser_of(registry, Role.ADMIN)
    admin.open(PAGE)
    rows(admin, f"{PAGE}/review", ("shop", "read"))
    admin.send(PAGE, **fields(admin))
    assert stored(registry)[0] > 0


def test_a_difference_leaves_out_what_is_far_from_a_change() -> None:
    before = {f"acme.internal/service-{number:02}": frozenset(("read",)) for number in range(20)}
    after = {**before, "acme.internal/service-02": frozenset(), "acme.internal/service-17": frozenset(("write",))}
    lines = difference(CallPolicy(before), CallPolicy(after))
    assert [line.mark for line in lines].count("…") == 1
    assert [line.text.strip() for line in lines if line.mark == "+"] == ['"acme.internal/service-02": []', '"write"']
    assert not any("service-10" in line.text for line in lines)
    assert difference(CallPolicy(before), CallPolicy(dict(before))) == []
    assert difference(None, None) == []


def test_the_longest_policy_and_settings_fit_into_their_forms(registry: Driver, admin: Browser) -> None:
    names = [f"svc-{number:04}.a-long-name-of-a-team-in-a-far-away-department" for number in range(250)]
    for path, body, named in (
        (
            "/v1/services/billing/policy",
            {"allow": {name: ["read", "write"] for name in names}},
            "/console/services/billing/policy",
        ),
        ("/v1/domain", {"minters": names, "issuers": []}, "/console/settings"),
    ):
        etag = registry.client.get(path, headers=registry.operator).headers["ETag"]
        put = registry.client.put(path, json=body, headers={**registry.operator, "If-Match": etag})
        assert put.status_code == 200, put.text
        admin.open(named)
        typed = max(re.findall(r"<textarea[^>]*>(.*?)</textarea>", admin.page, re.DOTALL), key=len)
        assert len(unescape(typed).encode()) < 40_000
        assert json.loads(unescape(typed))


def test_a_review_says_which_foreign_domains_are_not_believed(registry: Driver, operator: Browser) -> None:
    operator.open(PAGE)
    rows(operator, f"{PAGE}/review", ("partner.example/billing", "orders:read"), ("shop", "orders:read"))
    assert "Not believed, so none of their services may call: partner.example." in operator.text()
    registry.registry.federations.replace({"domains": [PARTNER]}, {0}, BY)
    operator.open(PAGE)
    rows(operator, f"{PAGE}/review", ("partner.example/billing", "orders:read"))
    assert "Not believed" not in operator.text()
