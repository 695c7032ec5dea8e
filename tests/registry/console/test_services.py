"""The pages about services and keys."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from html import unescape
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from peerseal.protocol.keys import KeyPair
from registry.console.pages.services import CALLEES
from registry.console.timeline import BARS, LEFT, time_line
from registry.domain.keys import KeyRecord
from registry.services.access.operators import Role
from registry.services.keys import service_views
from registry.services.keys.service_views import NEAREST, ROWS
from registry.storage.queries.services import KEYS_COUNTED
from registry.storage.tables import keys, policies, services
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import browser_of
from tests.registry.driver import BY, DOMAIN, Clock, Driver

DAY = 86_400


@pytest.fixture(scope="module")
def ready() -> Sequence[KeyPair]:
    return [KeyPair.generate("ES256") for _ in range(8)]


def path_of(service: str, key: KeyPair | None = None) -> str:
    return f"/console/services/{service}" + ("" if key is None else f"/keys/{key.public.thumbprint}")


def set_policy(registry: Driver, service: str, allow: dict[str, list[str]], *, restricted: bool = False) -> None:
    registry.registry.policies.set_policy(service, {"allow": allow, "restricted": restricted}, [0], BY)


def invented(registry: Driver, service: str, number: int, *, vouched: bool = True, state: str = "active") -> list[str]:
    """Rows of keys as so many days would leave them, each vouched for by the one before: the thumbprints."""
    now, spki = int(registry.clock()), KeyPair.generate("ES256").public.spki
    thumbprints = [f"{service[:3]}{each:039d}A" for each in range(number)]
    rows = []
    for each, thumbprint in enumerate(thumbprints):
        voucher = thumbprints[each - 1] if vouched and each else None
        by = '{"join_token":"x"}' if voucher is None else f'{{"kid":"{DOMAIN}/{service}/{voucher}"}}'
        times = {"active_from": now - 7 * DAY + each, "active_until": now + DAY, "expires_at": now + DAY}
        own = {"thumbprint": thumbprint, "service": service, "admitted_seq": 1000 + each, "admitted_by": by}
        ended = {"revoked_at": now - 1 if state == "revoked" else None, "revoked_seq": None}
        rows.append({**own, **times, **ended, "vouched_by": voucher, "spki": spki})
    with registry.store.write() as connection:
        connection.execute(insert(services).values(name=service, seq=1))
        connection.execute(insert(keys), rows)
    return thumbprints


# ---- the list


def test_the_list_names_each_service_with_its_active_keys_and_its_last_entry(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    registry.joined(ready[1], "shop")
    registry.joined(ready[2], "billing")
    registry.operator_ends(ready[1], "shop")
    viewer.open("/console/services")
    assert re.search(r"billing 1 \d+ key admitted 20\S+ \S+Z shop 1 \d+ key revoked 20", viewer.text())
    assert "registry 0" not in viewer.text()


def test_an_empty_list_says_how_the_first_service_comes(viewer: Browser) -> None:
    viewer.open("/console/services")
    assert "There are no services yet." in viewer.text()
    assert "peerseal-registry join-token create SERVICE" in viewer.text()


def test_a_long_list_has_pages_that_show_each_service_once(registry: Driver, viewer: Browser) -> None:
    names = [f"s{number:03d}" for number in range(2 * ROWS + 5)]
    with registry.store.write() as connection:
        connection.execute(insert(services), [{"name": name, "seq": 1} for name in names])
    shown, path = list[str](), "/console/services"
    while path:
        viewer.open(path)
        shown += re.findall(r'<a href="/console/services/(s\d+)"', viewer.page)
        found = re.search(r'rel="next" href="([^"]+)"', viewer.page)
        path = unescape(found[1]) if found else ""
    assert shown == names
    assert ">First</a>" in viewer.page


def test_the_number_of_active_keys_is_bounded(registry: Driver, viewer: Browser) -> None:
    invented(registry, "fleet", KEYS_COUNTED + 1, vouched=False)
    viewer.open("/console/services")
    assert f"fleet {KEYS_COUNTED} or more" in viewer.text()
    [fleet], _ = registry.registry.service_views.services()
    assert (fleet.active_keys, fleet.complete) == (KEYS_COUNTED, False)


# ---- the search


def test_a_name_or_its_beginning_leads_to_the_service(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    for text in ("shop", f"{DOMAIN}/shop", "SHOP", " sho ", f"{DOMAIN}/sh"):
        assert viewer.open("/console/services", q=text).request.path == "/console/services/shop", text


def test_a_beginning_of_several_names_lists_them(registry: Driver, viewer: Browser) -> None:
    names = ["sho", "shop-eu", "shop.us", "shop1", *(f"shop2{each:02d}" for each in range(ROWS)), "shoq"]
    with registry.store.write() as connection:
        connection.execute(insert(services), [{"name": name, "seq": 1} for name in names])
    viewer.open("/console/services", q="shop")
    assert len(re.findall(r'<th scope="row">', viewer.page)) == ROWS
    found = re.search(r'rel="next" href="([^"]+)"', viewer.page)
    assert found
    viewer.open(unescape(found[1]))
    assert re.findall(r'<a href="/console/services/(sho[^"]*)"', viewer.page) == ["shop247", "shop248", "shop249"]
    assert 'rel="next"' not in viewer.page


def test_a_kid_or_a_thumbprint_leads_to_the_service_with_that_key_highlighted(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    registry.joined(ready[1], "shop")
    thumbprint = ready[0].public.thumbprint
    for text in (thumbprint, f"{DOMAIN}/shop/{thumbprint}"):
        answer = viewer.open("/console/services", q=text)
        assert (
            answer.history[0].headers["Location"].endswith(f"/console/services/shop?key={thumbprint}#key-{thumbprint}")
        )
        assert re.findall(r'<tr id="key-(\S+)" class="sought" aria-current="true">', viewer.page) == [thumbprint]


def test_a_thumbprint_in_groups_is_the_same_one(registry: Driver, viewer: Browser, ready: Sequence[KeyPair]) -> None:
    registry.joined(ready[0], "shop")
    thumbprint = ready[0].public.thumbprint
    viewer.open("/console/services", q=" ".join(thumbprint[at : at + 4] for at in range(0, 43, 4)))
    assert f'<tr id="key-{thumbprint}" class="sought"' in viewer.page


def test_a_key_that_is_not_among_the_newest_is_shown_with_older_ones(registry: Driver, viewer: Browser) -> None:
    thumbprints = invented(registry, "fleet", ROWS + 20)
    viewer.open("/console/services", q=thumbprints[5])
    assert re.findall(r'<tr id="key-(\S+)" class="sought"', viewer.page) == [thumbprints[5]]
    assert thumbprints[6] not in viewer.page


NOTHING = (
    "nothing",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "\u202eshop",
    "\0nothing",
    "%",
    "//evil.example",
    "x" * 10_000,
    "A" * 43,
    f"other.example/shop/{'A' * 43}",
    "other.example/shop",
)


def test_a_search_for_something_else_finds_nothing_and_keeps_what_was_typed(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    for text in NOTHING:
        answer = viewer.open("/console/services", q=text)
        assert (answer.status_code, answer.request.path, answer.history) == (200, "/console/services", ())
        typed = re.search(r'name="q" type="search" value="([^"]*)"', viewer.page)
        assert typed
        assert unescape(typed[1]) == text.replace("\0", "")[:400]
        assert "There is no service" in viewer.text()
        assert "<script>" not in viewer.page
        assert "<img" not in viewer.page


def test_a_kid_with_the_name_of_another_service_finds_nothing(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    viewer.open("/console/services", q=f"{DOMAIN}/billing/{ready[0].public.thumbprint}")
    assert "There is no service" in viewer.text()


# ---- one service


def test_a_service_shows_its_keys_with_their_states_newest_first(
    registry: Driver, viewer: Browser, clock: Clock, ready: Sequence[KeyPair]
) -> None:
    first, second, third = ready[:3]
    registry.joined(first, "shop")
    clock.forward(60)
    assert registry.rotate(first, second, "shop").status_code == 201
    registry.joined(third, "shop")
    clock.forward(60)
    registry.operator_ends(third, "shop", "retired")
    registry.operator_ends(second, "shop")
    viewer.open(path_of("shop"))
    rows = re.findall(r'<tr id="key-(\S+)">.*?<span class="state (\w+)">', viewer.page, re.DOTALL)
    states = [(third, "retired"), (second, "revoked"), (first, "active")]
    assert rows == [(key.public.thumbprint, state) for key, state in states]
    words = viewer.text()
    assert "join token" in words
    for said in ("key admitted", "key retired", "key revoked", "peerseal-registry keys shop"):
        assert said in words


def test_the_voucher_of_a_key_is_linked(registry: Driver, viewer: Browser, ready: Sequence[KeyPair]) -> None:
    registry.joined(ready[0], "shop")
    registry.rotate(ready[0], ready[1], "shop")
    viewer.open(path_of("shop"))
    row = viewer.page.partition(f'<tr id="key-{ready[1].public.thumbprint}"')[2].partition("</tr>")[0]
    assert f'key <a href="{path_of("shop", ready[0])}">' in row


def test_the_tree_nests_a_key_that_vouched_for_several(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    root, left, right, last = ready[:4]
    registry.joined(root, "shop")
    for old, new in ((root, left), (root, right), (right, last)):
        assert registry.rotate(old, new, "shop").status_code == 201
    viewer.open(path_of("shop"))
    tree = viewer.page.partition('id="vouching"')[2].partition("</section>")[0]
    order = [tree.index(path_of("shop", key)) for key in (root, left, right, last)]
    assert order == sorted(order)
    assert tree.count("<ol") == 3
    assert "This key vouched for 2 keys" in viewer.text()


def test_a_service_with_many_keys_shows_the_newest_and_leads_to_all(registry: Driver, viewer: Browser) -> None:
    thumbprints = invented(registry, "fleet", 2 * ROWS + 10)
    viewer.open(path_of("fleet"))
    shown = re.findall(r'<tr id="key-(\S+)"', viewer.page)
    assert shown == thumbprints[: -ROWS - 1 : -1]
    assert viewer.page.count('class="bar"') == ROWS
    shown, path = [], "/console/services/fleet/keys"
    while path:
        assert viewer.open(path).status_code == 200
        shown += re.findall(r'<tr id="key-(\S+)"', viewer.page)
        found = re.search(r'rel="next" href="([^"]+)"', viewer.page)
        path = unescape(found[1]) if found else ""
    assert shown == thumbprints[::-1]


def test_the_callers_are_listed_with_their_scopes_and_links(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "billing")
    set_policy(registry, "billing", {"shop": ["invoices.read", "invoices.write"], "*": []}, restricted=True)
    viewer.open(path_of("billing"))
    assert "shop invoices.read invoices.write" in viewer.text()
    assert "* (any service of the domain) none" in viewer.text()
    assert "It is restricted" in viewer.text()
    assert 'href="/console/services/shop"' in viewer.page
    assert "policy set" in viewer.text()


def section(browser: Browser, name: str) -> str:
    """The words of one part of the page."""
    part = browser.page.partition(f'aria-labelledby="{name}"')[2].partition("</section>")[0]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", part)).split())


def test_the_callees_are_listed_with_their_scopes_and_links(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    set_policy(registry, "billing", {"shop": ["invoices.read"], "*": ["ping"]}, restricted=True)
    set_policy(registry, "clock", {"*": []})
    set_policy(registry, "vault", {"billing": ["secrets"]})
    viewer.open(path_of("shop"))
    said = section(viewer, "callees")
    assert "billing invoices.read" in said
    assert "clock as anyone no scope" in said
    assert "vault" not in said
    assert 'href="/console/services/clock"' in viewer.page
    assert 'href="/console/graph?of=shop"' in viewer.page


def test_a_service_that_no_policy_names_may_call_what_codes_allow(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    viewer.open(path_of("shop"))
    assert "No policy lets this service call another" in section(viewer, "callees")


def test_many_callees_have_pages_that_show_each_once(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    names = [f"c{number:03d}" for number in range(2 * CALLEES + 5)]
    for at, name in enumerate(names):
        set_policy(registry, name, {"*" if at % 2 else "shop": ["x"]})
    shown, path = list[str](), path_of("shop")
    while path:
        assert viewer.open(path).status_code == 200
        part = viewer.page.partition('aria-labelledby="callees"')[2].partition("</section>")[0]
        rows = re.findall(r'<th scope="row"><a href="/console/services/(c\d+)"', part)
        assert len(rows) <= CALLEES
        shown += rows
        found = re.search(r'href="([^"]+)" rel="next"', part)
        path = unescape(found[1]) if found else ""
    assert shown == names


def test_each_host_is_one_instance_however_often_it_rotated(
    registry: Driver, viewer: Browser, clock: Clock, ready: Sequence[KeyPair]
) -> None:
    first, second, third, other, ended = ready[:5]
    registry.joined(first, "shop")
    clock.forward(60)
    registry.rotate(first, second, "shop")
    clock.forward(60)
    registry.rotate(second, third, "shop")
    registry.joined(other, "shop")
    registry.joined(ended, "shop")
    registry.operator_ends(ended, "shop")
    viewer.open(path_of("shop"))
    said = section(viewer, "instances")
    part = viewer.page.partition('aria-labelledby="instances"')[2].partition("</section>")[0]
    shown = set(re.findall(r'href="/console/services/shop/keys/([^"]+)"', part))
    assert shown == {third.public.thumbprint, other.public.thumbprint}
    assert "2, as far as keys show" in said
    assert "The registry sees keys, and no hosts" in said


def test_a_revoked_successor_does_not_hide_its_host(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    first, second = ready[:2]
    registry.joined(first, "shop")
    registry.rotate(first, second, "shop")
    registry.operator_ends(second, "shop")
    viewer.open(path_of("shop"))
    part = viewer.page.partition('aria-labelledby="instances"')[2].partition("</section>")[0]
    assert re.findall(r'href="/console/services/shop/keys/([^"]+)"', part) == [first.public.thumbprint]


def test_the_instances_that_are_looked_at_are_bounded(registry: Driver, viewer: Browser) -> None:
    invented(registry, "fleet", KEYS_COUNTED + 1, vouched=False)
    viewer.open(path_of("fleet"))
    assert f"{KEYS_COUNTED} or more, as far as keys show" in section(viewer, "instances")
    part = viewer.page.partition('aria-labelledby="instances"')[2].partition("</section>")[0]
    assert len(re.findall(r'<th scope="row">', part)) == ROWS


def test_a_service_without_an_active_key_has_no_instance(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    registry.operator_ends(ready[0], "shop")
    viewer.open(path_of("shop"))
    assert "No host of this service has an active key" in section(viewer, "instances")


def test_a_service_without_a_policy_or_with_an_empty_one_is_told_apart(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    viewer.open(path_of("shop"))
    assert "There is no policy" in viewer.text()
    set_policy(registry, "shop", {})
    viewer.open(path_of("shop"))
    assert "no service may call this one" in viewer.text()


def test_a_service_that_has_a_policy_only_says_what_is_missing(registry: Driver, viewer: Browser) -> None:
    set_policy(registry, "shop", {"billing": ["x"]})
    viewer.open(path_of("shop"))
    assert "This service never had a key" in viewer.text()
    viewer.open("/console/services/shop/keys")
    assert "This service never had a key" in viewer.text()


def test_an_altered_policy_is_reported_and_the_rest_is_shown(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    set_policy(registry, "shop", {"billing": ["x"]})
    with registry.store.write() as connection:
        connection.execute(update(policies).values(body='{"allow":{"*":["x"]}}'))
    assert viewer.open(path_of("shop")).status_code == 200
    assert "The policy is not shown" in viewer.text()
    assert ready[0].public.thumbprint in viewer.page


def test_a_caller_that_is_not_there_yet_is_told_so(viewer: Browser) -> None:
    assert viewer.open(path_of("planned")).status_code == 404
    assert "planned never had a key or a policy" in viewer.text()


def test_viewers_find_the_page_that_says_who_may_call(
    viewer: Browser, registry: Driver, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    viewer.open(path_of("shop"))
    assert f'href="{path_of("shop")}/policy">Ask the policy' in viewer.page
    assert viewer.open(f"{path_of('shop')}/policy").status_code == 200
    assert f'href="{path_of("shop")}">All of shop' in viewer.page


def test_what_does_not_exist_is_a_page_that_says_so(viewer: Browser) -> None:
    for path in ("shop", "shop/keys", f"shop/keys/{'A' * 43}", "registry", "UPPER", "<script>"):
        answer = viewer.open(f"/console/services/{path}")
        assert 400 <= answer.status_code < 500, path
        assert "<h1>" in viewer.page
        assert "<script>" not in viewer.page


def test_a_key_to_highlight_that_the_service_has_not_is_refused(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    for key, status in (("x", 400), ("<script>", 400), ("A" * 43, 404)):
        assert viewer.open("/console/services/shop", key=key).status_code == status
        assert "<script>" not in viewer.page


# ---- one key


def test_a_key_shows_its_record_its_evidence_and_its_documents(
    registry: Driver, viewer: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    answer = registry.rotate(ready[0], ready[1], "shop")
    viewer.open(path_of("shop", ready[1]))
    assert f"{DOMAIN}/shop/{ready[1].public.thumbprint}" in viewer.text()
    assert answer.status_code == 201
    for name in ("proof", "vouch"):
        assert f"<h3>{name}</h3>" in viewer.page
    found = re.findall(r'<a href="([^"]+)">(key statement|PEM)</a>', viewer.page)
    assert [name for _, name in found] == ["key statement", "PEM"]
    statement, pem = (registry.client.get(path) for path, _ in found)
    assert (statement.status_code, pem.status_code) == (200, 200)
    assert pem.text.startswith("-----BEGIN PUBLIC KEY-----")


def test_a_key_that_is_not_active_has_no_pem(registry: Driver, viewer: Browser, ready: Sequence[KeyPair]) -> None:
    registry.joined(ready[0], "shop")
    registry.operator_ends(ready[0], "shop")
    viewer.open(path_of("shop", ready[0]))
    assert ">PEM</a>" not in viewer.page
    assert "Revoked" in viewer.text()


def test_a_key_shows_its_vouchers_up_to_the_root(registry: Driver, viewer: Browser, ready: Sequence[KeyPair]) -> None:
    root, second, third = ready[:3]
    registry.joined(root, "shop")
    registry.rotate(root, second, "shop")
    registry.rotate(second, third, "shop")
    viewer.open(path_of("shop", third))
    chain = viewer.page.partition('id="vouchers"')[2].partition("<h2>")[0]
    assert re.findall(r'href="([^"]+)"', chain) == [path_of("shop", second), path_of("shop", root)]
    assert "join token" in chain
    viewer.open(path_of("shop", root))
    assert "It vouched for" in viewer.text()
    assert path_of("shop", second) in viewer.page
    assert "it is the root of its tree" in viewer.text()


def test_a_long_chain_is_shortened_between_the_nearest_vouchers_and_the_root(
    registry: Driver, viewer: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    thumbprints = invented(registry, "fleet", 40)
    viewer.open(f"/console/services/fleet/keys/{thumbprints[-1]}")
    chain = viewer.page.partition('id="vouchers"')[2].partition("<h2>")[0]
    shown = re.findall(r'href="/console/services/fleet/keys/([^"]+)"', chain)
    assert shown == [*thumbprints[-2 : -NEAREST - 2 : -1], thumbprints[0]]
    assert f"{40 - 2 - NEAREST} more between them" in chain
    monkeypatch.setattr(service_views, "VOUCHERS", 20)
    viewer.open(f"/console/services/fleet/keys/{thumbprints[-1]}")
    assert "The chain is longer" in viewer.text()


# ---- roles and hostile text


def test_only_operators_see_the_acts_and_a_stranger_sees_nothing(
    registry: Driver, viewer: Browser, operator: Browser, stranger: Browser, ready: Sequence[KeyPair]
) -> None:
    registry.joined(ready[0], "shop")
    for path in ("/console/services", path_of("shop"), path_of("shop", ready[0]), f"{path_of('shop')}/keys"):
        assert stranger.open(path).request.path == "/console/sign-in"
        assert viewer.open(path).status_code == 200
        for act in ("Revoke…", "Retire…", "Edit the policy"):
            assert act not in viewer.page
    known = registry.app.view_functions
    for path in (path_of("shop"), path_of("shop", ready[0])):
        operator.open(path)
        assert ("Revoke…" in operator.page) is ("console.ending.show" in known)
    operator.open(path_of("shop"))
    assert ("Edit the policy" in operator.page) is ("console.policy.show" in known)


def test_stored_xss_scopes_and_grounds_are_text(registry: Driver, viewer: Browser, ready: Sequence[KeyPair]) -> None:
    hostile = "<script>alert(1)</script>"
    registry.joined(ready[0], "shop")
    set_policy(registry, "shop", {"billing": [hostile, "javascript:alert(1)", "'onload='x"]})
    by = '{"oidc":"https://issuer.example/\\"><img src=x onerror=alert(1)>","subject":"\u202e</td><script>x</script>"}'
    with registry.store.write() as connection:
        connection.execute(update(keys).values(admitted_by=by))
    for path in (path_of("shop"), path_of("shop", ready[0]), "/console/services"):
        assert viewer.open(path).status_code == 200
        assert "<script>" not in viewer.page
        assert "<img" not in viewer.page
        assert 'href="javascript:' not in viewer.page
        assert " style=" not in viewer.page
    viewer.open(path_of("shop"))
    assert hostile in viewer.text()


def test_postgresql_gives_the_same_pages(
    postgres_url: str, tmp_path: Path, clock: Clock, ready: Sequence[KeyPair]
) -> None:
    registry = Driver(postgres_url, tmp_path / "home", clock, console=True)
    registry.joined(ready[0], "shop")
    registry.rotate(ready[0], ready[1], "shop")
    registry.joined(ready[2], "shop-eu")
    set_policy(registry, "shop", {"shop-eu": ["cart"]})
    browser = browser_of(registry, Role.VIEWER)
    browser.open("/console/services", q="sho")
    assert re.search(r"shop 2 \d+ policy set \S+ \S+Z shop-eu 1 \d+ key admitted", browser.text())
    browser.open("/console/services", q=ready[0].public.thumbprint)
    assert "shop-eu cart" in browser.text()
    assert path_of("shop", ready[1]) in browser.page
    browser.open(path_of("shop", ready[1]))
    assert path_of("shop", ready[0]) in browser.page.partition('id="vouchers"')[2]
    registry.close()


# ---- the time line


def record(number: int, start: int, until: int, revoked: int | None = None) -> KeyRecord:
    return KeyRecord(f"{number:043d}", "shop", b"", number, {}, start, until, until, revoked)


def test_bars_lie_where_their_times_are() -> None:
    line = time_line([record(2, 500, 1000), record(1, 0, 500), record(0, 0, 900, 250)], 600)
    assert [(bar.start - LEFT, bar.end - LEFT) for bar in line.bars] == [
        (BARS // 2, BARS),
        (0, BARS // 2),
        (0, BARS // 4),
    ]
    assert [bar.state.value for bar in line.bars] == ["active", "retired", "revoked"]
    assert line.bars[2].revoked == LEFT + BARS // 4
    assert line.now == LEFT + BARS * 6 // 10


@pytest.mark.parametrize(
    ("length", "dates"),
    [
        (300, ["01-01 00:00", "01-01 00:01", "01-01 00:02", "01-01 00:03", "01-01 00:04"]),
        (5 * DAY, ["1970-01-01", "1970-01-02", "1970-01-03", "1970-01-04", "1970-01-05"]),
        (30 * DAY, ["1970-01-01", "1970-01-08", "1970-01-15", "1970-01-22", "1970-01-29"]),
    ],
)
def test_dates_are_whole_ones(length: int, dates: list[str]) -> None:
    assert [text for _, text in time_line([record(1, 0, length)], 0).ticks] == dates


@pytest.mark.parametrize("revoked", [None, -5, 0, 10**12])
def test_odd_times_stay_inside_of_the_picture(revoked: int | None) -> None:
    line = time_line([record(1, 0, 0, revoked), record(2, 10, 5)], 10**10)
    for bar in line.bars:
        places = [bar.start, bar.end, *([] if bar.revoked is None else [bar.revoked])]
        assert all(LEFT <= place <= LEFT + BARS for place in places), asdict(bar)
    assert line.now is None
