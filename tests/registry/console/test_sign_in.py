"""Signing in at the console, and attacks on it."""

import logging

import pytest

from registry.console.rendering import time_element, time_text
from registry.domain.errors import StorageUnavailable
from registry.services.access.console_sessions import SESSIONS, ConsoleSessions
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
    browser = browser_of(registry, role)
    browser.open("/console/")
    assert role.label in browser.text()


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
    operator.open("/console/")
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
    cookie, *flags = (part.strip() for part in answer.headers["Set-Cookie"].split(";"))
    name, path = ("__Host-peerseal-console", "/") if secure else ("peerseal-console", "/console")
    assert cookie.startswith(f"{name}=")
    assert {"HttpOnly", "SameSite=Strict", f"Path={path}"} <= set(flags)
    assert ("Secure" in flags) is secure


def test_a_link_of_another_site_takes_no_session_away(registry: Driver, viewer: Browser) -> None:
    """The browser keeps the strict cookie back, and would take a new one in its place."""
    without = registry.app.test_client()
    for path in ("/console/activity?type=x", "/console/sign-in", "/console"):
        answer = without.get(path, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
        assert (answer.status_code, answer.headers.get("Set-Cookie")) == (200, None)
        assert f'<meta http-equiv="refresh" content="0; url={path}">' in answer.text
    assert viewer.open("/console/activity").request.path == "/console/activity"


def test_the_address_without_its_last_slash_leads_to_no_other_host(registry: Driver, viewer: Browser) -> None:
    answer = viewer.client.get("/console", base_url="http://evil.example")
    assert answer.headers["Location"] in ("/console/", "/console/sign-in")
    assert viewer.open("/console").request.path == "/console/"


def test_with_a_prefix_each_way_stays_in_it(registry: Driver) -> None:
    node = registry.node(console=True, external_prefix="/pk")
    client = node.app.test_client()
    answer = client.get("/console/activity?type=x")
    assert answer.headers["Location"] == "/pk/console/sign-in"
    assert "Path=/pk/console" in answer.headers["Set-Cookie"]
    for path in ("/console/activity?type=x", "/console/sign-in"):  # the cookie is for the path that the proxy strips
        shown = client.get(path)
        value = shown.headers["Set-Cookie"].partition(";")[0].partition("=")[2]
        client.set_cookie("peerseal-console", value, path="/console")
    token = shown.text.partition('name="csrf_token" value="')[2].partition('"')[0]
    signed_in = client.post("/console/sign-in", data={"csrf_token": token, "token": token_of(node, Role.VIEWER)})
    assert signed_in.headers["Location"] == "/pk/console/activity?type=x"
    node.close()


def test_a_proxy_that_asks_with_an_address_of_this_host_gets_secure_cookies(registry: Driver) -> None:
    answer = registry.app.test_client().get("/console/sign-in", headers={"X-Forwarded-For": "192.0.2.1"})
    assert "Secure" in {part.strip() for part in answer.headers["Set-Cookie"].split(";")}


def test_a_second_sign_in_in_a_browser_ends_the_first(registry: Driver, viewer: Browser) -> None:
    before = cookie(viewer)
    viewer.client.delete_cookie("peerseal-console", path="/console")
    other = Browser(registry)
    other.client.set_cookie("peerseal-console", before or "", path="/console")
    other.open("/console/")
    other.send("/console/sign-in", token=token_of(registry, Role.VIEWER))
    viewer.client.set_cookie("peerseal-console", before or "", path="/console")
    assert viewer.open("/console/").request.path == "/console/sign-in"


def test_an_operator_has_only_so_many_sessions_and_an_address_only_so_many_sign_ins(registry: Driver) -> None:
    token, browsers = token_of(registry, Role.VIEWER), [Browser(registry) for _ in range(SESSIONS + 1)]
    for browser in browsers:
        browser.sign_in(token)
    reached = [browser.open("/console/").request.path == "/console/" for browser in browsers]
    assert reached.count(False) == 1
    node = registry.node(console=True, limits=registry.settings.limits.__class__(refusals_per_minute=3))
    assert [Browser(node).sign_in(token).status_code for _ in range(5)] == [200] * 3 + [429] * 2
    node.close()


# ---- the database


def test_while_the_database_is_down_each_answer_is_a_page(
    registry: Driver, viewer: Browser, stranger: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> None:
        raise StorageUnavailable("the database is down")

    monkeypatch.setattr(ConsoleSessions, "find", down)
    for path in ("/console/", "/console/services", "/console/nothing", "/console/sign-in"):
        answer = viewer.open(path)
        assert (answer.status_code, answer.mimetype) == (503, "text/html")
        assert "storage_unavailable" in answer.text
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert stranger.open("/console/sign-in").status_code == 200


def test_who_signs_out_while_nothing_can_be_written_is_out_in_this_browser(
    viewer: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise StorageUnavailable("the server is read-only")

    viewer.open("/console/")
    monkeypatch.setattr(ConsoleSessions, "end", read_only)
    assert viewer.send("/console/sign-out").request.path == "/console/sign-in"
    assert viewer.open("/console/").request.path == "/console/sign-in"


def test_an_error_of_our_own_is_a_page_and_a_line_of_the_log(
    registry: Driver, viewer: Browser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret-in-a-message")

    monkeypatch.setattr(registry.registry.overview, "numbers", broken)
    answer = viewer.open("/console/")
    assert (answer.status_code, answer.mimetype) == (500, "text/html")
    assert "internal_error" in answer.text
    assert "secret-in-a-message" not in answer.text
    assert "secret-in-a-message" in caplog.text


@pytest.mark.parametrize("seconds", [10**18, -(10**18), 253_402_300_800])
def test_a_time_that_no_calendar_has_is_shown_as_none(seconds: int) -> None:
    assert time_text(seconds) == time_element(seconds) == "–"


def test_codes_are_those_of_the_http_interface(registry: Driver, viewer: Browser) -> None:
    viewer.open("/console/")
    too_large = viewer.send("/console/sign-out", filler="x" * registry.settings.limits.body * 2)
    assert (too_large.status_code, "body_too_large" in too_large.text) == (413, True)
