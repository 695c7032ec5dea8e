"""What happens to people in a real Chromium: slow networks, two tabs, the end of a session, a double press."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from registry.services.access.operators import Role
from registry.storage.queries import ledger
from registry.storage.queries.ledger import Change
from tests.browser.person import Person
from tests.browser.populated import Populated
from tests.registry.driver import BY
from tests.support.sign_in_issuer import SignInIssuer
from tests.support.stack import Stack

pytestmark = pytest.mark.browser

SignIn = Callable[[Role], Person]
HOSTILE = "</td><img src=x onerror=alert(1)><a href='javascript:alert(2)'>x</a>{{ 7 * 7 }}"
KEPT = 500
"""Rows of the page of activity, at most."""
NEW_CALLER, NEW_SCOPES = "[aria-label='New caller']", "[aria-label='Scopes of the new caller']"


@pytest.fixture
def operator(signed_in: SignIn) -> Person:
    return signed_in(Role.OPERATOR)


@contextmanager
def network(person: Person, *, latency: int = 0, offline: bool = False) -> Iterator[None]:
    """A slow network, by that many milliseconds for each request, or none."""

    def emulate(latency: int, *, offline: bool) -> None:
        conditions = {"latency": latency, "offline": offline, "downloadThroughput": -1, "uploadThroughput": -1}
        person.chrome.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)

    person.chrome.execute_cdp_cmd("Network.enable", {})
    emulate(latency, offline=offline)
    try:
        yield
    finally:
        emulate(0, offline=False)


# ---- the network


def test_on_a_slow_network_each_new_event_is_shown_once(operator: Person, stack: Stack) -> None:
    operator.open("/activity")
    operator.see("#live", "New events appear")
    with network(operator, latency=3_000):
        stack.join_token("slow-shift")
        for _ in range(3):
            for _ in ("pause", "go on"):
                operator.click("#live button")
        operator.see("#events tr.new", "slow-shift")
        stack.join_token("last-shift")
        operator.see("#events tr.new", "last-shift")
    assert sum("slow-shift" in row.text for row in operator.all("#events tr")) == 1


def test_after_hours_the_page_has_so_many_events_and_says_where_older_ones_are(
    operator: Person, state: Populated
) -> None:
    operator.open("/activity")
    operator.see("main a[rel=next]")
    with state.driver.registry.store.write() as connection:
        changes = [Change("noted", by=BY, data={"number": number}) for number in range(501)]
        ledger.append(connection, int(state.driver.clock()), *changes)
    operator.see("#left-out", "Older rows have left this page")
    operator.wait(lambda: operator.count("#events tr") == KEPT, "all rows")
    assert operator.count("main a[rel=next]") == 0
    operator.click("#left-out a")
    operator.see("main a[rel=next]")


def test_an_answer_about_a_policy_is_gone_once_something_else_is_typed(operator: Person) -> None:
    operator.open("/services/payments/policy")
    for field, text in ((NEW_CALLER, "till"), (NEW_SCOPES, "pay"), ("#asked_caller", "till"), ("#asked_scope", "pay")):
        operator.fill(field, text)
    operator.see("#told.done", "Yes: the rule for")
    with network(operator, offline=True):
        operator.fill(NEW_SCOPES, "refund")
        operator.see("#told.notice", "No answer")
    operator.wait(lambda: "ERR_INTERNET_DISCONNECTED" in str(operator.faults()), "the failed call in the log")
    operator.press(Keys.TAB)
    operator.fill(NEW_SCOPES, "pay")
    operator.see("#told.done", "Yes: the rule for")
    operator.find("#asked_caller").send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
    assert not operator.find("#told").is_displayed()


def test_enter_in_the_question_asks_and_does_not_review(operator: Person) -> None:
    operator.open("/services/payments/policy")
    operator.fill("#asked_caller", "billing")
    operator.fill("#asked_scope", "refund")
    operator.press(Keys.ENTER)
    operator.see("#told.refusal", "does not have this scope")
    operator.see("h1", "Who may call payments")


# ---- forms


def test_a_double_press_loses_no_token_that_is_shown_once(operator: Person) -> None:
    operator.open("/join-tokens")
    operator.fill("#service", "hasty")
    operator.double_click("main form .primary")
    operator.see("h1", "Join token for hasty")


def test_a_form_of_before_another_tabs_sign_in_says_so_and_gives_back_what_was_typed(
    operator: Person, state: Populated
) -> None:
    operator.open("/services/payments/policy")
    operator.fill(NEW_CALLER, "typed-for-long")
    operator.sign_in_again(state.tokens[Role.OPERATOR])
    operator.fill("#asked_caller", "billing")
    operator.fill("#asked_scope", "pay")
    operator.see("#told.notice", "you are signed out")
    operator.click("[aria-labelledby=rows] button.primary")
    operator.see("[role=alert]", "this form is of an earlier sign-in")
    operator.see("[aria-labelledby=typed]", "caller: typed-for-long")
    assert all("400" in told for told in operator.faults())
    operator.inspect("stale-form")


def test_a_form_that_is_too_long_says_so_in_the_look_of_the_console(operator: Person) -> None:
    operator.open("/services/payments/policy")
    operator.see("#policy")
    operator.chrome.execute_script("document.getElementById('policy').value = 'x'.repeat(1_000_000)")
    operator.click("[aria-labelledby=json] .primary")
    operator.see("[role=alert]", "body_too_large: the form has 1,0")
    assert all("413" in told for told in operator.faults())
    operator.inspect("form-too-long")


def test_after_the_sign_out_no_page_comes_back(stranger: Person, state: Populated) -> None:
    stranger.sign_in_again(state.driver.registry.operators.create(Role.VIEWER, 86_400)[1])
    stranger.open("/services/shop")
    stranger.click(".who summary")
    stranger.click("form[action$='/sign-out'] button")
    stranger.see("h1", "Sign in")
    stranger.chrome.back()
    stranger.see("h1", "Sign in")


# ---- hostile texts


def test_stored_xss_a_hostile_entry_is_text_where_scripts_show_it(operator: Person, state: Populated) -> None:
    operator.open("/activity")
    operator.see("#live", "New events appear")
    with state.driver.registry.store.write() as connection:
        change = Change("hostile", HOSTILE, f"{HOSTILE}/{HOSTILE}", {"oidc": HOSTILE}, data={"id": HOSTILE})
        ledger.append(connection, int(state.driver.clock()), change)
    row = operator.see("#events tr.new", HOSTILE)
    for linked in row.find_elements(By.CSS_SELECTOR, "a"):
        assert str(linked.get_attribute("href")).startswith(f"{operator.url}/console/")
    operator.open("/ledger")
    operator.fill("#verification-pin", state.driver.pin)
    operator.press(Keys.ENTER)
    operator.see("#verification-verdict.done", "Verified by this browser")
    operator.open("/ledger?at=1")
    operator.see("#verification-verdict.done")
    operator.open("/activity?type=hostile")
    operator.see("#events tr", HOSTILE)
    operator.inspect("activity-hostile")
    operator.chrome.execute_script("localStorage.clear()")


def test_a_long_hostile_name_of_a_person_fits_on_each_page(colleague: Person, issuer: SignInIssuer) -> None:
    issuer.person["preferred_username"] = issuer.person["name"] = f"{HOSTILE}\u202e" + "x" * 100
    colleague.open("/graph?of=billing")
    colleague.click("form[action$='/sign-in/oidc'] button")
    colleague.see("h1", "Trust graph of billing")
    colleague.see(".who summary", "xxxx")
    colleague.inspect("long-name")
