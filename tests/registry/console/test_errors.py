"""Errors of the console are pages of the console, whatever was asked."""

import pytest
from sqlalchemy import update
from werkzeug.test import TestResponse

from peerseal.protocol.keys import KeyPair
from registry.services.access.operators import Role
from registry.storage.tables import keys
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import token_of
from tests.registry.driver import Clock, Driver

UNKNOWN_METHODS = ("PUT", "PATCH", "DELETE", "TRACE", "BREW")
ODD_PATHS = ("/console//services", "/console/services//", "/console/..%2fservices", "/console/services/a%2fb")


def assert_is_a_page(answer: TestResponse, status: int, *, bodiless: bool = False) -> None:
    assert (answer.status_code, answer.mimetype) == (status, "text/html")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert answer.headers["Cache-Control"] == "no-store"
    assert (not answer.data) if bodiless else answer.text.count("<h1") == 1


@pytest.mark.parametrize("method", UNKNOWN_METHODS)
@pytest.mark.parametrize("path", ["/console", "/console/", "/console/services"])
def test_a_method_that_a_page_has_not_is_answered_with_a_page(
    admin: Browser, stranger: Browser, method: str, path: str
) -> None:
    for browser in (admin, stranger):
        answer = browser.client.open(path, method=method)
        assert_is_a_page(answer, 405)
        assert "GET" in answer.headers["Allow"]
        assert "method_not_allowed" in answer.text


@pytest.mark.parametrize("method", ["GET", "POST", *UNKNOWN_METHODS])
def test_a_page_that_does_not_exist_is_a_page_for_each_method(admin: Browser, stranger: Browser, method: str) -> None:
    for browser in (admin, stranger):
        assert_is_a_page(browser.client.open("/console/no-such-page", method=method), 404)


def test_a_form_sent_to_a_page_without_one_is_answered_with_a_page(admin: Browser) -> None:
    admin.open("/console/")
    assert_is_a_page(admin.send("/console/"), 405)


def test_head_of_an_act_has_the_head_of_the_page(admin: Browser) -> None:
    assert_is_a_page(admin.client.head("/console/sign-out"), 405, bodiless=True)
    assert_is_a_page(admin.client.head("/console/no-such-page"), 404, bodiless=True)


@pytest.mark.parametrize("path", ODD_PATHS)
def test_an_odd_path_is_answered_with_a_page(admin: Browser, path: str) -> None:
    answer = admin.client.get(path)
    assert_is_a_page(answer, 404)
    assert "not_found" in answer.text


@pytest.mark.parametrize("query", ["%00", "%ff%fe", "%", "after=%00", "after=%ff", "after=a&after=b", "q=%00%ff%zz"])
def test_a_broken_query_is_answered_with_a_page(admin: Browser, query: str) -> None:
    for path in ("/console/services", "/console/activity", "/console/ledger", "/console/graph", "/console/approvals"):
        answer = admin.client.get(f"{path}?{query}")
        assert_is_a_page(answer, answer.status_code)
        assert answer.status_code in (200, 400), (path, query)


def test_each_error_leads_to_what_its_code_means(registry: Driver, viewer: Browser) -> None:
    viewer.open("/console/no-such-page")
    assert 'href="/docs/errors#not_found"' in viewer.page
    assert 'id="not_found"' in registry.client.get("/docs/errors").text


def test_errors_outside_of_the_console_stay_problem_documents(registry: Driver) -> None:
    for method, path, status in (("GET", "/consoles", 404), ("GET", "/v1/x", 404), ("POST", "/healthz", 405)):
        answer = registry.client.open(path, method=method)
        assert (answer.status_code, answer.mimetype) == (status, "application/problem+json"), path


@pytest.mark.parametrize(
    "altered",
    [
        {"admitted_by": "no json"},
        {"admitted_by": "[]"},
        {"admitted_by": '{"kid":5}'},
        {"admitted_by": '{"join_token":{"x":1}}'},
        {"spki": b"no key"},
    ],
    ids=lambda altered: "-".join(map(str, *altered.items())),
)
def test_a_key_whose_row_was_altered_is_reported_and_no_defect(
    registry: Driver, viewer: Browser, altered: dict[str, object]
) -> None:
    key = KeyPair.generate("ES256")
    registry.joined(key, "shop")
    with registry.store.write() as connection:
        connection.execute(update(keys).values(**altered))
    answer = viewer.open(f"/console/services/shop/keys/{key.public.thumbprint}")
    assert_is_a_page(answer, 503)
    assert "ledger_contradicted" in viewer.page
    assert "peerseal-registry verify" in viewer.page
    for path in ("/console/services", "/console/services/shop", "/console/services/shop/keys", "/console/"):
        assert viewer.open(path).status_code in (200, 503), path
        assert "internal_error" not in viewer.page


@pytest.mark.parametrize(
    "altered", [{"active_from": 10**17}, {"active_until": -(10**17)}, {"service": "<b>"}, {"admitted_seq": 10**12}]
)
def test_odd_values_in_the_row_of_a_key_break_no_page(
    registry: Driver, viewer: Browser, altered: dict[str, object]
) -> None:
    key = KeyPair.generate("ES256")
    registry.joined(key, "shop")
    with registry.store.write() as connection:
        connection.execute(update(keys).values(**altered))
    thumbprint = key.public.thumbprint
    for path in ("", "/shop", "/shop/keys", f"/shop/keys/{thumbprint}", f"?q={thumbprint}"):
        answer = viewer.open(f"/console/services{path}")
        assert answer.status_code < 500, path
        assert "<b>" not in viewer.page


@pytest.mark.parametrize("path", ["/console/settings", "/console/settings/federation", "/console/services/a/policy"])
def test_a_form_that_is_too_long_is_answered_with_a_page_that_says_what_to_do(admin: Browser, path: str) -> None:
    admin.open(path)
    answer = admin.send(path, settings="x" * 70_000, entry="0")
    assert_is_a_page(answer, 413)
    told = (
        "bytes, expected 65,536 at most: nothing was changed; shorten what you typed, or run the command in a terminal"
    )
    assert told in admin.text()
    assert 'href="/docs/errors#body_too_large"' in admin.page


def test_a_long_form_of_a_stranger_is_answered_with_a_page(stranger: Browser) -> None:
    answer = stranger.client.post("/console/settings", data={"settings": "x" * 70_000})
    assert_is_a_page(answer, 413)
    assert "body_too_large" in answer.text


# ---- forms that come too late


def test_a_form_of_an_earlier_sign_in_says_what_to_do_and_gives_back_what_was_typed(
    registry: Driver, operator: Browser
) -> None:
    typed = {"how": "json", "seen": "0", "policy": '{"allow": {"web": ["long", "typed"]}}'}
    operator.client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    operator.open("/console/services/billing/policy")
    before = operator.page
    operator.client.delete_cookie("peerseal-console", path="/console")
    operator.sign_in(token_of(registry, Role.OPERATOR))
    operator.page = before
    answer = operator.send("/console/services/billing/policy/review", **typed)
    assert answer.status_code == 400
    assert "stale_form : this form is of an earlier sign-in in this browser: open its page again" in operator.text()
    assert f"policy: {typed['policy']}" in operator.text()


def test_a_form_after_the_end_of_the_session_gives_back_what_was_typed(operator: Browser, clock: Clock) -> None:
    operator.client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    operator.open("/console/services/billing/policy")
    clock.forward(3_601)
    answer = operator.send("/console/services/billing/policy/review", how="rows", seen="0", caller="web", scopes="x y")
    assert answer.status_code == 401
    assert "sign in, and send the form again" in operator.text()
    assert "caller: web scopes: x y" in operator.text()


def test_what_another_site_may_have_sent_and_what_is_secret_is_not_given_back(
    registry: Driver, stranger: Browser
) -> None:
    stranger.send("/console/approvals/web/x/reject", why="call this number")
    assert "call this number" not in stranger.page
    stranger.client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    stranger.send("/console/sign-in", token="pso1.secret")
    assert "stale_form : the browser sent no cookie" in stranger.text()
    assert "pso1.secret" not in stranger.page


def test_an_error_names_its_code_once(viewer: Browser) -> None:
    viewer.open("/console/activity", before="x")
    assert "invalid_parameter : a position is" in viewer.text()
