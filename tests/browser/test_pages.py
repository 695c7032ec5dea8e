"""Each page of the console in Chromium: for an admin, a viewer and a stranger; light and dark; wide and narrow."""

from collections.abc import Callable
from typing import Final

import pytest
from werkzeug.exceptions import NotFound

from registry.services.access.operators import Role
from tests.browser.lying import Lying
from tests.browser.person import Person
from tests.browser.populated import FOREIGN, PARTNER, SERVICES, SHOP, Populated

pytestmark = pytest.mark.browser

PAGES: Final = {
    "overview": "/",
    "services": "/services",
    "services-found": "/services?q=orders-api",
    "service": f"/services/{SHOP}",
    "service-key-found": f"/services/{SHOP}?key={{key}}",
    "service-keys": f"/services/{SHOP}/keys",
    "key": f"/services/{SHOP}/keys/{{key}}",
    "approvals": "/approvals",
    "join-tokens": "/join-tokens",
    "policy": f"/services/{SHOP}/policy",
    "policy-explained": f"/services/{SHOP}/policy/explain?caller=web&scope=orders:read",
    "graph": "/graph",
    "graph-of-one": f"/graph?of={SHOP}",
    "graph-of-foreign": f"/graph?of={FOREIGN}",
    "federation": "/settings/federation?after=e",
    "federation-long": "/settings/federation",
    "federation-change": f"/settings/federation?change={PARTNER}",
    "activity": "/activity",
    "activity-filtered": f"/activity?service={SHOP}",
    "ledger": "/ledger",
    "ledger-older": "/ledger?at=60",
    "ledger-entry": "/ledger/2",
    "ledger-entry-in-words": "/ledger/1",
    "settings": "/settings",
    "settings-keys": "/settings/keys",
}
"""Pages for all roles, by the names of their screenshots."""
OPERATORS_PAGES: Final = {"revoke": f"/services/{SHOP}/keys/{{key}}/revoke"}
ADMINS_PAGES: Final = {
    "federation-remove": f"/settings/federation/{PARTNER}/remove",
    "operators": "/settings/operators",
    "operator-revoke": "/settings/operators/{operator}/revoke",
}
ALL: Final = {**PAGES, **OPERATORS_PAGES, **ADMINS_PAGES}


def path_of(name: str, state: Populated) -> str:
    return ALL[name].format(key=state.key, operator=state.operator_id)


@pytest.mark.parametrize("name", ALL)
def test_a_page_is_accessible_in_each_look_and_breaks_no_rule_of_its_own(
    signed_in: Callable[[Role], Person], state: Populated, name: str
) -> None:
    admin = signed_in(Role.ADMIN)
    admin.open(path_of(name, state))
    admin.see("h1")
    if name.startswith("graph"):
        admin.see("#graph .node")
    admin.inspect(name)


@pytest.mark.parametrize("name", PAGES)
def test_a_viewer_sees_the_page_and_no_act(signed_in: Callable[[Role], Person], state: Populated, name: str) -> None:
    viewer = signed_in(Role.VIEWER)
    viewer.open(path_of(name, state))
    viewer.see("h1")
    assert viewer.count("header nav [aria-current=page]") == 1
    assert viewer.count("main form[method=post], main a[href*='/revoke'], main a[href*='/remove'], main .danger") == 0
    if name.startswith("graph"):
        viewer.see("#graph .node")
    viewer.inspect(f"viewer-{name}")


@pytest.mark.parametrize("name", [*OPERATORS_PAGES, *ADMINS_PAGES])
def test_a_viewer_is_refused_what_is_not_for_viewers(
    signed_in: Callable[[Role], Person], state: Populated, name: str
) -> None:
    viewer = signed_in(Role.VIEWER)
    viewer.open(path_of(name, state))
    viewer.see("h1", "Forbidden")
    [told] = viewer.faults()
    assert "403" in told
    viewer.inspect("forbidden")


def test_a_stranger_is_led_to_the_sign_in_from_each_page(stranger: Person, state: Populated) -> None:
    for name in ALL:
        stranger.open(path_of(name, state))
        assert stranger.chrome.current_url == f"{stranger.url}/console/sign-in", name
    stranger.inspect("sign-in")


def test_a_link_of_another_site_leads_to_the_page_by_one_of_ours(
    signed_in: Callable[[Role], Person], stranger: Person, front: Lying
) -> None:
    follow(stranger, front)
    stranger.see("h1", "Sign in")
    viewer = signed_in(Role.VIEWER)
    follow(viewer, front)
    viewer.see("h1", "Trust graph of billing")


def test_the_page_between_is_accessible_and_works_by_hand(
    signed_in: Callable[[Role], Person], stranger: Person, front: Lying
) -> None:
    front.altered = {b'http-equiv="refresh"': b'name="held"'}
    follow(stranger, front)
    stranger.see("h1", "One moment")
    stranger.inspect("arrival")
    stranger.click("main a")
    stranger.see("h1", "Sign in")
    viewer = signed_in(Role.VIEWER)
    follow(viewer, front)
    viewer.see("h1", "One moment")
    viewer.click("main a")
    viewer.see("h1", "Trust graph of billing")
    front.tell_the_truth()


def follow(person: Person, front: Lying) -> None:
    """Follows a link to the console on a page of another site: a browser tells ``localhost`` from ``127.0.0.1``."""
    person.chrome.get(f"{front.url.replace('127.0.0.1', 'localhost')}/docs")
    person.chrome.execute_script("location.href = arguments[0]", f"{front.url}/console/graph?of=billing#callees")


def test_a_page_that_is_not_there_is_told_so(signed_in: Callable[[Role], Person]) -> None:
    viewer = signed_in(Role.VIEWER)
    viewer.open("/no-such-page")
    viewer.see("h1", "Not Found")
    [told] = viewer.faults()
    assert "404" in told
    viewer.inspect("not-found")


def test_each_page_of_the_console_is_among_these(state: Populated) -> None:
    adapter = state.driver.app.url_map.bind("localhost")

    def endpoint(path: str) -> str:
        try:
            return str(adapter.match("/console" + path.partition("?")[0])[0])
        except NotFound:
            return path

    shown = {endpoint(path_of(name, state)) for name in ALL}
    rules = state.driver.app.url_map.iter_rules()
    served = {rule.endpoint for rule in rules if rule.endpoint.startswith("console.") and "GET" in (rule.methods or ())}
    no_pages = {
        "console._front",
        "console._nothing",
        "console.static",
        "console.graph.drawing",
        "console.activity.newer",
    }
    assert served - shown - no_pages == {"console.sign_in.show"}


def test_the_registry_is_as_large_as_it_is_meant_to_be(signed_in: Callable[[Role], Person]) -> None:
    viewer = signed_in(Role.VIEWER)
    viewer.open("/graph")
    viewer.see("main", f"{SERVICES // 1000},0")


# ---- the detectors themselves


def test_a_violation_of_the_policy_and_an_error_of_a_script_are_found(stranger: Person) -> None:
    stranger.open("/sign-in")
    stranger.chrome.execute_script(
        "const image = document.body.appendChild(document.createElement('img'));"
        "image.src = 'https://elsewhere.invalid/a.png';"
        "setTimeout(() => { throw new Error('broken on purpose') })"
    )
    told: list[str] = []

    def found() -> bool:
        told.extend(stranger.faults())
        text = "\n".join(told)
        return all(part in text for part in ("img-src https://elsewhere.invalid", "broken on purpose"))

    stranger.wait(found, "both faults")
    stranger.open("/sign-in")


def test_what_is_hard_to_read_and_too_wide_is_found(stranger: Person) -> None:
    stranger.open("/sign-in")
    stranger.chrome.execute_script(
        "const made = document.querySelector('main').appendChild(document.createElement('p'));"
        "made.textContent = 'pale'; made.style.width = '3000px';"
        "made.style.color = '#ddd'; made.style.background = '#fff';"
    )
    troubles = "\n".join(stranger.troubles())
    assert "color-contrast" in troubles
    assert "pixels wide, in 1280" in troubles
