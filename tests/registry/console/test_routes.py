"""What holds for each page and form of the console, also for those that come later."""

from collections.abc import Iterator

import pytest
from werkzeug.routing import Rule

from peerseal.protocol.keys import KeyPair
from registry.storage.queries import ledger
from tests.registry.console.browser import Browser
from tests.registry.driver import Driver

THUMBPRINT = "A" * 43
ADMINS = {
    "console.settings.save",
    "console.settings.create",
    "console.settings.revoke",
    "console.federation.add",
    "console.federation.remove",
}
"""Acts for admins alone."""
VALUES = {"service": "billing", "thumbprint": THUMBPRINT, "token_id": "0" * 16, "seq": 1}


def routes(registry: Driver, method: str) -> Iterator[tuple[Rule, str]]:
    """The rules of the console with that method, each with a path that it matches."""
    adapter = registry.app.url_map.bind("localhost")
    for rule in registry.app.url_map.iter_rules():
        if (
            rule.endpoint.startswith("console.")
            and method in (rule.methods or ())
            and rule.endpoint != "console.static"
        ):
            values = {name: VALUES.get(name, "x") for name in rule.arguments}
            yield rule, adapter.build(rule.endpoint, values, method=method)


def head(registry: Driver) -> int:
    with registry.store.read() as connection:
        return ledger.head(connection)


def test_csrf_no_form_acts_without_the_token_of_its_session(registry: Driver, admin: Browser) -> None:
    found = list(routes(registry, "POST"))
    assert len(found) >= 3
    before = head(registry)
    for rule, path in found:
        answer = admin.client.post(path, data={"csrf_token": "x", "service": "billing"})
        assert answer.status_code == 400, rule
    assert head(registry) == before


def test_a_stranger_sees_nothing_but_the_sign_in(registry: Driver, stranger: Browser) -> None:
    for rule, path in routes(registry, "GET"):
        answer = stranger.client.get(path)
        shown = answer.status_code == 200
        assert shown is (rule.endpoint == "console.sign_in.show"), rule
        if not shown:
            assert (answer.status_code, answer.headers["Location"]) == (303, "/console/sign-in"), rule


def test_a_stranger_acts_not_even_with_a_good_token_of_the_form(registry: Driver, stranger: Browser) -> None:
    for rule, path in routes(registry, "POST"):
        stranger.open("/console/sign-in")
        if rule.endpoint != "console.sign_in.begin":
            assert stranger.send(path).status_code == 401, rule


def test_role_bypass_no_role_acts_beyond_it_by_a_direct_call(
    registry: Driver, viewer: Browser, operator: Browser
) -> None:
    before = head(registry)
    for rule, path in routes(registry, "POST"):
        if not rule.endpoint.startswith("console.sign_in."):
            for person in (viewer, operator) if rule.endpoint in ADMINS else (viewer,):
                person.open("/console/")
                assert person.send(path, service="billing").status_code == 403, rule
    assert head(registry) == before


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_there_are_no_other_methods(registry: Driver, method: str) -> None:
    assert list(routes(registry, method)) == []


def test_each_page_has_the_policy_one_heading_and_no_inline_code(registry: Driver, admin: Browser) -> None:
    for rule, path in routes(registry, "GET"):
        answer = admin.open(path)
        if answer.mimetype != "text/html":
            continue
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'"), rule
        assert answer.text.count("<h1") == 1, rule
        for inline in (" style=", "<style", " onclick=", "javascript:", "<script>"):
            assert inline not in answer.text, rule


def test_each_page_shows_the_same_in_a_terminal(registry: Driver, admin: Browser) -> None:
    registry.joined(KeyPair.generate("ES256"), "billing")
    without = set()
    for rule, path in routes(registry, "GET"):
        answer = admin.open(path)
        if answer.status_code == 200 and answer.mimetype == "text/html" and "The same in a terminal" not in answer.text:
            without.add(rule.endpoint)
    assert without == set()


def test_a_forged_host_is_in_no_page(registry: Driver, admin: Browser) -> None:
    """Links are paths alone, so a forged Host leads nowhere."""
    for rule, path in routes(registry, "GET"):
        answer = admin.client.get(path, headers={"X-Forwarded-Host": "evil.example"})
        assert "evil.example" not in answer.text, rule
