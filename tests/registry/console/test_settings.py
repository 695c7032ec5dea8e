"""The domain's settings, the registry's own keys, and the operators."""

import json
import logging
import re
from typing import Any

import pytest

from peerseal.protocol.documents.frame import sign_document
from registry.services.access.operators import Role
from registry.services.setup.ceremony import Ceremony, Rolled
from registry.services.setup.keyfiles import read_key_pair
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import browser_of, token_of
from tests.registry.driver import BY, DOMAIN, Clock, Driver

SETTINGS, KEYS, OPERATORS = "/console/settings", "/console/settings/keys", "/console/settings/operators"
HOSTILE = "<script>alert(1)</script>\"'&\u202e"


def settings(registry: Driver) -> Any:
    return registry.registry.policies.domain()


def set_domain(registry: Driver, **members: Any) -> int:
    body = {"minters": [], "issuers": [], **members}
    return registry.registry.policies.set_domain(body, {settings(registry).seq}, BY).seq


# ---- the domain


def test_a_viewer_reads_the_domain_settings_in_words_and_in_json(registry: Driver, viewer: Browser) -> None:
    viewer.open(SETTINGS)
    assert "no settings were laid down" in viewer.text()
    seq = set_domain(registry, minters=["edge"])
    viewer.open(SETTINGS)
    assert f"{DOMAIN}/edge may mint transaction tokens" in viewer.text()
    assert f'href="/console/ledger/{seq}"' in viewer.page
    assert f"domain set settings.json --if-match {seq}" in viewer.text()
    assert "<textarea" not in viewer.page


def test_an_admin_replaces_the_domain_settings(registry: Driver, admin: Browser) -> None:
    seq = set_domain(registry, minters=["edge"])
    admin.open(SETTINGS)
    text = json.dumps({"minters": ["edge", "shop"], "issuers": []})
    assert admin.send(SETTINGS, settings=text, entry=str(seq)).request.path == SETTINGS
    assert settings(registry).value.minters == {f"{DOMAIN}/edge", f"{DOMAIN}/shop"}
    acts = registry.client.get("/v1/audit", headers=registry.operator).get_json()["audit"]
    assert (acts[-1]["act"], set(acts[-1]["by"])) == ("domain_set", {"operator"})


def test_a_second_click_replaces_the_settings_once_and_says_so(registry: Driver, admin: Browser) -> None:
    admin.open(SETTINGS)
    text, entry = json.dumps({"minters": ["edge"], "issuers": []}), str(settings(registry).seq)
    admin.send(SETTINGS, settings=text, entry=entry)
    once = settings(registry).seq
    assert f"The settings are those of entry {once}." in admin.text()
    assert admin.send(SETTINGS, settings=text, entry=entry).status_code == 200
    assert settings(registry).seq == once
    assert f"The settings are those of entry {once}." in admin.text()


def test_a_second_click_finds_the_operator_token_revoked(registry: Driver, admin: Browser) -> None:
    record, _ = registry.registry.operators.create(Role.VIEWER, 3_600)
    path = f"{OPERATORS}/{record.id}/revoke"
    admin.open(path)
    for told in ("is revoked, and its sessions have ended", "was revoked before"):
        assert admin.send(path, confirm=record.id).request.path == OPERATORS
        assert f"Operator token {record.id} {told}" in admin.text()


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_only_an_admin_replaces_them(registry: Driver, role: Role) -> None:
    browser = browser_of(registry, role)
    browser.open(SETTINGS)
    assert browser.send(SETTINGS, settings='{"minters": ["edge"], "issuers": []}', entry="0").status_code == 403
    assert settings(registry).seq == 0


@pytest.mark.parametrize("typed", ["{", "[]", '{"minters": 1}', '{"minters":["edge"]}', "</textarea>" + HOSTILE])
def test_settings_that_cannot_be_read_keep_what_was_typed(registry: Driver, admin: Browser, typed: str) -> None:
    admin.open(SETTINGS)
    assert admin.send(SETTINGS, settings=typed, entry="0").status_code == 400
    assert "Not saved:" in admin.text()
    assert typed in admin.text()
    assert "<script>alert" not in admin.page
    assert settings(registry).seq == 0


def test_of_two_admins_at_once_one_sees_both_settings_and_saves_again(registry: Driver, admin: Browser) -> None:
    admin.open(SETTINGS)
    seq = set_domain(registry, minters=["edge"])
    typed = '{"minters": ["shop"], "issuers": []}'
    assert admin.send(SETTINGS, settings=typed, entry="0").status_code == 412
    assert typed in admin.text()
    assert f"{DOMAIN}/edge" in admin.text()
    assert settings(registry).seq == seq
    assert f'name="entry" value="{seq}"' in admin.page
    admin.send(SETTINGS, settings=typed, entry=str(seq))
    assert settings(registry).value.minters == {f"{DOMAIN}/shop"}


def test_the_answer_to_an_act_marks_its_page_too(admin: Browser) -> None:
    admin.open("/console/settings/operators")
    admin.send("/console/settings/operators", role="viewer", days="1")
    assert 'href="/console/settings/operators" aria-current="page"' in admin.page
    admin.open("/console/settings")
    admin.send("/console/settings", settings="{", entry="0")
    assert admin.page.count('href="/console/settings" aria-current="page"') == 2  # in the navigation of all pages, too


def test_hostile_texts_in_the_domain_settings_stay_texts(registry: Driver, viewer: Browser, admin: Browser) -> None:
    set_domain(registry, issuers=[{"issuer": "https://login.example.com", "audience": HOSTILE}])
    for browser in (viewer, admin):
        browser.open(SETTINGS)
        assert HOSTILE in browser.text()
        assert "<script>alert" not in browser.page


# ---- keys


def test_the_keys_of_the_registry_are_shown_with_the_end_of_the_document(
    registry: Driver, viewer: Browser, clock: Clock
) -> None:
    viewer.open(KEYS)
    known = registry.registry.authority.current()
    assert registry.pin in viewer.page
    assert known.signing_key.public.thumbprint in viewer.page
    assert viewer.page.count("this node signs with it") == 2
    assert "in 365 d" in viewer.text()
    assert "has to sign the next document" not in viewer.text()
    clock.forward(300 * 86_400)
    later = browser_of(registry, Role.VIEWER)
    later.open(KEYS)
    assert "has to sign the next document" in later.text()


def test_previous_keys_are_shown_until_the_root_drops_them(registry: Driver, viewer: Browser) -> None:
    ceremony = Ceremony(registry.settings, registry.store, registry.clock)
    root = read_key_pair(registry.settings.root_key_file, "root key", registry.settings.key_passphrase)
    ceremony.publish(sign_document(ceremony.requested([Rolled.SIGNING, Rolled.LEDGER], drop_past=False), root))
    registry.registry.authority.newest()
    viewer.open(KEYS)
    assert viewer.page.count(f"{DOMAIN}+") == 2
    assert "version 2" in viewer.text()
    assert viewer.page.count("this node signs with it") == 2


# ---- operators


def test_an_admin_makes_an_operator_token_that_is_shown_once(
    registry: Driver, admin: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    admin.open(OPERATORS)
    with caplog.at_level(logging.DEBUG):
        answer = admin.send(OPERATORS, role="operator", days="7")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (201, "no-store")
    [token] = re.findall(r"pso1\.[0-9a-f]{16}\.[A-Za-z0-9_-]{43}", admin.page)
    secret = token.rpartition(".")[2]
    assert secret not in caplog.text
    assert secret not in str(answer.headers)
    assert secret not in answer.request.url
    assert "operator" in browser_with(registry, token).text()
    admin.open(OPERATORS)
    assert secret not in admin.page
    assert token.split(".")[1] in admin.page


def browser_with(registry: Driver, token: str) -> Browser:
    browser = Browser(registry)
    assert browser.sign_in(token).request.path == "/console/"
    return browser


@pytest.mark.parametrize(
    ("role", "days"), [("root", "7"), ("", "7"), ("viewer", "0"), ("viewer", "x"), ("viewer", "9999")]
)
def test_a_token_that_may_not_be_is_not_made(registry: Driver, admin: Browser, role: str, days: str) -> None:
    admin.open(OPERATORS)
    before = registry.registry.operators.page()
    assert admin.send(OPERATORS, role=role, days=days).status_code == 400
    assert registry.registry.operators.page() == before


def test_an_admin_revokes_a_token_once_its_id_is_typed(registry: Driver, admin: Browser) -> None:
    token = token_of(registry, Role.VIEWER)
    token_id, watching = token.split(".")[1], browser_with(registry, token)
    admin.open(OPERATORS)
    assert f'href="{OPERATORS}/{token_id}/revoke"' in admin.page
    path = f"{OPERATORS}/{token_id}/revoke"
    admin.open(path)
    assert admin.send(path, confirm=HOSTILE).status_code == 400
    assert "Not revoked" in admin.text()
    assert "<script>alert" not in admin.page
    assert watching.open("/console/").request.path == "/console/"
    assert admin.send(path, confirm=f" {token_id} ").request.path == OPERATORS
    assert watching.open("/console/").request.path == "/console/sign-in"
    assert "revoked" in admin.text()
    admin.open(path)
    assert "It was revoked before" in admin.text()
    admin.open(OPERATORS)
    assert admin.send(path, confirm=token_id).request.path == OPERATORS


def test_an_admin_is_told_which_token_is_the_own_one(admin: Browser) -> None:
    admin.open(OPERATORS)
    [own] = re.findall(r"<code>([0-9a-f]{16})</code> \(you\)", admin.page)
    admin.open(f"{OPERATORS}/{own}/revoke")
    assert "with which you are signed in" in admin.text()


def test_an_unknown_token_is_not_found(admin: Browser) -> None:
    for token_id in ("0" * 16, "x" * 40, HOSTILE):
        assert admin.open(f"{OPERATORS}/{token_id}/revoke").status_code == 404
        assert "<script>alert" not in admin.page


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_only_an_admin_sees_makes_and_revokes_operator_tokens(registry: Driver, role: Role) -> None:
    browser, token_id = browser_of(registry, role), token_of(registry, Role.VIEWER).split(".")[1]
    before = registry.registry.operators.page()
    browser.open(SETTINGS)
    assert OPERATORS not in browser.page
    page = browser.page
    path = f"{OPERATORS}/{token_id}/revoke"
    assert [browser.open(each).status_code for each in (OPERATORS, path)] == [403, 403]
    for where, fields in ((OPERATORS, {"role": "viewer", "days": "7"}), (path, {"confirm": token_id})):
        browser.page = page
        assert browser.send(where, **fields).status_code == 403
    assert registry.registry.operators.page() == before


def test_many_operator_tokens_come_in_pages(registry: Driver, admin: Browser) -> None:
    made = {token_of(registry, Role.VIEWER).split(".")[1] for _ in range(60)}
    admin.open(OPERATORS)
    [after] = re.findall(r"operators\?after=([0-9a-f]{16})", admin.page)
    first = set(re.findall(r'row"><code>([0-9a-f]{16})</code>', admin.page))
    admin.open(OPERATORS, after=after)
    second = set(re.findall(r'row"><code>([0-9a-f]{16})</code>', admin.page))
    assert made <= first | second
    assert len(first) == 50


def test_a_form_that_is_sent_twice_makes_one_operator_token(registry: Driver, admin: Browser) -> None:
    admin.open(OPERATORS)
    form = admin.page
    assert admin.send(OPERATORS, role="viewer", days="1").status_code == 201
    admin.page = form
    assert "was sent before" in admin.send(OPERATORS, role="viewer", days="1").text
    assert admin.send(OPERATORS, role="viewer", days="1", form="").status_code == 400
    roles = [row["role"] for row in registry.registry.operators.page()["operator_tokens"]]
    assert roles.count("viewer") == 1
