"""Signing in at the console, and attacks on it."""

import logging

import pytest

from registry.services.access.operators import Role
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import browser_of, token_of
from tests.registry.driver import Clock, Driver


def cookie(browser: Browser) -> str | None:
    found = browser.client.get_cookie("peerseal-console", path="/console")
    return None if found is None else found.value


def test_the_console_is_off_unless_it_is_turned_on(sqlite_url: str, registry: Driver) -> None:
    node = registry.node(console=False)
    assert node.client.get("/console/sign-in").status_code == 404
    node.close()


def test_a_stranger_is_led_to_the_sign_in_and_then_to_the_page_that_was_asked_for(
    registry: Driver, stranger: Browser
) -> None:
    assert stranger.open("/console/?from=here").request.path == "/console/sign-in"
    answer = stranger.sign_in(token_of(registry, Role.VIEWER))
    assert (answer.status_code, answer.request.full_path) == (200, "/console/?from=here")


@pytest.mark.parametrize("role", list(Role))
def test_an_operator_of_each_role_signs_in(registry: Driver, role: Role) -> None:
    assert role.label in browser_of(registry, role).text()


def test_the_token_is_in_no_page_cookie_log_or_address(
    registry: Driver, stranger: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    token = token_of(registry, Role.ADMIN)
    secret = token.rpartition(".")[2]
    with caplog.at_level(logging.DEBUG):
        answer = stranger.sign_in(token)
        stranger.sign_in(token + "x")
    assert answer.history
    for seen in (stranger.page, cookie(stranger), caplog.text, *(each.request.url for each in answer.history)):
        assert secret not in (seen or "")


@pytest.mark.parametrize("token", ["", "pso1.x", "pso1.0123456789abcdef." + "A" * 43, "x" * 100, "\0", "ü"])
def test_a_wrong_token_is_refused_with_one_answer(stranger: Browser, token: str) -> None:
    answer = stranger.sign_in(token)
    assert answer.status_code == 401
    assert "This token is refused" in stranger.text()
    assert stranger.open("/console/").request.path == "/console/sign-in"


def test_an_expired_or_revoked_token_ends_its_sessions(registry: Driver, clock: Clock) -> None:
    record, token = registry.registry.operators.create(Role.VIEWER, 600)
    browser = Browser(registry)
    browser.sign_in(token)
    registry.registry.operators.revoke(record.id)
    assert browser.open("/console/").request.path == "/console/sign-in"
    other = Browser(registry)
    other.sign_in(registry.registry.operators.create(Role.VIEWER, 600)[1])
    clock.forward(599)
    assert other.open("/console/").request.path == "/console/"
    clock.forward(1)
    assert other.open("/console/").request.path == "/console/sign-in"


def test_a_session_is_short(registry: Driver, viewer: Browser, clock: Clock) -> None:
    clock.forward(registry.settings.limits.console_session)
    assert viewer.open("/console/").request.path == "/console/sign-in"


def test_who_signs_out_is_out_even_with_the_cookie_of_before(viewer: Browser) -> None:
    before = cookie(viewer)
    viewer.open("/console/")
    assert viewer.send("/console/sign-out").request.path == "/console/sign-in"
    viewer.client.set_cookie("peerseal-console", before or "", path="/console")
    assert viewer.open("/console/").request.path == "/console/sign-in"


def test_an_operator_signs_out_everywhere_and_no_one_else_does(registry: Driver, admin: Browser) -> None:
    token = token_of(registry, Role.OPERATOR)
    here, there = Browser(registry), Browser(registry)
    here.sign_in(token)
    there.sign_in(token)
    here.send("/console/sign-out-everywhere")
    assert there.open("/console/").request.path == "/console/sign-in"
    assert admin.open("/console/").request.path == "/console/"


def test_a_session_counts_at_each_node(registry: Driver, viewer: Browser) -> None:
    other = registry.node(console=True)
    browser = Browser(other)
    browser.client.set_cookie("peerseal-console", cookie(viewer) or "", path="/console")
    assert browser.open("/console/").request.path == "/console/"
    other.close()


def test_a_sign_in_is_in_the_audit_trail(registry: Driver, operator: Browser) -> None:
    operator.send("/console/sign-out-everywhere")
    acts = registry.client.get("/v1/audit", headers=registry.operator).get_json()["audit"]
    assert [act["act"] for act in acts][-2:] == ["signed_in", "signed_out_everywhere"]
    assert acts[-1]["by"] == {"operator": acts[-1]["subject"]}


# ---- attacks


def test_csrf_a_form_without_its_token_or_with_that_of_another_session_does_nothing(
    registry: Driver, viewer: Browser, operator: Browser
) -> None:
    operator.open("/console/")
    foreign = operator.page
    viewer.page = ""
    assert viewer.send("/console/sign-out").status_code == 400
    viewer.page = foreign
    assert viewer.send("/console/sign-out").status_code == 400
    assert viewer.open("/console/").request.path == "/console/"


def test_csrf_a_stranger_is_not_signed_in_by_another_site(registry: Driver, stranger: Browser) -> None:
    answer = stranger.client.post("/console/sign-in", data={"token": token_of(registry, Role.VIEWER)})
    assert answer.status_code == 400
    assert stranger.open("/console/").request.path == "/console/sign-in"


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
def test_csrf_a_form_that_the_browser_calls_foreign_is_refused(viewer: Browser, site: str) -> None:
    viewer.open("/console/")
    viewer.client.environ_base["HTTP_SEC_FETCH_SITE"] = site
    assert viewer.send("/console/sign-out").status_code == 400


def test_session_fixation_a_cookie_of_before_the_sign_in_is_worth_nothing(registry: Driver, stranger: Browser) -> None:
    stranger.open("/console/sign-in")
    fixed = cookie(stranger)
    stranger.sign_in(token_of(registry, Role.ADMIN))
    assert cookie(stranger) != fixed
    attacker = Browser(registry)
    attacker.client.set_cookie("peerseal-console", fixed or "", path="/console")
    assert attacker.open("/console/").request.path == "/console/sign-in"


@pytest.mark.parametrize("value", ["x", "eyJzZWNyZXQiOiJ4In0.Zm9v.YmFy", "." * 300])
def test_a_forged_cookie_is_worth_nothing(stranger: Browser, value: str) -> None:
    stranger.client.set_cookie("peerseal-console", value, path="/console")
    assert stranger.open("/console/").request.path == "/console/sign-in"


def test_open_redirect_no_link_says_where_the_sign_in_leads(registry: Driver, stranger: Browser) -> None:
    stranger.open("/console/sign-in?next=https://evil.example/&wanted=//evil.example")
    answer = stranger.send("/console/sign-in?next=https://evil.example/", token=token_of(registry, Role.VIEWER))
    assert answer.request.path == "/console/"
    stranger.send("/console/sign-out")
    stranger.open("/console//evil.example")
    assert stranger.sign_in(token_of(registry, Role.VIEWER)).request.host == "localhost"


def test_brute_force_an_address_may_not_guess_on(sqlite_url: str, registry: Driver) -> None:
    node = registry.node(console=True, limits=registry.settings.limits.__class__(refusals_per_minute=5))
    browser = Browser(node)
    statuses = [browser.sign_in(f"pso1.{number:016x}.{'A' * 43}").status_code for number in range(8)]
    assert statuses == [401] * 5 + [429] * 3
    assert browser.sign_in(token_of(registry, Role.ADMIN)).status_code == 429
    node.close()


def test_headers_no_frame_no_inline_code_nothing_from_elsewhere(viewer: Browser, stranger: Browser) -> None:
    for answer in (viewer.open("/console/"), stranger.open("/console/sign-in"), viewer.open("/console/nothing")):
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["Cache-Control"] == "no-store"
        assert " style=" not in answer.get_data(as_text=True)
        assert " onclick=" not in answer.get_data(as_text=True)


@pytest.mark.parametrize(
    ("host", "secure"),
    [("localhost", False), ("127.0.0.1:8080", False), ("[::1]:8080", False), ("registry.acme.internal", True)],
)
def test_cookies_are_strict_and_off_loopback_need_https(registry: Driver, host: str, secure: bool) -> None:
    answer = registry.app.test_client().get("/console/sign-in", base_url=f"http://{host}")
    flags = {part.strip() for part in answer.headers["Set-Cookie"].split(";")[1:]}
    assert {"HttpOnly", "SameSite=Strict", "Path=/console"} <= flags
    assert ("Secure" in flags) is secure
