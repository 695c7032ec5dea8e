"""Signing in to the console at the operators' OIDC issuer, a real one over HTTP, and attacks on it."""

import logging
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from html import unescape
from pathlib import Path
from threading import Event
from typing import Any

import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from sqlalchemy import select
from werkzeug.test import TestResponse

from peerseal.errors import ConfigurationError
from registry.operator_issuer import OperatorIssuer
from registry.services.access.issuer_sign_in import EXCHANGES, PAUSE
from registry.services.access.operators import Role
from registry.services.recovery.verify import verify
from registry.settings import Settings
from registry.storage.queries import used_tokens
from registry.storage.tables import entries
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import browser_of, token_of
from tests.registry.driver import Clock, Driver
from tests.support.brokers import eventually
from tests.support.issuer import DISCOVERY, ENDLESS, JWKS
from tests.support.sign_in_issuer import CLIENT, SECRET, TOKEN, SignInIssuer, running_sign_in_issuer

CALLBACK = "/console/sign-in/oidc/callback"
_REFRESH = re.compile(r'http-equiv="refresh" content="0; url=([^"]*)"')


@pytest.fixture
def issuer(clock: Clock) -> Iterator[SignInIssuer]:
    with running_sign_in_issuer(clock) as issuer:
        yield issuer


def operator_issuer(issuer: SignInIssuer, **changes: Any) -> OperatorIssuer:
    groups = {"platform-admins": "admin", "sre": "operator", "staff": "viewer"}
    settings = OperatorIssuer(
        issuer=issuer.url,
        client_id=CLIENT,
        client_secret=SECRET,
        console_url="http://localhost/console",
        groups=groups,
    )
    return replace(settings, **changes)


@pytest.fixture
def registry(sqlite_url: str, tmp_path: Path, clock: Clock, issuer: SignInIssuer) -> Iterator[Driver]:
    driver = Driver(sqlite_url, tmp_path / "home", clock, console=True, operator_issuer=operator_issuer(issuer))
    yield driver
    driver.close()


def led_to(page: str) -> str:
    """Where a page leads by itself."""
    found = _REFRESH.search(page)
    assert found, page
    return unescape(found[1])


def leave(browser: Browser) -> str:
    """Begins a sign-in, goes to the issuer, and returns the address to which the issuer sends the browser back."""
    browser.open("/console/sign-in")
    browser.send("/console/sign-in/oidc")
    answer = requests.get(led_to(browser.page), allow_redirects=False, timeout=20)
    assert answer.status_code == 302
    return answer.headers["Location"]


def come_back(browser: Browser, address: str) -> TestResponse:
    """Comes back as from another site: the browser keeps the strict cookie back."""
    strict = browser.client.get_cookie("peerseal-console", path="/console")
    browser.client.delete_cookie("peerseal-console", path="/console")
    answer = browser.client.get(address, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
    browser.page = answer.get_data(as_text=True)
    if strict is not None and browser.client.get_cookie("peerseal-console", path="/console") is None:
        browser.client.set_cookie("peerseal-console", strict.value, path="/console")
    return answer


def sign_in(browser: Browser) -> TestResponse:
    """The whole way."""
    answer = come_back(browser, leave(browser))
    return browser.open(led_to(browser.page)) if answer.status_code == 200 else answer


def is_in(browser: Browser) -> bool:
    return browser.open("/console/").request.path == "/console/"


def acts(registry: Driver) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = registry.client.get("/v1/audit", headers=registry.operator).get_json()["audit"]
    return found


def refusal(registry: Driver, browser: Browser, status: int = 401) -> str:
    """The page after a sign-in that is refused, and leaves nothing."""
    answer = sign_in(browser)
    assert answer.status_code == status, browser.text()
    text = browser.text()
    assert not is_in(browser)
    assert [act["act"] for act in acts(registry)].count("signed_in") == 0
    return text


# ---- the way in


@pytest.mark.parametrize("path", ["services/a%0d%0aX:y", "services/a%3Fkey=1", "services?q=" + "a" * 4000])
def test_whatever_page_a_stranger_asked_for_the_sign_in_leads_to_a_page_of_ours(registry: Driver, path: str) -> None:
    browser = Browser(registry)
    browser.open(f"/console/{path}")
    answer = browser.sign_in(token_of(registry, Role.VIEWER))
    assert answer.status_code in (200, 400, 404)
    assert answer.request.path.startswith("/console/")
    assert "key=" not in answer.request.query_string.decode()


def test_an_admin_of_the_issuer_makes_no_token_that_would_outlive_it(registry: Driver, issuer: SignInIssuer) -> None:
    issuer.person["groups"] = ["platform-admins"]
    browser = Browser(registry)
    sign_in(browser)
    assert "make it with an operator token" in browser.open("/console/settings/operators").get_data(as_text=True)
    before = len(registry.registry.operators.page("", 100)["operator_tokens"])
    assert browser.send("/console/settings/operators", role="admin", days="90").status_code == 403
    assert len(registry.registry.operators.page("", 100)["operator_tokens"]) == before


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        (["platform-admins"], Role.ADMIN),
        (["staff", "other"], Role.VIEWER),
        (["staff", "platform-admins", "sre"], Role.ADMIN),
        ("sre", Role.OPERATOR),
    ],
)
def test_a_person_signs_in_with_the_highest_role_of_the_groups(
    issuer: SignInIssuer, stranger: Browser, groups: Any, role: Role
) -> None:
    issuer.person["groups"] = groups
    answer = sign_in(stranger)
    assert (answer.status_code, answer.request.path) == (200, "/console/")
    assert f"{role.label} ada" in stranger.text()


def test_the_sign_in_leads_to_the_page_that_was_asked_for(stranger: Browser) -> None:
    stranger.open("/console/activity?type=signed_in")
    assert sign_in(stranger).request.full_path == "/console/activity?type=signed_in"


def test_the_page_offers_the_issuer_only_where_one_is_set(registry: Driver, stranger: Browser) -> None:
    stranger.open("/console/sign-in")
    assert "Sign in at 127.0.0.1" in stranger.text()
    node = registry.node(console=True, operator_issuer=None)
    other = Browser(node)
    other.open("/console/sign-in")
    assert "Sign in at" not in other.text()
    assert other.send("/console/sign-in/oidc").status_code in (401, 404)
    node.close()


def test_the_callback_of_another_node_finishes_the_sign_in(
    registry: Driver, issuer: SignInIssuer, stranger: Browser
) -> None:
    address = leave(stranger)
    node = registry.node(console=True, operator_issuer=operator_issuer(issuer))
    other = Browser(node)
    attempt = stranger.client.get_cookie("peerseal-console-sign-in", path="/console/sign-in/oidc")
    assert attempt is not None
    other.client.set_cookie("peerseal-console-sign-in", attempt.value, path="/console/sign-in/oidc")
    assert come_back(other, address).status_code == 200
    assert is_in(other)
    node.close()


def test_the_audit_trail_names_the_person_and_the_ledger_does_not(
    registry: Driver, issuer: SignInIssuer, stranger: Browser
) -> None:
    name, subject = "ada.lovelace", "8f1d-4c2b-97e0"  # so long that no signature in the ledger has them by chance
    issuer.person |= {"preferred_username": name, "sub": subject}
    sign_in(stranger)
    last = acts(registry)[-1]
    assert last["act"] == "signed_in"
    assert last["subject"] == f"{last['by']['operator']}: '{name}', '{subject}' of {issuer.url}"
    with registry.store.read() as connection:
        bodies = b"".join(connection.execute(select(entries.c.body)).scalars())
    assert last["by"]["operator"].encode() in bodies
    for private in (name, subject, issuer.url):
        assert private.encode() not in bodies


def test_what_a_person_does_bears_an_operator_that_the_ledger_knows(
    registry: Driver, issuer: SignInIssuer, stranger: Browser
) -> None:
    issuer.person["groups"] = ["sre"]
    sign_in(stranger)
    stranger.open("/console/join-tokens")
    fields = {"service": "billing", "ttl": "3600", "uses": "1"}
    assert stranger.send("/console/join-tokens", **fields).status_code == 200
    made = next(act for act in acts(registry) if act["act"] == "join_token_created")
    signed_in = next(act for act in acts(registry) if act["act"] == "signed_in")
    assert made["by"] == signed_in["by"]
    assert verify(registry.store, registry.settings.limits, clock=registry.clock).whole


def test_a_person_who_signs_in_again_is_the_same_operator(registry: Driver, stranger: Browser, clock: Clock) -> None:
    sign_in(stranger)
    sign_in(Browser(registry))
    assert len({act["by"]["operator"] for act in acts(registry) if act["act"] == "signed_in"}) == 1
    clock.forward(86_400)
    sign_in(Browser(registry))
    assert len({act["by"]["operator"] for act in acts(registry) if act["act"] == "signed_in"}) == 2


def test_a_session_is_as_short_as_one_with_a_token(registry: Driver, stranger: Browser, clock: Clock) -> None:
    sign_in(stranger)
    clock.forward(registry.settings.limits.console_session - 1)
    assert is_in(stranger)
    clock.forward(1)
    assert not is_in(stranger)


def test_sign_out_everywhere_ends_all_sessions_of_the_person(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, clock: Clock
) -> None:
    sign_in(stranger)
    clock.forward(84_000)  # too late in the record's life for another whole session: the next one has a new record
    here, there = Browser(registry), Browser(registry)
    sign_in(here)
    sign_in(there)
    here.open("/console/")
    here.send("/console/sign-out-everywhere")
    assert (is_in(here), is_in(there)) == (False, False)


def test_a_person_with_another_role_loses_the_sessions_of_the_role_before(
    registry: Driver, issuer: SignInIssuer, stranger: Browser
) -> None:
    issuer.person["groups"] = ["platform-admins"]
    sign_in(stranger)
    issuer.person["groups"] = ["staff"]
    other = Browser(registry)
    sign_in(other)
    assert (is_in(stranger), is_in(other)) == (False, True)
    assert "viewer ada" in other.text()


def test_a_person_who_lost_all_groups_loses_the_sessions_of_before(
    registry: Driver, issuer: SignInIssuer, stranger: Browser
) -> None:
    sign_in(stranger)
    issuer.person["groups"] = []
    assert sign_in(Browser(registry)).status_code == 403
    assert not is_in(stranger)
    issuer.person["groups"] = ["sre"]
    sign_in(stranger)
    assert is_in(stranger)
    assert verify(registry.store, registry.settings.limits, clock=registry.clock).whole


def test_an_admin_ends_a_persons_sessions_by_the_operators_id(
    registry: Driver, issuer: SignInIssuer, stranger: Browser
) -> None:
    sign_in(stranger)
    registry.registry.operators.revoke(acts(registry)[-1]["by"]["operator"])
    assert not is_in(stranger)


def test_admins_see_the_name_among_the_operators(registry: Driver, stranger: Browser) -> None:
    sign_in(stranger)
    admin = browser_of(registry, Role.ADMIN)
    admin.open("/console/settings/operators")
    assert "ada" in admin.text()


def test_keys_that_the_issuer_rotates_are_found(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, clock: Clock
) -> None:
    sign_in(stranger)
    issuer.rotate(keep=0)
    clock.forward(60)
    other = Browser(registry)
    sign_in(other)
    assert is_in(other)


# ---- people and issuers that are refused


@pytest.mark.parametrize("groups", [[], ["SRE"], ["sre "], ["other"], None, {"sre": 1}, 7, [["sre"]], ["sre"] * 1001])
def test_a_person_without_a_role_is_told_so_and_has_no_session(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, groups: Any
) -> None:
    issuer.person["groups"] = groups
    assert "none of your groups has a role" in refusal(registry, stranger, 403)


@pytest.mark.parametrize("claims", [{"sub": ""}, {"sub": None}, {"exp": 1}, {"iat": None}, {"exp": None}])
def test_an_id_token_with_bad_claims_is_refused(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, claims: dict[str, Any]
) -> None:
    issuer.person |= claims
    if claims.get("sub", "x") is None:
        issuer.person["sub"] = ""
    assert "is refused" in refusal(registry, stranger)


def test_an_id_token_of_the_future_is_refused(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, clock: Clock
) -> None:
    issuer.person |= {"iat": int(clock()) + 600, "nbf": int(clock()) + 600, "exp": int(clock()) + 900}
    refusal(registry, stranger)


def test_another_issuers_token_is_refused(registry: Driver, issuer: SignInIssuer, stranger: Browser) -> None:
    issuer.person["iss"] = "https://evil.example"
    refusal(registry, stranger)


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "another-client"},
        {"aud": [CLIENT, "another-client"]},
        {"aud": [CLIENT, "another-client"], "azp": "another-client"},
        {"azp": "another-client"},
        {"azp": 7},
    ],
)
def test_a_token_for_another_client_is_refused(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, claims: dict[str, Any]
) -> None:
    issuer.person |= claims
    refusal(registry, stranger)


def test_a_token_for_several_clients_counts_if_this_one_asked_for_it(issuer: SignInIssuer, stranger: Browser) -> None:
    issuer.person |= {"aud": [CLIENT, "another-client"], "azp": CLIENT}
    sign_in(stranger)
    assert is_in(stranger)


@pytest.mark.parametrize("nonce", ["x", "", None, 7])
def test_a_token_with_the_nonce_of_another_sign_in_is_refused(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, nonce: object
) -> None:
    issuer.person["nonce"] = nonce
    refusal(registry, stranger)


def _unsigned(token: str) -> str:
    return jwt.encode(jwt.decode(token, options={"verify_signature": False}), "", "none", headers={"kid": "x"})


def _by_shared_secret(token: str) -> str:
    kid = jwt.get_unverified_header(token)["kid"]
    claims = jwt.decode(token, options={"verify_signature": False})
    return jwt.encode(claims, SECRET * 3, "HS256", headers={"kid": kid})


def _by_another_key(token: str) -> str:
    kid = jwt.get_unverified_header(token)["kid"]
    claims = jwt.decode(token, options={"verify_signature": False})
    return jwt.encode(claims, rsa.generate_private_key(65537, 2048), "RS256", headers={"kid": kid})


@pytest.mark.parametrize(
    "forge",
    [_unsigned, _by_shared_secret, _by_another_key, lambda token: token[:-8] + "AAAAAAAA", lambda _: 7, lambda _: ""],
)
def test_a_forged_id_token_is_refused(registry: Driver, issuer: SignInIssuer, stranger: Browser, forge: Any) -> None:
    issuer.forge = forge
    refusal(registry, stranger)


@pytest.mark.parametrize("headers", [{"jku": "https://evil.example/keys"}, {"typ": "at+jwt"}, {"crit": ["x"], "x": 1}])
def test_an_id_token_that_names_keys_or_is_of_another_kind_is_refused(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, headers: dict[str, Any]
) -> None:
    issuer.headers = headers
    refusal(registry, stranger)


def test_a_kid_that_the_issuer_does_not_publish_is_refused(
    registry: Driver, issuer: SignInIssuer, stranger: Browser
) -> None:
    issuer.headers = {"kid": "unknown"}
    refusal(registry, stranger)


# ---- an issuer that fails


def test_while_the_issuer_is_down_the_page_says_so_and_a_token_still_signs_in(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, clock: Clock
) -> None:
    issuer.down = True
    stranger.open("/console/sign-in")
    assert stranger.send("/console/sign-in/oidc").status_code == 503
    assert "does not answer" in stranger.text()
    assert stranger.send("/console/sign-in", token=token_of(registry, Role.VIEWER)).request.path == "/console/"
    issuer.down = False
    clock.forward(10)
    other = Browser(registry)
    sign_in(other)
    assert is_in(other)


@pytest.mark.parametrize("path", [TOKEN, JWKS])
def test_an_issuer_that_fails_in_the_middle_signs_no_one_in(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, path: str
) -> None:
    issuer.answers[path] = 500, {}
    assert "does not answer" in refusal(registry, stranger, 503)


@pytest.mark.parametrize(
    ("status", "body", "refused"),
    [
        (200, b"", 401),
        (200, b"[]", 401),
        (200, b'{"access_token": "x"}', 401),
        (200, b'{"id_token": "x", "id_token": "y"}', 401),
        (400, b'{"error": "invalid_grant"}', 401),
        (200, b"x" * 100_000, 503),
        (302, b"", 503),
    ],
)
def test_a_token_endpoint_that_answers_wrongly_signs_no_one_in(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, status: int, body: bytes, refused: int
) -> None:
    issuer.answers[TOKEN] = status, {"Location": "http://127.0.0.1:1/"}, body
    refusal(registry, stranger, refused)


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://evil.example/token"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"token_endpoint": None},
        {"jwks_uri": None},
    ],
)
def test_a_discovery_document_with_other_places_is_refused(
    issuer: SignInIssuer, stranger: Browser, changes: dict[str, Any]
) -> None:
    issuer.answers[DISCOVERY] = issuer.discovery | changes
    stranger.open("/console/sign-in")
    assert stranger.send("/console/sign-in/oidc").status_code == 503


def test_an_endless_discovery_document_is_refused(issuer: SignInIssuer, stranger: Browser) -> None:
    issuer.answers[DISCOVERY] = ENDLESS
    stranger.open("/console/sign-in")
    assert stranger.send("/console/sign-in/oidc").status_code == 503


def test_an_issuer_that_is_down_is_not_asked_by_each_click(issuer: SignInIssuer, stranger: Browser) -> None:
    issuer.down = True
    for _ in range(5):
        stranger.open("/console/sign-in")
        stranger.send("/console/sign-in/oidc")
    assert issuer.fetched[DISCOVERY] <= 2  # a closed connection is tried once more


@pytest.fixture
def slow_issuer(issuer: SignInIssuer) -> Iterator[Event]:
    """The token endpoint answers once the event is set."""
    answers = Event()

    def forge(token: str) -> str:
        answers.wait(20)
        return token

    issuer.forge = forge
    yield answers
    answers.set()


def come_back_and_wait(pool: ThreadPoolExecutor, node: Driver, issuer: SignInIssuer) -> list[Future[int]]:
    """As many people as may wait for the issuer at once."""
    ways = [(browser, leave(browser)) for browser in (Browser(node) for _ in range(EXCHANGES))]
    answers = [pool.submit(lambda way: come_back(*way).status_code, way) for way in ways]
    eventually(lambda: len(issuer.forms) == EXCHANGES, "a full queue at the issuer")
    return answers


def test_an_issuer_that_hangs_holds_few_threads(registry: Driver, issuer: SignInIssuer, slow_issuer: Event) -> None:
    with ThreadPoolExecutor(EXCHANGES) as pool:
        answers = come_back_and_wait(pool, registry, issuer)
        late = Browser(registry)
        assert come_back(late, leave(late)).status_code == 503
        assert "does not answer now" in late.text()
        slow_issuer.set()
        assert [answer.result(20) for answer in answers] == [200] * EXCHANGES
    assert len(issuer.forms) == EXCHANGES
    sign_in(late)
    assert is_in(late)


def test_brute_force_a_burst_is_counted_before_the_issuer_answers(
    registry: Driver, issuer: SignInIssuer, slow_issuer: Event
) -> None:
    limits = replace(registry.settings.limits, refusals_per_minute=EXCHANGES)
    node = registry.node(console=True, operator_issuer=operator_issuer(issuer), limits=limits)
    with ThreadPoolExecutor(EXCHANGES) as pool:
        come_back_and_wait(pool, node, issuer)
        assert Browser(node).client.get(f"{CALLBACK}?state=x&code=y").status_code == 429
        slow_issuer.set()
    node.close()


def test_a_database_that_takes_no_sign_ins_is_not_the_issuers_fault(registry: Driver, stranger: Browser) -> None:
    address = leave(stranger)
    with registry.store.write() as connection:
        used_tokens.close(connection, int(registry.clock()) + 100)
    assert come_back(stranger, address).status_code == 503
    assert "issuer does not answer" not in stranger.text()


# ---- attacks


@pytest.mark.parametrize(("mode", "place"), [("no-cors", "image"), ("navigate", "iframe"), ("cors", "empty")])
def test_cross_site_parts_of_a_page_neither_end_an_attempt_nor_spend_refusals(
    registry: Driver, issuer: SignInIssuer, mode: str, place: str
) -> None:
    limits = replace(registry.settings.limits, refusals_per_minute=2)
    node = registry.node(console=True, operator_issuer=operator_issuer(issuer), limits=limits)
    browser = Browser(node)
    address = leave(browser)
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": place}
    for shown in (address, f"{CALLBACK}?state=x&code=y") * 2:
        assert browser.client.get(shown, headers=headers).status_code == 401
    assert come_back(browser, address).status_code == 200
    node.close()


def test_login_csrf_a_link_to_the_callback_takes_no_session_away(registry: Driver, stranger: Browser) -> None:
    sign_in(stranger)
    answer = come_back(stranger, f"{CALLBACK}?state=x&code=y")
    assert answer.status_code == 401
    assert "Set-Cookie" not in answer.headers
    assert is_in(stranger)


def test_after_a_refusal_the_page_that_was_asked_for_comes_after_the_next_sign_in(
    registry: Driver, issuer: SignInIssuer, stranger: Browser
) -> None:
    issuer.down = True
    stranger.open("/console/activity")
    assert stranger.send("/console/sign-in/oidc").status_code == 503
    issuer.down = False
    registry.clock.forward(PAUSE)
    issuer.answers[TOKEN] = 500, {}
    stranger.send("/console/sign-in/oidc")
    back = requests.get(led_to(stranger.page), allow_redirects=False, timeout=20).headers["Location"]
    assert come_back(stranger, back).status_code == 503
    assert 'href="/console/activity">Back to the sign-in' in stranger.page
    assert stranger.open("/console/activity").request.path == "/console/sign-in"
    signed_in = stranger.send("/console/sign-in", token=token_of(registry, Role.VIEWER))
    assert signed_in.request.path == "/console/activity"


def test_login_csrf_an_answer_of_no_attempt_leaves_the_attempt_of_the_browser(stranger: Browser) -> None:
    address = leave(stranger)
    assert come_back(stranger, f"{CALLBACK}?state=x&code=y").status_code == 401
    assert come_back(stranger, address).status_code == 200


def test_login_csrf_a_browser_that_began_nothing_is_not_signed_in(registry: Driver, stranger: Browser) -> None:
    """An attacker sends the victim the end of the attacker's own sign-in."""
    address = leave(Browser(registry))
    assert come_back(stranger, address).status_code == 401
    assert not is_in(stranger)


def test_login_csrf_a_browser_with_another_attempt_is_not_signed_in(registry: Driver, stranger: Browser) -> None:
    leave(stranger)
    assert come_back(stranger, leave(Browser(registry))).status_code == 401
    assert not is_in(stranger)


def test_login_csrf_another_site_begins_no_sign_in(stranger: Browser) -> None:
    assert stranger.client.post("/console/sign-in/oidc").status_code == 400
    stranger.open("/console/sign-in")
    stranger.client.environ_base["HTTP_SEC_FETCH_SITE"] = "cross-site"
    assert stranger.send("/console/sign-in/oidc").status_code == 400


def test_replay_a_sign_in_counts_once(registry: Driver, stranger: Browser) -> None:
    found = stranger.client
    address = leave(stranger)
    attempt = found.get_cookie("peerseal-console-sign-in", path="/console/sign-in/oidc")
    assert attempt is not None
    assert come_back(stranger, address).status_code == 200
    thief = Browser(registry)
    thief.client.set_cookie("peerseal-console-sign-in", attempt.value, path="/console/sign-in/oidc")
    assert come_back(thief, address).status_code == 401
    assert not is_in(thief)


def test_replay_a_code_of_another_sign_in_is_refused(registry: Driver, issuer: SignInIssuer, stranger: Browser) -> None:
    """An attacker injects a stolen code into a sign-in of his own: the verifier is not the one of that code."""
    code = leave(Browser(registry)).partition("code=")[2].partition("&")[0]
    issuer.answer_changes = {"code": code}
    refusal(registry, stranger)


def test_mix_up_an_answer_of_another_issuer_is_refused_before_the_code_is_sent(
    registry: Driver, issuer: SignInIssuer, stranger: Browser
) -> None:
    issuer.answer_changes = {"iss": "https://evil.example"}
    refusal(registry, stranger)
    issuer.answer_changes = {"iss": None}  # its metadata says that it names itself
    refusal(registry, stranger)
    assert issuer.forms == []


def test_an_issuer_that_never_names_itself_may_leave_iss_out(issuer: SignInIssuer, stranger: Browser) -> None:
    issuer.answers[DISCOVERY] = issuer.discovery | {"authorization_response_iss_parameter_supported": False}
    issuer.answer_changes = {"iss": None}
    sign_in(stranger)
    assert is_in(stranger)


def test_session_fixation_a_cookie_of_before_the_sign_in_is_worth_nothing(registry: Driver, stranger: Browser) -> None:
    stranger.open("/console/sign-in")
    fixed = stranger.client.get_cookie("peerseal-console", path="/console")
    sign_in(stranger)
    after = stranger.client.get_cookie("peerseal-console", path="/console")
    assert fixed is not None
    assert after is not None
    assert fixed.value != after.value
    attacker = Browser(registry)
    attacker.client.set_cookie("peerseal-console", fixed.value, path="/console")
    assert not is_in(attacker)


def test_open_redirect_nothing_in_an_address_says_where_the_sign_in_leads(
    registry: Driver, issuer: SignInIssuer, stranger: Browser
) -> None:
    stranger.open("/console/sign-in?next=https://evil.example/")
    address = leave(stranger) + "&next=https://evil.example/&wanted=//evil.example"
    come_back(stranger, address)
    assert led_to(stranger.page) == "/console/"


def test_open_redirect_a_forged_host_changes_no_address(issuer: SignInIssuer, stranger: Browser) -> None:
    stranger.open("/console/sign-in")
    stranger.client.environ_base["HTTP_X_FORWARDED_HOST"] = "evil.example"
    leave(stranger)
    assert issuer.asked["redirect_uri"] == f"http://localhost{CALLBACK}"


@pytest.mark.parametrize("twice", ["code", "state", "iss"])
def test_a_parameter_that_is_there_twice_is_refused(stranger: Browser, twice: str) -> None:
    assert come_back(stranger, f"{leave(stranger)}&{twice}=x").status_code == 401
    assert not is_in(stranger)


@pytest.mark.parametrize("error", ["access_denied", "<script>alert(1)</script>", "x" * 5000])
def test_an_error_of_the_issuer_is_a_page_without_its_text(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, error: str
) -> None:
    issuer.answer_changes = {"code": None, "error": error, "error_description": error}
    assert error not in refusal(registry, stranger)


@pytest.mark.parametrize("value", ["", "x", "." * 300, "eyJzZWNyZXQiOiJ4In0.Zm9v"])
def test_a_forged_cookie_of_an_attempt_is_worth_nothing(stranger: Browser, value: str) -> None:
    address = leave(stranger)
    stranger.client.set_cookie("peerseal-console-sign-in", value, path="/console/sign-in/oidc")
    assert come_back(stranger, address).status_code == 401


def test_an_attempt_ends_after_ten_minutes(stranger: Browser, clock: Clock) -> None:
    address = leave(stranger)
    clock.forward(600)
    assert come_back(stranger, address).status_code == 401


def test_cookies_the_attempt_is_lax_and_the_session_strict(registry: Driver, stranger: Browser) -> None:
    stranger.open("/console/sign-in")
    begun = stranger.send("/console/sign-in/oidc")
    attempt = next(each for each in begun.headers.getlist("Set-Cookie") if each.startswith("peerseal-console-sign-in="))
    flags = {part.strip() for part in attempt.split(";")[1:]}
    assert {"HttpOnly", "SameSite=Lax", "Path=/console/sign-in/oidc", "Max-Age=600"} <= flags
    back = requests.get(led_to(stranger.page), allow_redirects=False, timeout=20).headers["Location"]
    cookies = come_back(stranger, back).headers.getlist("Set-Cookie")
    session = next(each for each in cookies if each.startswith("peerseal-console="))
    assert {"HttpOnly", "SameSite=Strict"} <= {part.strip() for part in session.split(";")[1:]}
    assert any(each.startswith("peerseal-console-sign-in=;") and "Max-Age=0" in each for each in cookies)


@pytest.mark.parametrize(
    ("prefix", "session", "attempt"),
    [
        ("", ("__Host-peerseal-console", "/"), ("__Host-peerseal-console-sign-in", "/")),
        (
            "/trust",
            ("__Secure-peerseal-console", "/trust/console"),
            ("__Secure-peerseal-console-sign-in", "/trust/console/sign-in/oidc"),
        ),
    ],
)
def test_cookies_over_https_are_of_this_host_alone(
    registry: Driver, issuer: SignInIssuer, prefix: str, session: tuple[str, str], attempt: tuple[str, str]
) -> None:
    """Also where the proxy that ends https adds no header."""
    settings = operator_issuer(issuer, console_url=f"https://localhost{prefix}/console")
    node = registry.node(console=True, operator_issuer=settings, external_prefix=prefix)
    browser = Browser(node)
    cookies = browser.open("/console/sign-in").headers.getlist("Set-Cookie")
    value = cookies[0].partition(";")[0].partition("=")[2]
    browser.client.set_cookie(session[0], value, path="/console")  # the proxy strips the prefix of the path
    cookies += browser.send("/console/sign-in/oidc").headers.getlist("Set-Cookie")
    for name, path in (session, attempt):
        mine = next(each for each in cookies if each.startswith(f"{name}="))
        assert {"Secure", "HttpOnly", f"Path={path}"} <= {part.strip() for part in mine.split(";")[1:]}
    node.close()


def test_secrets_are_in_no_page_address_or_log(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        address = leave(stranger)
        page = stranger.page
        come_back(stranger, address)
        code = address.partition("code=")[2].partition("&")[0]
        come_back(Browser(registry), address)
    verifier = issuer.forms[0]["code_verifier"]
    for hidden in (verifier, SECRET):
        assert hidden not in page + stranger.page + address + caplog.text
    assert code not in caplog.text
    assert SECRET not in repr(registry.settings)


def test_brute_force_an_address_comes_back_only_so_often(registry: Driver, issuer: SignInIssuer) -> None:
    limits = replace(registry.settings.limits, refusals_per_minute=3)
    node = registry.node(console=True, operator_issuer=operator_issuer(issuer), limits=limits)
    browser = Browser(node)
    statuses = [browser.client.get(f"{CALLBACK}?state=x&code={number}").status_code for number in range(5)]
    assert statuses == [401] * 3 + [429] * 2
    node.close()


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "\u202eadmin", "x" * 5000, "\"'><b>", "a\nb", "  "])
def test_stored_xss_a_hostile_name_is_text(
    registry: Driver, issuer: SignInIssuer, stranger: Browser, name: str
) -> None:
    issuer.person["preferred_username"] = name
    sign_in(stranger)
    admin = browser_of(registry, Role.ADMIN)
    for browser, path in (
        (stranger, "/console/"),
        (admin, "/console/settings/operators"),
        (admin, "/console/activity"),
    ):
        assert browser.open(path).status_code == 200
        for forbidden in ("<script>alert", "\u202e", "x" * 200, "'><b>"):
            assert forbidden not in browser.page


def test_a_role_of_the_issuer_is_checked_by_direct_calls_too(issuer: SignInIssuer, stranger: Browser) -> None:
    issuer.person["groups"] = ["staff"]
    sign_in(stranger)
    stranger.open("/console/join-tokens")
    stranger.open("/console/")
    assert stranger.send("/console/join-tokens", service="billing", days="1", uses="1").status_code == 403
    assert stranger.open("/console/settings/operators").status_code == 403


# ---- settings

GOOD = {
    "REGISTRY_CONSOLE_OIDC_ISSUER": "https://login.acme.example/realms/staff",
    "REGISTRY_CONSOLE_OIDC_CLIENT_ID": "registry-console",
    "REGISTRY_CONSOLE_OIDC_GROUPS": "platform-admins=admin, sre=operator,cn=x,staff=viewer",
    "REGISTRY_CONSOLE_URL": "https://registry.acme.internal/console/",
}


def test_settings_map_groups_to_roles(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden\n")
    environ = GOOD | {"REGISTRY_CONSOLE_OIDC_GROUPS": "platform-admins=admin, cn=sre=operator"}
    found = Settings.from_environ(environ | {"REGISTRY_CONSOLE_OIDC_CLIENT_SECRET_FILE": str(secret)}).operator_issuer
    assert found is not None
    assert dict(found.groups) == {"platform-admins": "admin", "cn=sre": "operator"}
    assert found.redirect_uri == f"https://registry.acme.internal{CALLBACK}"
    assert (found.client_secret, found.groups_claim) == ("hidden", "groups")
    assert "hidden" not in repr(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGISTRY_CONSOLE_OIDC_ISSUER", "http://login.acme.example"),
        ("REGISTRY_CONSOLE_OIDC_ISSUER", ""),
        ("REGISTRY_CONSOLE_OIDC_CLIENT_ID", ""),
        ("REGISTRY_CONSOLE_OIDC_CLIENT_ID", "ü"),
        ("REGISTRY_CONSOLE_OIDC_CLIENT_SECRET", "ü"),
        ("REGISTRY_CONSOLE_OIDC_GROUPS", ""),
        ("REGISTRY_CONSOLE_OIDC_GROUPS", ","),
        ("REGISTRY_CONSOLE_OIDC_GROUPS", "staff"),
        ("REGISTRY_CONSOLE_OIDC_GROUPS", "staff=root"),
        ("REGISTRY_CONSOLE_OIDC_GROUPS", "=admin"),
        ("REGISTRY_CONSOLE_OIDC_GROUPS", "staff=admin,staff=viewer"),
        ("REGISTRY_CONSOLE_URL", ""),
        ("REGISTRY_CONSOLE_URL", "http://registry.acme.internal/console"),
        ("REGISTRY_CONSOLE_URL", "https://registry.acme.internal/"),
        ("REGISTRY_CONSOLE_URL", "https://registry.acme.internal/console?x=/console"),
    ],
)
def test_settings_that_are_wrong_or_incomplete_are_refused(name: str, value: str) -> None:
    environ = GOOD | {"REGISTRY_CONSOLE_OIDC_GROUPS": "staff=viewer"} | {name: value}
    with pytest.raises(ConfigurationError, match="REGISTRY_CONSOLE_"):
        Settings.from_environ(environ)
