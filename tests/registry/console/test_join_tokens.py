"""Join tokens in the console: made and shown once, listed without secrets, withdrawn."""

import logging
import re
from html import unescape

import pytest
from werkzeug.test import TestResponse

from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from registry.limits import Limits
from registry.services.access.operators import Role
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import browser_of
from tests.registry.driver import BY, Clock, Driver

PAGE = "/console/join-tokens"
SCRIPT = "<script>alert(1)</script>\"'\u202e"


def make(browser: Browser, **fields: str) -> TestResponse:
    """Fills in the form of the page and sends it."""
    browser.open(PAGE)
    return browser.send(PAGE, **typed(browser, **fields))


def typed(browser: Browser, **fields: str) -> dict[str, str]:
    found = re.search(r'name="form" value="([^"]+)"', browser.page)
    return {"service": "billing", "ttl": "600", "uses": "1", "form": found[1] if found else "", **fields}


def shown_token(browser: Browser) -> str:
    found = re.search(r"psj1\.[\w.-]+", browser.page)
    assert found is not None
    return found[0]


def tokens(registry: Driver) -> list[dict[str, object]]:
    found = registry.client.get("/v1/join-tokens", headers=registry.operator).get_json()["join_tokens"]
    assert isinstance(found, list)
    return found


def test_without_tokens_the_page_says_so(viewer: Browser) -> None:
    viewer.open(PAGE)
    assert "No join token was made yet" in viewer.text()


def test_a_token_that_the_console_shows_registers_a_key(registry: Driver, operator: Browser) -> None:
    answer = make(operator)
    assert (answer.status_code, answer.history, answer.headers["Cache-Control"]) == (200, (), "no-store")
    token = JoinToken.parse(shown_token(operator))
    assert registry.join(KeyPair.generate("ES256"), "billing", token).status_code == 201


def test_the_answer_has_a_line_to_paste(registry: Driver, operator: Browser) -> None:
    operator.client.environ_base["HTTP_ORIGIN"] = "https://registry.acme.internal"
    make(operator)
    line = unescape(operator.page)
    token = shown_token(operator)
    assert (
        f"PEERSEAL_SERVICE=billing PEERSEAL_JOIN_TOKEN={token} "
        f"PEERSEAL_REGISTRY_URL=https://registry.acme.internal PEERSEAL_REGISTRY_PIN={registry.pin}"
    ) in line


@pytest.mark.parametrize("origin", ["null", "javascript:alert(1)", ""])
def test_an_origin_that_is_no_address_is_not_pasted(operator: Browser, origin: str) -> None:
    operator.client.environ_base["HTTP_ORIGIN"] = origin
    make(operator)
    assert "PEERSEAL_REGISTRY_URL=http://localhost " in operator.text()


def test_the_line_cannot_hold_a_second_command(operator: Browser) -> None:
    operator.client.environ_base["HTTP_ORIGIN"] = "https://a;reboot"
    make(operator)
    assert "PEERSEAL_REGISTRY_URL='https://a;reboot' " in unescape(operator.page)


def test_the_secret_is_in_no_second_view_address_cookie_or_log(
    operator: Browser, viewer: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = make(operator)
    secret = JoinToken.parse(shown_token(operator)).secret
    cookie = operator.client.get_cookie("peerseal-console", path="/console")
    assert secret not in caplog.text
    assert secret not in answer.request.url
    assert secret not in str(answer.headers)
    assert cookie is not None
    assert secret not in cookie.decoded_value
    for browser in (operator, viewer):
        browser.open(PAGE)
        assert "billing" in browser.text()
        assert secret not in browser.page


def test_a_reload_of_the_answer_makes_no_second_token(registry: Driver, operator: Browser) -> None:
    operator.open(PAGE)
    fields = typed(operator)
    operator.send(PAGE, **fields)
    answer = operator.send(PAGE, **fields)
    assert answer.request.method == "GET"
    assert "This form was sent before" in operator.text()
    assert "psj1." not in operator.page
    assert len(tokens(registry)) == 1


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"service": SCRIPT}, "not a service name"),
        ({"service": "registry"}, "the name of the registry itself"),
        ({"service": ""}, "not a service name"),
        ({"service": "x" * 150}, "not a service name"),
        ({"uses": "0"}, "uses is 0"),
        ({"uses": "-1"}, "expected a whole number"),
        ({"uses": "²"}, "expected a whole number"),
        ({"uses": "99999999"}, "uses is 99999999"),
        ({"ttl": "999999999"}, "ttl is 999999999"),
        ({"ttl": ""}, "expected a whole number"),
    ],
)
def test_a_wrong_field_is_named_and_what_was_typed_is_kept(
    registry: Driver, operator: Browser, fields: dict[str, str], cause: str
) -> None:
    answer = make(operator, **fields)
    assert answer.status_code == 400
    assert cause in operator.text()
    assert "<script>alert" not in operator.page
    kept = re.search(r'name="service" value="([^"]*)"', operator.page)
    assert kept is not None
    assert unescape(kept[1]) == fields.get("service", "billing")
    assert tokens(registry) == []


def test_lifetimes_are_those_that_the_registry_allows(registry: Driver) -> None:
    node = registry.node(console=True, limits=Limits(join_ttl=3_600))
    browser = browser_of(node, Role.OPERATOR)
    browser.open(PAGE)
    assert [unescape(name) for name in re.findall(r"<option[^>]*>([^<]+)", browser.page)] == ["10 minutes", "1 hour"]
    node.close()


def test_a_token_is_withdrawn_and_a_second_click_changes_nothing(registry: Driver, operator: Browser) -> None:
    token = registry.join_token("billing")
    operator.open(PAGE)
    operator.send(f"{PAGE}/{token.id}/withdraw")
    assert f"Join token {token.id} is withdrawn" in operator.text()
    assert registry.join(KeyPair.generate("ES256"), "billing", token).status_code == 401
    operator.send(f"{PAGE}/{token.id}/withdraw")
    assert "was withdrawn before" in operator.text()
    assert "Withdraw…" not in operator.text()


def test_the_list_says_which_tokens_are_active_spent_expired_and_withdrawn(
    registry: Driver, viewer: Browser, clock: Clock
) -> None:
    registry.joined(KeyPair.generate("ES256"), "spent")
    registry.registry.join_tokens.withdraw(registry.join_token("withdrawn").id, BY)
    registry.join_token("expired", ttl=60)
    registry.join_token("active", ttl=600)
    clock.forward(60)
    viewer.open(PAGE)
    for state in ("spent", "withdrawn", "expired", "active"):
        assert re.search(rf'<td>{state}</td>\s*<td><span class="state {state}">{state}</span>', viewer.page)


def test_tokens_are_paged(registry: Driver, viewer: Browser) -> None:
    ids = {registry.join_token(f"service-{number}").id for number in range(51)}
    viewer.open(PAGE)
    first = set(re.findall(r'<th scope="row"><code>([^<]+)', viewer.page))
    viewer.open(unescape(viewer.page.partition('rel="next"')[0].rpartition('href="')[2].partition('"')[0]))
    second = set(re.findall(r'<th scope="row"><code>([^<]+)', viewer.page))
    assert (len(first), first | second) == (50, ids)
    assert ">First</a>" in viewer.page


def test_a_viewer_has_no_form_and_no_right(registry: Driver, viewer: Browser) -> None:
    token = registry.join_token("billing")
    viewer.open(PAGE)
    assert "Make a join token" not in viewer.text()
    assert "Withdraw" not in viewer.text()
    assert viewer.send(PAGE, service="billing", ttl="600", uses="1", form="x").status_code == 403
    assert viewer.send(f"{PAGE}/{token.id}/withdraw").status_code == 403
    assert [row["withdrawn"] for row in tokens(registry)] == [False]
