"""The pages of the ledger, without scripts."""

from base64 import b64encode

import pytest
from sqlalchemy import delete, update

from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.entries import FEDERATION_SET, REGISTRY_KEYS_ISSUED, Entry
from peerseal.protocol.ledger.merkle import Frontier
from registry.domain.errors import LedgerForked
from registry.services.documents.ledger_pages import ENTRIES
from registry.storage.queries import ledger
from registry.storage.queries.ledger import Change
from registry.storage.tables import entries
from tests.registry.console.browser import Browser
from tests.registry.console.ledger_check import shown_on
from tests.registry.driver import BY, Driver, entries_of
from tests.support.federation import PARTNER
from tests.support.root_witnesses import name_witnesses

HOSTILE = "<script>alert(1)</script>\"'&\u202ejavascript:alert(1)" + "x" * 5_000


@pytest.fixture
def grown(registry: Driver) -> Driver:
    """A registry whose ledger has several pages."""
    with registry.registry.store.write() as connection:
        ledger.append(connection, 1_900_000_000, *(Change("noted", data={"n": n}) for n in range(2 * ENTRIES + 10)))
    return registry


def numbers(browser: Browser) -> list[int]:
    return [entry["seq"] for entry in shown_on(browser.page)]


def test_the_newest_entries_come_first_and_older_ones_a_page_further(grown: Driver, viewer: Browser) -> None:
    size, seen = len(entries_of(grown.store)), list[int]()
    viewer.open("/console/ledger")
    assert f"Entries {size} to {size - ENTRIES + 1} of {size}" in viewer.text()
    assert ">Newer<" not in viewer.page
    seen += numbers(viewer)
    while ">Older<" in viewer.page:
        assert len(numbers(viewer)) == ENTRIES
        viewer.open(f"/console/ledger?at={seen[-1] - 1}")
        seen += numbers(viewer)
    assert seen == list(range(size, 0, -1))
    assert ">Newer<" in viewer.page


@pytest.mark.parametrize("at", ["0", "999999999999999999"])
def test_a_number_outside_of_the_ledger_shows_the_newest(grown: Driver, viewer: Browser, at: str) -> None:
    viewer.open("/console/ledger", at=at)
    assert numbers(viewer)[0] == len(entries_of(grown.store))


@pytest.mark.parametrize("at", ["-1", "x", "1e3", "9" * 19, "<script>"])
def test_what_is_no_number_is_refused(viewer: Browser, at: str) -> None:
    assert viewer.open("/console/ledger", at=at).status_code == 400
    assert "<script>" not in viewer.page


def test_an_entry_shows_its_bytes_its_leaf_hash_and_its_position(grown: Driver, viewer: Browser) -> None:
    entry = entries_of(grown.store)[2]
    viewer.open("/console/ledger/3")
    assert shown_on(viewer.page)[0]["body"] == entry.encode().decode()
    assert entry.leaf.hex() in viewer.page
    assert "Position in the tree 2 of" in viewer.text()


@pytest.mark.parametrize("seq", ["0", "999", "999999999999999999999999"])
def test_an_entry_that_is_not_there_is_not_found(viewer: Browser, seq: str) -> None:
    assert viewer.open(f"/console/ledger/{seq}").status_code == 404
    assert "entry_not_found" in viewer.page


def test_without_scripts_a_page_says_plainly_that_this_browser_proved_nothing(viewer: Browser) -> None:
    for path in ("/console/ledger", "/console/ledger/1"):
        viewer.open(path)
        assert "Not verified by this browser: its scripts are off, or did not run" in viewer.text()
        assert "Verified by this browser" not in viewer.page


def test_the_pin_has_to_come_from_elsewhere(registry: Driver, viewer: Browser) -> None:
    registry.join_token("shop")
    for path in ("/console/ledger", f"/console/ledger/{len(entries_of(registry.store))}"):
        viewer.open(path)
        assert registry.pin not in viewer.page


def test_the_evidence_of_an_entry_is_shown(registry: Driver, viewer: Browser, rsa_key: KeyPair) -> None:
    registry.joined(rsa_key, "billing")
    [admitted] = [entry for entry in entries_of(registry.store) if entry.type == "key_admitted"]
    viewer.open(f"/console/ledger/{admitted.seq}")
    assert shown_on(viewer.page)[0]["evidence"].startswith('{"proof":"')
    viewer.open("/console/ledger/1")
    assert "The entry commits to none" in viewer.text()


def test_the_salt_of_a_restricted_policy_is_shown_to_no_one(registry: Driver, admin: Browser) -> None:
    policy = {"allow": {"shop": ["orders:write"]}, "restricted": True}
    seq = registry.registry.policies.set_policy("billing", policy, {0}, BY).seq
    admin.open(f"/console/ledger/{seq}")
    assert "The salt is shown to no one" in admin.text()
    assert "evidence" not in shown_on(admin.page)[0]
    assert "orders:write" not in admin.page


def test_hostile_texts_of_entries_stay_texts(registry: Driver, viewer: Browser) -> None:
    change = Change(HOSTILE[:40], HOSTILE[:100], HOSTILE, {HOSTILE: HOSTILE}, {"token": HOSTILE}, {HOSTILE: HOSTILE})
    with registry.registry.store.write() as connection:
        seq = ledger.append(connection, 1, change).entry.seq
    for path in ("/console/ledger", f"/console/ledger/{seq}"):
        assert viewer.open(path).status_code == 200
        assert "<script>alert" not in viewer.page
        assert "&lt;script&gt;alert(1)" in viewer.page
        assert shown_on(viewer.page)[0]["cells"]["service"] == HOSTILE[:100]
    viewer.open("/console/ledger")
    assert len(shown_on(viewer.page)[0]["cells"]["excerpt"]) == 201


def test_an_altered_row_is_told(registry: Driver, viewer: Browser) -> None:
    registry.join_token("shop")
    last = entries_of(registry.store)[-1]
    other = Entry(last.seq, last.time, last.type, "another").encode()
    for body in (other, b"\xff not JSON", other.replace(f'"seq":{last.seq}'.encode(), b'"seq":1')):
        with registry.store.engine.begin() as connection:
            connection.execute(update(entries).where(entries.c.seq == last.seq).values(body=body))
        assert viewer.open(f"/console/ledger/{last.seq}").status_code == 200
        assert "The row of this entry was altered" in viewer.text()
        assert viewer.open("/console/ledger").status_code == 200


def test_a_missing_row_is_told_in_its_place(registry: Driver, viewer: Browser) -> None:
    registry.join_token("shop")
    last = entries_of(registry.store)[-1].seq
    with registry.store.engine.begin() as connection:
        connection.execute(delete(entries).where(entries.c.seq == last - 1))
    viewer.open("/console/ledger")
    assert numbers(viewer)[:2] == [last, last - 1]
    assert "altered or missing" in viewer.text()
    assert viewer.open(f"/console/ledger/{last - 1}").status_code == 404


def test_altered_evidence_is_told_and_lost_evidence_is_not_called_altered(
    registry: Driver, viewer: Browser, rsa_key: KeyPair
) -> None:
    registry.joined(rsa_key, "billing")
    [seq] = [entry.seq for entry in entries_of(registry.store) if entry.type == "key_admitted"]
    for evidence, altered in ((b64encode(b"x"), True), (None, False)):
        with registry.store.engine.begin() as connection:
            connection.execute(update(entries).where(entries.c.seq == seq).values(evidence=evidence))
        viewer.open(f"/console/ledger/{seq}")
        assert ("The row of this entry was altered" in viewer.text()) is altered
    assert "It is not stored" in viewer.text()


def test_the_pages_are_there_when_the_ledger_has_forked(registry: Driver, viewer: Browser) -> None:
    registry.join_token("shop")
    registry.registry.authority.newest()
    edge = Frontier()
    for entry in entries_of(registry.store)[:-1]:
        edge = edge.appended(entry.leaf)
    with registry.store.write() as connection:
        ledger.cut(connection, edge)
    with pytest.raises(LedgerForked):
        registry.registry.authority.newest()
    for path in ("/console/ledger", f"/console/ledger/{edge.size}", "/console/settings/keys", "/console/settings"):
        assert viewer.open(path).status_code == 200


def test_a_stranger_sees_nothing(stranger: Browser) -> None:
    for path in ("/console/ledger", "/console/ledger/1", "/console/settings", "/console/settings/keys"):
        assert stranger.open(path).request.path == "/console/sign-in"


def test_the_scripts_are_served_to_the_page_as_modules(viewer: Browser) -> None:
    viewer.open("/console/ledger")
    assert '<script type="module" src="/console/static/ledger.js"></script>' in viewer.page
    for name in ("ledger.js", "verify.js"):
        answer = viewer.client.get(f"/console/static/{name}")
        assert answer.mimetype in ("text/javascript", "application/javascript")
        assert "innerHTML" not in answer.text


# ---- entries about the registry itself, in words


def test_the_page_of_an_entry_says_which_foreign_domain_it_added_or_took_away(
    registry: Driver, viewer: Browser
) -> None:
    believed = registry.registry.federations.replace({"domains": [PARTNER]}, {0}, BY)
    gone = registry.registry.federations.replace({"domains": []}, {believed.seq}, BY)
    viewer.open(f"/console/ledger/{believed.seq}")
    assert "partner.example under the root BH-WksFyk6HqY8cwiW_Mi5KLfDPApQ8urKiMMPE0SOQ is believed" in viewer.text()
    viewer.open(f"/console/ledger/{gone.seq}")
    assert "under the root BH-WksFyk6HqY8cwiW_Mi5KLfDPApQ8urKiMMPE0SOQ is not believed any more" in viewer.text()


def test_the_page_of_a_root_document_says_which_witnesses_are_needed_now_and_before(
    registry: Driver, viewer: Browser
) -> None:
    viewer.open("/console/ledger/1")
    assert "version 1 of the root's document, no witness needed" in viewer.text()
    seq = name_witnesses(registry, "a.example", "b.example", needed=1)
    viewer.open(f"/console/ledger/{seq}")
    assert (
        "version 2 of the root's document, 1 of 2 witnesses needed (a.example, b.example); before: no witness needed"
    ) in viewer.text()


def test_an_altered_entry_about_the_registry_itself_is_shown_without_words(registry: Driver, viewer: Browser) -> None:
    with registry.registry.store.write() as connection:
        changes = [Change(kind, data={"version": 7}) for kind in (FEDERATION_SET, REGISTRY_KEYS_ISSUED)]
        made = ledger.append(connection, 1_900_000_000, *changes).entries
    for entry in made:
        assert viewer.open(f"/console/ledger/{entry.seq}").status_code == 200
        assert "What it changed" not in viewer.text()
