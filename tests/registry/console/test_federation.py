"""The federation: foreign trust domains are listed, added, changed and removed."""

import html
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from peerseal.protocol.documents.federation import FederatedDomain, Federation
from peerseal.protocol.documents.frame import sign_document
from peerseal.testing import MemoryRegistry
from registry.console.pages.federation import NAMED, SHOWN
from registry.domain.federation import Version, believed_since
from registry.services.access.operators import Role
from registry.services.documents.federation import LOOKED_BACK
from registry.storage.tables import entries
from tests.contracts.backups import Backup
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import browser_of
from tests.registry.driver import BY, DOMAIN, Clock, Driver
from tests.support.federation import PARTNER
from tests.support.keys import key

PATH, REMOVE = "/console/settings/federation", "/console/settings/federation/partner.example/remove"
ROOT = PARTNER["root"]
NEW_ROOT = "LSzq4S14tmSwuJYePdRGQSfIJEmCpidxSsckURu3nXA"
HOSTILE = "<script>alert(1)</script>\"'&\u202e"
TYPED = {"domain": "partner.example", "urls": "https://registry.partner.example", "pin": ROOT}


def federation(registry: Driver) -> Federation:
    return registry.registry.federations.current().value


def believe(registry: Driver, *domains: dict[str, Any]) -> int:
    """The registry believes these domains. Returns the entry."""
    seen = {registry.registry.federations.current().seq}
    return registry.registry.federations.replace({"domains": list(domains)}, seen, BY).seq


def domain(number: int) -> dict[str, Any]:
    name = f"d{number:02}.example"
    return {**PARTNER, "domain": name, "urls": [f"https://{name}"], "root": "A" * 40 + f"{number:02}A"}


def send(browser: Browser, **typed: str) -> int:
    """Sends the form with these fields. Returns the status."""
    browser.open(PATH)
    return browser.send(PATH, **{"entry": entry_on(browser), **TYPED, **typed}).status_code


def entry_on(browser: Browser) -> str:
    """The entry that the form of the page replaces."""
    return browser.page.partition('name="entry" value="')[2].partition('"')[0]


# ---- what is shown


def test_a_registry_that_believes_no_foreign_domain_says_what_to_do(viewer: Browser, admin: Browser) -> None:
    for browser, act in ((viewer, "have an admin add it here"), (admin, "add it below")):
        browser.open(PATH)
        assert "No foreign trust domain is believed, so no service of another domain is let in." in browser.text()
        assert "federation accept FILE --pin PIN" in browser.text()
        assert act in browser.text()


def test_a_viewer_sees_each_domain_with_its_terms_and_no_act(registry: Driver, viewer: Browser) -> None:
    entry = believe(registry, PARTNER)
    viewer.open(PATH)
    assert (
        f"Root {ROOT} Registry https://registry.partner.example Services billing Scopes orders:read "
        "Transactions and events ✗ do not cross Believed since"
    ) in viewer.text()
    assert f'href="/console/ledger/{entry}"' in viewer.page
    assert "<form" not in viewer.page.partition("<main")[2]
    assert "/remove" not in viewer.page
    assert "An admin changes it here" in viewer.text()


def test_a_domain_without_limits_is_told_so(registry: Driver, viewer: Browser) -> None:
    believe(registry, {name: PARTNER[name] for name in ("domain", "urls", "root")})
    viewer.open(PATH)
    assert "Services all its services Scopes all that policies and code allow" in viewer.text()


def test_a_domain_whose_transactions_cross_is_told_so(registry: Driver, viewer: Browser) -> None:
    believe(registry, {**PARTNER, "transactions": True})
    viewer.open(PATH)
    assert "✓ may cross, with these scopes" in viewer.text()


def test_the_pages_are_there_when_the_ledger_has_forked(registry: Driver, viewer: Browser) -> None:
    believe(registry, PARTNER)
    registry.registry.policies.set_policy("orders", {"allow": {"partner.example/billing": ["orders:read"]}}, {0}, BY)
    registry.got("/ledger/checkpoint")
    backup = Backup(registry.store)
    registry.joined(key(), "late")
    registry.got("/ledger/checkpoint")
    backup.come_back(registry.store)
    for path in (PATH, "/console/graph", "/console/graph?of=partner.example/billing"):
        assert viewer.open(path).status_code == 200
        assert "partner.example" in viewer.text()
    assert registry.client.get("/v1/federation.jwt").status_code == 503


def test_long_lists_are_folded(registry: Driver, viewer: Browser) -> None:
    believe(registry, {**PARTNER, "services": [f"s{number}" for number in range(NAMED + 1)]})
    viewer.open(PATH)
    assert f"<summary>{NAMED + 1} services</summary>" in viewer.page
    assert "<code>s12</code>" in viewer.page


def test_many_domains_are_on_several_pages(registry: Driver, viewer: Browser) -> None:
    believe(registry, *(domain(number) for number in range(2 * SHOWN + 1)))
    viewer.open(PATH)
    assert f"{2 * SHOWN + 1} of 50 domains at most" in viewer.text()
    seen = []
    while True:
        seen += [name for name in (f"d{number:02}.example" for number in range(50)) if f">{name}</h2>" in viewer.page]
        if 'rel="next"' not in viewer.page:
            break
        viewer.open(PATH, after=seen[-1])
    assert seen == [f"d{number:02}.example" for number in range(2 * SHOWN + 1)]


def test_a_page_after_the_last_domain_says_so(registry: Driver, viewer: Browser) -> None:
    believe(registry, PARTNER)
    viewer.open(PATH, after="z")
    assert "No more domains." in viewer.text()


def test_since_when_a_domain_is_believed_and_on_these_terms(registry: Driver, viewer: Browser, clock: Clock) -> None:
    first = believe(registry, PARTNER)
    clock.forward(60)
    second = believe(registry, {**PARTNER, "scopes": ["orders:write"]})
    believe(registry, {**PARTNER, "scopes": ["orders:write"]}, domain(1))
    viewer.open(PATH)
    text = viewer.text().partition("Root " + ROOT)[2]
    assert f"entry {first} On these terms since" in text
    assert f"entry {second}" in text


def test_a_domain_that_was_removed_meanwhile_is_believed_since_its_return() -> None:
    one = FederatedDomain("partner.example", ("https://r.partner.example",), ROOT)
    wide, none = Federation((one,)), Federation()
    versions = [Version(9, 90, wide), Version(7, 70, none), Version(5, 50, wide)]
    [found] = believed_since(versions, complete=False)
    assert (found.since.seq, found.set_by.seq, found.earlier) == (9, 9, False)
    [found] = believed_since(versions[:1], complete=False)
    assert (found.since.seq, found.earlier) == (9, True)
    assert believed_since([], complete=True) == []


def test_terms_that_came_back_are_those_since_their_return() -> None:
    narrow = FederatedDomain("partner.example", ("https://r.partner.example",), ROOT, frozenset({"billing"}))
    wide = FederatedDomain("partner.example", ("https://r.partner.example",), ROOT)
    versions = [Version(seq, seq, Federation((one,))) for seq, one in ((9, wide), (7, wide), (5, narrow), (3, wide))]
    [found] = believed_since(versions, complete=True)
    assert (found.since.seq, found.set_by.seq, found.earlier) == (3, 7, False)


def test_a_long_history_is_looked_at_in_part(registry: Driver, viewer: Browser) -> None:
    for number in range(LOOKED_BACK + 1):
        believe(registry, {**PARTNER, "scopes": [f"s:{number}"]})
    viewer.open(PATH)
    assert ", or earlier" not in viewer.text()
    believe(registry, PARTNER)
    viewer.open(PATH)
    assert ", or earlier" in viewer.text()


def test_an_altered_entry_of_before_leaves_open_since_when(registry: Driver, viewer: Browser) -> None:
    altered = believe(registry, PARTNER)
    whole = believe(registry, {**PARTNER, "scopes": ["r"]})
    believe(registry, {**PARTNER, "scopes": ["s"]})
    with registry.store.write() as connection:
        connection.execute(update(entries).where(entries.c.seq == altered).values(body=b"{}"))
    assert viewer.open(PATH).status_code == 200
    assert ", or earlier" in viewer.text()
    assert f"entry {whole}" in viewer.text(), "what came after it can be read"


# ---- adding and changing


def test_an_admin_adds_a_domain_with_its_limits(registry: Driver, admin: Browser) -> None:
    limits = {"services": "billing shop", "scopes": "orders:read", "transactions": "on"}
    grouped = " ".join(ROOT[start : start + 4] for start in range(0, len(ROOT), 4))
    assert send(admin, **limits, pin=grouped, urls="https://a.example\n https://b.example") == 200
    entry = registry.registry.federations.current().seq
    assert f"The federation is that of entry {entry}." in admin.text()
    [one] = federation(registry).domains
    assert one.to_json() == {
        "domain": "partner.example",
        "urls": ["https://a.example", "https://b.example"],
        "root": ROOT,
        "services": ["billing", "shop"],
        "scopes": ["orders:read"],
        "transactions": True,
    }
    acts = registry.client.get("/v1/audit", headers=registry.operator).get_json()["audit"]
    assert (acts[-1]["act"], set(acts[-1]["by"]), acts[-1]["seq"]) == ("federation_set", {"operator"}, entry)


def test_empty_limits_let_all_in(registry: Driver, admin: Browser) -> None:
    send(admin)
    [one] = federation(registry).domains
    assert (one.services, one.scopes, one.transactions) == (None, None, False)


def test_the_document_of_the_other_side_has_the_domain_and_the_urls(registry: Driver, admin: Browser) -> None:
    other, urls = MemoryRegistry("partner.example"), ("https://registry.partner.example",)
    jws, pin = sign_document(replace(other.registry_keys(), urls=urls), other.root), other.root.public.thumbprint
    assert send(admin, document=f"\n{jws}\n", pin=pin, domain="", urls="") == 200
    [one] = federation(registry).domains
    assert (one.domain, one.root, one.urls) == ("partner.example", pin, urls)


def test_a_document_of_another_root_or_domain_is_refused(registry: Driver, admin: Browser) -> None:
    other = MemoryRegistry("partner.example")
    jws = sign_document(other.registry_keys(), other.root)
    assert send(admin, document=jws) == 400
    assert f"the root key is {other.root.public.thumbprint}, the pinned one is {ROOT}" in admin.text()
    assert send(admin, document=jws, pin=other.root.public.thumbprint, domain="else.example") == 400
    assert "the document is of partner.example, and the domain is 'else.example'" in admin.text()
    assert federation(registry) == Federation()


def test_a_change_begins_with_what_holds_and_replaces_it(registry: Driver, admin: Browser) -> None:
    entry = believe(registry, PARTNER)
    admin.open(PATH, change="partner.example")
    for text in ('value="partner.example"', f'value="{ROOT}"', 'value="billing"', 'value="orders:read"'):
        assert text in admin.page
    admin.send(PATH, **TYPED, entry=str(entry), services="shop")
    [one] = federation(registry).domains
    assert (one.services, one.scopes) == (frozenset({"shop"}), None)


@pytest.mark.parametrize("limits", [{"services": []}, {"scopes": []}])
def test_an_empty_field_does_not_open_what_is_closed(
    registry: Driver, admin: Browser, limits: dict[str, list[str]]
) -> None:
    """The form has the same empty field for a domain with no service and for one with all services."""
    believe(registry, {**PARTNER, **limits})
    before = federation(registry)
    assert send(admin, urls="https://other.partner.example") == 400
    assert "an empty field lets all in" in admin.text()
    assert federation(registry) == before
    named = {"services": "billing"} if "services" in limits else {"scopes": "orders:read"}
    assert send(admin, **named) == 200


def test_a_change_of_a_domain_that_is_not_believed_begins_empty(admin: Browser) -> None:
    assert admin.open(PATH, change=HOSTILE).status_code == 200
    assert "alert(1)" not in admin.page


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ({"pin": ""}, "the thumbprint of the root is missing"),
        ({"pin": "short"}, "not a thumbprint: 'short'"),
        ({"domain": ""}, "not a trust domain: ''"),
        ({"domain": "Partner.Example"}, "not a trust domain: 'Partner.Example'"),
        ({"domain": HOSTILE}, "not a trust domain"),
        ({"domain": DOMAIN}, f"domains names {DOMAIN}, the registry's own trust domain"),
        ({"urls": ""}, "no URL of its registry is given"),
        ({"urls": "http://registry.partner.example"}, "a registry's URL"),
        ({"urls": "javascript:alert(1)"}, "a registry's URL"),
        ({"urls": "\n".join(f"https://m{number}.example" for number in range(11))}, "urls has 11 members"),
        ({"services": "billing billing"}, "services names one service twice"),
        ({"services": "registry"}, "'registry' is reserved"),
        ({"services": HOSTILE}, "not a service name"),
        ({"scopes": '"quoted"'}, "not a scope"),
        ({"transactions": "on"}, "transactions is true, expected the scopes that may cross"),
        ({"overlap": "on", "services": "billing"}, "overlap excludes limits"),
        ({"overlap": "on"}, "the trust domain partner.example is not believed"),
        ({"document": HOSTILE}, "document_malformed"),
        ({"document": "ä.b.c"}, "document_malformed"),
        ({"services": " ".join(f"service-{number}" for number in range(201))}, "services has 201 members"),
    ],
    ids=lambda value: "-".join(f"{name}={text:.12}" for name, text in value.items()) if isinstance(value, dict) else "",
)
def test_what_no_command_takes_is_refused_and_kept(
    registry: Driver, admin: Browser, typed: dict[str, str], told: str
) -> None:
    assert send(admin, **typed) == 400
    refusal = admin.page.partition('id="refusal"')[2].partition("</p>")[0]
    assert told in html.unescape(refusal)
    assert "<script>" not in admin.page
    assert all(text in admin.text() or escaped(text) in admin.page for text in typed.values() if text != "on")
    assert federation(registry) == Federation()


def escaped(text: str) -> str:
    return (
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;").replace("'", "&#39;")
    )


def test_the_own_root_is_no_foreign_one(registry: Driver, admin: Browser) -> None:
    assert send(admin, pin=registry.pin) == 400
    assert "has the root of this registry, expected its own" in admin.text()


def test_another_root_of_a_domain_needs_an_overlap(registry: Driver, admin: Browser) -> None:
    believe(registry, PARTNER)
    assert send(admin, pin=NEW_ROOT) == 400
    assert "add the new root with --overlap" in admin.text()
    assert send(admin, pin=NEW_ROOT, urls="https://new.partner.example", overlap="on") == 200
    assert {one.root for one in federation(registry).of("partner.example")} == {ROOT, NEW_ROOT}
    assert admin.text().count("It replaces its root: two are believed") == 2
    assert admin.page.count(f"{REMOVE}?root=") == 2


def test_of_two_admins_at_once_one_sees_the_new_federation_and_adds_again(registry: Driver, admin: Browser) -> None:
    admin.open(PATH)
    seq = believe(registry, domain(1))
    assert admin.send(PATH, **TYPED, entry="0").status_code == 412
    assert "Another operator changed the federation meanwhile" in admin.text()
    assert ">d01.example</h2>" in admin.page
    assert 'value="partner.example"' in admin.page
    assert entry_on(admin) == str(seq)
    assert admin.send(PATH, **TYPED, entry=str(seq)).status_code == 200
    assert {one.domain for one in federation(registry).domains} == {"d01.example", "partner.example"}


def test_a_second_click_adds_a_domain_once(registry: Driver, admin: Browser) -> None:
    admin.open(PATH)
    admin.send(PATH, **TYPED, entry="0")
    once = registry.registry.federations.current().seq
    assert f"The federation is that of entry {once}." in admin.text()
    assert admin.send(PATH, **TYPED, entry="0").status_code == 200
    assert registry.registry.federations.current().seq == once
    assert f"The federation is that of entry {once}." in admin.text()


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_only_an_admin_changes_the_federation(registry: Driver, role: Role) -> None:
    entry = believe(registry, PARTNER)
    browser = browser_of(registry, role)
    browser.open(PATH)
    assert browser.send(PATH, **TYPED, entry=str(entry), services="").status_code == 403
    assert browser.open(REMOVE).status_code == 403
    browser.open(PATH)
    assert browser.send(REMOVE, confirm="partner.example").status_code == 403
    assert registry.registry.federations.current().seq == entry


# ---- removing


def test_a_removal_shows_what_ends_and_needs_the_name_of_the_domain(registry: Driver, admin: Browser) -> None:
    entry = believe(registry, PARTNER)
    registry.registry.policies.set_policy("orders", {"allow": {"partner.example/billing": ["orders:read"]}}, {0}, BY)
    admin.open(REMOVE)
    assert "partner.example/billing orders orders:read" in admin.text()
    assert "peerseal-registry federation remove partner.example" in admin.text()
    assert admin.send(REMOVE, confirm="partner").status_code == 400
    assert "Nothing was changed: what was typed is not partner.example." in admin.text()
    assert registry.registry.federations.current().seq == entry
    admin.send(REMOVE, confirm="partner.example")
    gone = registry.registry.federations.current()
    assert (gone.value, gone.seq) == (Federation(), entry + 2)
    assert f"partner.example is not believed any more, by entry {gone.seq}" in admin.text()


def test_a_second_click_finds_the_domain_removed(registry: Driver, admin: Browser) -> None:
    believe(registry, PARTNER)
    admin.open(REMOVE)
    for told in ("is not believed any more", "Nothing was changed: "):
        assert admin.send(REMOVE, confirm="partner.example").request.path == PATH
        assert told in admin.text()


def test_one_of_two_roots_is_removed_alone(registry: Driver, admin: Browser) -> None:
    second = {**PARTNER, "root": NEW_ROOT, "urls": ["https://new.partner.example"]}
    believe(registry, PARTNER, second)
    admin.open(REMOVE, root=ROOT)
    assert f"The domain stays believed under the root {NEW_ROOT}" in admin.text()
    assert f"federation remove partner.example --root {ROOT}" in admin.text()
    admin.send(REMOVE, confirm="partner.example", root=ROOT)
    assert [one.root for one in federation(registry).domains] == [NEW_ROOT]
    assert f"partner.example is believed under the root {NEW_ROOT} alone" in admin.text()


@pytest.mark.parametrize(
    "path", [REMOVE, "/console/settings/federation/%3Cscript%3E/remove", f"{REMOVE}?root={NEW_ROOT}"]
)
def test_what_is_not_believed_is_not_found(registry: Driver, admin: Browser, path: str) -> None:
    believe(registry, domain(1))
    assert admin.open(path).status_code == 404
    assert "not_federated" in admin.page
    assert "<script>" not in admin.page
