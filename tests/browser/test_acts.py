"""What an operator does in the console, in a real Chromium, and what comes of it in the registry."""

import json
from collections.abc import Callable

import pytest
import requests
from selenium.webdriver.common.keys import Keys

from registry.services.access.operators import Role
from tests.browser.person import Person
from tests.browser.populated import SERVICES, SHOP, TILL, Populated
from tests.support.sign_in_issuer import SignInIssuer
from tests.support.stack import Stack

pytestmark = pytest.mark.browser

SignIn = Callable[[Role], Person]


@pytest.fixture
def operator(signed_in: SignIn) -> Person:
    return signed_in(Role.OPERATOR)


def key_state(stack: Stack, service: str, thumbprint: str) -> str | None:
    """The state of a key, as the registry tells programs; None where it knows none."""
    answer = requests.get(f"{stack.registry_url}/v1/services/{service}/keys/{thumbprint}", timeout=20)
    return str(answer.json()["state"]) if answer.ok else None


# ---- signing in and out


def test_a_wrong_token_is_refused_and_a_good_one_leads_to_the_page_that_was_asked_for(
    stranger: Person, state: Populated
) -> None:
    stranger.open("/graph?of=billing")
    stranger.fill("#token", "pso1.wrong")
    stranger.press(Keys.ENTER)
    stranger.see("[role=alert]", "This token is refused")
    [told] = stranger.faults()
    assert "401" in told
    stranger.inspect("sign-in-refused")
    stranger.fill("#token", state.tokens[Role.OPERATOR])
    stranger.click("main button.primary")
    stranger.see("h1", "Trust graph of billing")
    assert state.tokens[Role.OPERATOR] not in stranger.chrome.page_source


def test_a_person_signs_in_at_the_issuer_on_another_site_and_sees_the_page_that_was_asked_for(
    colleague: Person,
) -> None:
    colleague.open("/graph?of=billing")
    colleague.see("h1", "Sign in")
    colleague.inspect("sign-in-at-issuer")
    colleague.click("form[action$='/sign-in/oidc'] button")
    colleague.see("h1", "Trust graph of billing")
    colleague.see(".who summary", "ada")
    assert "code=" not in colleague.chrome.current_url


def test_a_person_whose_groups_have_no_role_is_told_so_and_not_let_in(colleague: Person, issuer: SignInIssuer) -> None:
    issuer.person["groups"] = ["guests"]
    colleague.open("/")
    colleague.click("form[action$='/sign-in/oidc'] button")
    colleague.see("[role=alert]", "none of your groups has a role")
    [told] = colleague.faults()
    assert "403" in told
    colleague.open("/")
    colleague.see("h1", "Sign in")


def test_signing_out_everywhere_ends_the_sessions_of_other_browsers_too(stranger: Person, state: Populated) -> None:
    token = state.driver.registry.operators.create(Role.OPERATOR, 86_400)[1]
    stranger.sign_in(token)
    other = stranger.cookie()
    stranger.forget()
    stranger.open("/sign-in")
    stranger.fill("#token", token)
    stranger.press(Keys.ENTER)
    stranger.click(".who summary")
    stranger.click("form[action$='/sign-out-everywhere'] button")
    stranger.see("h1", "Sign in")
    stranger.forget()
    stranger.chrome.execute_cdp_cmd("Network.setCookie", other)
    stranger.open("/")
    stranger.see("h1", "Sign in")


# ---- approvals


def test_a_key_is_compared_and_approved_and_another_one_is_rejected(
    operator: Person, state: Populated, stack: Stack
) -> None:
    good, bad, _ = state.applicants
    operator.open("/approvals")
    operator.fill(f"[id='said-{good}']", bad)
    operator.press(Keys.ENTER)
    operator.see("[role=alert]", "Not equal")
    operator.fill(f"[id='said-{good}']", good)
    operator.press(Keys.ENTER)
    operator.see(f"[id='{good}'] .done", "Equal")
    operator.inspect("approvals-compared")
    operator.click(f"form[action$='/{good}/approve'] button")
    operator.see(".done", "is admitted")
    operator.click(f"[id='{bad}'] summary")
    operator.fill(f"[id='why-{bad}']", "unknown host")
    operator.inspect("approvals-rejecting")
    operator.click(f"form[action$='/{bad}/reject'] button")
    operator.see(".done", "is rejected")
    assert key_state(stack, "reports", good) == "active"
    assert key_state(stack, "reports", bad) is None


def test_a_key_is_approved_by_keyboard_alone(stranger: Person, state: Populated, stack: Stack) -> None:
    thumbprint = state.applicants[2]
    stranger.open("/approvals")
    stranger.see("#token")
    stranger.press(state.tokens[Role.OPERATOR], Keys.ENTER)
    stranger.see("h1", "Approvals")
    stranger.tab_to(".skip")
    stranger.press(Keys.ENTER)
    stranger.tab_to(f"[id='said-{thumbprint}']")
    stranger.press(thumbprint, Keys.ENTER)
    stranger.see(f"[id='{thumbprint}'] .done", "Equal")
    stranger.tab_to(f"form[action$='/{thumbprint}/approve'] button")
    stranger.press(Keys.ENTER)
    stranger.see(".done", "is admitted")
    assert key_state(stack, "reports", thumbprint) == "active"


# ---- join tokens


def test_a_join_token_is_shown_once_and_withdrawn(operator: Person, state: Populated) -> None:
    operator.open("/join-tokens")
    operator.fill("#service", "warehouse")
    operator.click("main form .primary")
    operator.see("h1", "Join token for warehouse")
    token = operator.find("[aria-labelledby=token] .secret").text
    assert f"PEERSEAL_JOIN_TOKEN={token}" in operator.find("[aria-labelledby=line] .secret").text
    operator.inspect("join-token-made")
    number = operator.find("dd code").text
    operator.click("main p .button")
    operator.see("h1", "Join tokens")
    assert token not in operator.chrome.page_source
    withdraw = f"form[action$='/{number}/withdraw']"
    operator.chrome.execute_script("arguments[0].scrollIntoView()", operator.find(f"details:has({withdraw})"))
    operator.click(f"details:has({withdraw}) summary")
    operator.click(f"{withdraw} button")
    operator.see(".done", f"Join token {number} is withdrawn")
    listed = state.driver.registry.join_tokens.page("")["join_tokens"]
    assert next(row["withdrawn"] for row in listed if row["id"] == number)


# ---- policies


def test_a_policy_is_tried_reviewed_and_saved_and_another_operators_change_is_a_conflict(
    operator: Person, stack: Stack
) -> None:
    operator.open("/services/payments/policy")
    operator.fill("[aria-label='New caller']", "invoicing")
    operator.fill("[aria-label='Scopes of the new caller']", "pay refund")
    operator.fill("#asked_caller", "invoicing")
    operator.fill("#asked_scope", "refund")
    operator.see("#told.done", "Yes: the rule for")
    operator.inspect("policy-tried")
    operator.click("[aria-labelledby=rows] button.primary")
    operator.see(".diff .added", "invoicing")
    operator.inspect("policy-review")
    stack.operate("policy", "set", "payments", "--allow", "mobile=pay")
    operator.click("main button.primary")
    operator.see("[role=alert]", "set another policy")
    [told] = operator.faults()
    assert "412" in told
    operator.see("[aria-labelledby=theirs] code", "mobile")
    operator.see("[aria-labelledby=yours] code", "invoicing")
    operator.inspect("policy-conflict")
    operator.click("main button.primary")
    operator.see(".done", "The policy of payments is that of entry")
    kept = json.dumps(stack.operate_json("policy", "get", "payments"))
    assert "invoicing" in kept
    assert "mobile" not in kept


# ---- keys


def test_a_key_is_revoked_with_all_that_it_vouched_for_once_the_name_is_typed(
    operator: Person, state: Populated, stack: Stack
) -> None:
    operator.open(f"/services/{TILL}/keys/{state.doomed}")
    operator.click("main a[href*='reason=compromised']")
    assert operator.find("#compromised").is_selected()
    operator.see(".notice", "5 more keys fall with it")
    operator.fill("#service", "tills")
    operator.click("main .danger")
    operator.see("[role=alert]", f"type {TILL} to confirm")
    [told] = operator.faults()
    assert "400" in told
    operator.inspect("revoke-refused")
    assert key_state(stack, TILL, state.doomed) == "active"
    operator.fill("#service", TILL)
    operator.click("main .danger")
    operator.see(".done", "6 keys are revoked")
    operator.inspect("revoked")
    assert key_state(stack, TILL, state.doomed) == "revoked"


# ---- the graph, and what happens


def test_the_graph_of_all_services_is_searched_zoomed_and_led_from(operator: Person) -> None:
    operator.open("/graph")
    operator.see("#graph .node")
    assert operator.count("#graph .node") > SERVICES
    whole = view_box(operator)
    operator.click("button[data-act=in]")
    assert view_box(operator)[2] < whole[2]
    operator.click("button[data-act=fit]")
    assert view_box(operator) == whole
    operator.fill("#find", "bank-link")
    operator.press(Keys.ENTER)
    operator.see("#said", "bank-link – callers: payments")
    assert operator.count("#graph .node.chosen") == 1
    operator.find("#graph").send_keys("-", Keys.ARROW_LEFT)
    operator.fill("#find", "no-such-service")
    operator.press(Keys.TAB)
    operator.see("#said", "No service has such a name.")
    operator.fill("#find", SHOP)
    operator.press(Keys.TAB)
    operator.see("#said", "reaches 6 services")
    operator.click("#said a")
    operator.see("caption", f"Reachable from {SHOP}")
    operator.see("main", f"{SHOP} → billing → payments → bank-link")
    operator.see("#graph .node.chosen", SHOP)
    operator.click("button[data-act=clear]")
    assert operator.count("#graph .node.chosen") == 0


def view_box(person: Person) -> list[float]:
    """What the drawing shows: x, y, width, height."""
    return [float(number) for number in str(person.find("#graph").get_dom_attribute("viewBox")).split()]


def test_new_events_come_by_themselves_until_they_are_paused(operator: Person, stack: Stack) -> None:
    operator.open("/activity")
    operator.see("#live", "New events appear")
    stack.join_token("night-shift")
    operator.see("#events tr.new", "night-shift")
    operator.inspect("activity-live")
    operator.click("#live button")
    operator.see("#live", "Paused.")
    operator.click("#events a[href*='service=night-shift']")
    operator.see(".notice", "Only about the service night-shift")


# ---- the federation


def test_an_admin_believes_a_foreign_domain_and_takes_the_trust_away(signed_in: SignIn, state: Populated) -> None:
    admin, name = signed_in(Role.ADMIN), "a-new-one.example"
    admin.open("/settings/federation")
    for field, text in (("domain", name), ("urls", f"https://registry.{name}"), ("pin", "no thumbprint")):
        admin.fill(f"#{field}", text)
    admin.click("main form .primary")
    admin.see("[role=alert]", "not a thumbprint")
    [told] = admin.faults()
    assert "400" in told
    admin.inspect("federation-refused")
    admin.fill("#pin", "LSzq4S14tmSwuJYePdRGQSfIJEmCpidxSsckURu3nXA")
    admin.press(Keys.ENTER)
    admin.see(".done", "The federation is that of entry")
    admin.see("h2", name)
    assert state.driver.registry.federations.current().value.of(name)
    admin.click(f"main a[href$='/{name}/remove']")
    admin.fill("#confirm", name)
    admin.click("main .danger")
    admin.see(".done", f"{name} is not believed any more")
    assert not state.driver.registry.federations.current().value.of(name)


# ---- witnesses


def test_the_overview_shows_that_two_of_three_witnesses_cosign(signed_in: SignIn) -> None:
    viewer = signed_in(Role.VIEWER)

    def shown(*texts: str) -> bool:
        viewer.open("/")
        card = viewer.see("[aria-labelledby=witnesses]").text
        return all(text in card for text in texts)

    viewer.wait(lambda: shown("quorum met", "2 of 3 must have cosigned", "has cosigned nothing"), "the quorum")


# ---- operators


def test_an_admin_makes_an_operator_token_and_revokes_it(signed_in: SignIn, state: Populated) -> None:
    admin = signed_in(Role.ADMIN)
    admin.open("/settings/operators")
    admin.click("[aria-labelledby=make-title] .primary")
    admin.see("main .secret, main pre", "pso1.")
    admin.inspect("operator-made")
    number = admin.find("main pre").text.split(".")[1]
    admin.open(f"/settings/operators/{number}/revoke")
    admin.fill("#confirm", number)
    admin.click("main .danger")
    admin.see("h1", "Operators")
    assert state.driver.registry.operators.find(number).revoked
