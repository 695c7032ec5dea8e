"""The overview: what it counts, and what it says when something is wrong."""

from dataclasses import replace

import pytest

from peerseal.protocol.ledger.cosignature import Note, cosign
from registry.console.pages.overview import BAR, CODES_SHOWN, LATE, bars
from registry.services.access.operators import Role
from registry.services.authority.authority import RENEW_BEFORE
from registry.services.insight.overview import KEYS_COUNTED_FOR, Overview
from registry.services.use_case import Node
from registry.services.witnesses.state import Cosigned, CosignedFile, WitnessState
from registry.storage.queries.counts import DAY
from registry.storage.revisions import revisions
from registry.web.metrics import refusals_by_code
from registry.witness_addresses import WitnessAddress
from tests.contracts.backups import Backup
from tests.contracts.test_fork import served
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import browser_of
from tests.registry.driver import Clock, Driver
from tests.support.keys import key
from tests.support.root_witnesses import name_witnesses, witness_key, witness_signer
from tests.support.waiting import until


def counting(registry: Driver, most: int) -> Overview:
    """An overview of that registry that counts up to so many rows while a request waits."""
    of = registry.registry
    node = Node(of.store, revisions(of.store.engine), of.authority, of.ledger, of.settings.limits, registry.clock)
    return Overview(node, most)


def test_an_empty_registry_says_what_to_do(viewer: Browser) -> None:
    assert viewer.open("/console/").status_code == 200
    assert "No service has registered a key. A join token admits the first key" in viewer.text()
    assert "No key waits for an operator." in viewer.text()


def test_services_and_keys_are_counted_and_ended_keys_are_not(registry: Driver, viewer: Browser, clock: Clock) -> None:
    first = registry.joined(key(), "billing")
    for service in ("billing", "shop"):
        registry.joined(key(), service)
    registry.operator_ends(first, "billing")
    viewer.open("/console/")
    assert "Services 2 " in viewer.text()
    assert "Active keys 2 end within a day 0 end within a week 2" in viewer.text()
    clock.forward(registry.settings.limits.key_lifetime - DAY)
    assert registry.registry.overview.numbers().keys.counts == (2, 2, 2)  # type: ignore[union-attr]
    clock.forward(DAY)
    assert registry.registry.overview.numbers().keys.counts == (0, 0, 0)  # type: ignore[union-attr]


def test_many_keys_are_counted_apart_and_the_count_says_when_it_was_made(registry: Driver, clock: Clock) -> None:
    for service in ("a", "b", "c"):
        registry.joined(key(), service)
    overview = counting(registry, most=2)
    assert overview.numbers().services == 3
    until(lambda: overview.numbers().keys is not None, what="the count")
    counted = overview.numbers().keys
    assert counted is not None
    assert (counted.counts.active, counted.at) == (3, int(clock()))
    registry.joined(key(), "d")
    assert overview.numbers().keys == counted
    clock.forward(KEYS_COUNTED_FOR)
    until(lambda: overview.numbers().keys != counted, what="the next count")
    assert overview.numbers().keys.counts.active == 4  # type: ignore[union-attr]


def test_a_count_beyond_the_bound_is_shown_as_more(
    registry: Driver, viewer: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    for service in ("a", "b", "c"):
        registry.joined(key(), service)
    monkeypatch.setattr(registry.registry, "overview", counting(registry, most=2))
    monkeypatch.setattr("registry.console.pages.overview.COUNTED", 2)
    viewer.open("/console/")
    assert "Services 2+ " in viewer.text()


def test_the_head_of_the_ledger_is_shown(registry: Driver, viewer: Browser) -> None:
    registry.joined(key(), "billing")
    numbers = registry.registry.overview.numbers()
    viewer.open("/console/")
    assert f"Ledger {numbers.size} entries" in viewer.text()
    assert numbers.root is not None
    assert numbers.root.hex()[:16] in viewer.page


def test_refusals_are_counted_by_code_with_a_bar_each(registry: Driver, viewer: Browser) -> None:
    before = refusals_by_code().get("operator_refused", 0)
    registry.client.get("/v1/services", headers={"Authorization": "Bearer pso1.x"})
    assert refusals_by_code()["operator_refused"] == before + 1
    viewer.open("/console/")
    for bar in bars(refusals_by_code()):  # with those of other tests of this process
        assert bar.code in viewer.page
    assert "<rect" in viewer.page


def test_bars_are_bounded_in_number_and_length() -> None:
    found = bars({f"code_{number:02}": number for number in range(100)})
    assert [bar.code for bar in found[:2]] == ["code_99", "code_98"]
    assert len(found) == CODES_SHOWN + 1
    assert (found[-1].code, found[-1].number) == ("other codes", sum(range(100 - CODES_SHOWN)))
    assert all(0 < bar.length <= BAR for bar in found)
    assert bars({}) == bars({"none": 0}) == []


def test_a_document_near_its_end_is_announced_with_the_remedy(registry: Driver, viewer: Browser, clock: Clock) -> None:
    viewer.open("/console/")
    assert "ends soon" not in viewer.text()
    clock.now = float(registry.registry.authority.in_force().keys.expires_at - RENEW_BEFORE + 1)
    later = browser_of(registry, Role.VIEWER)
    later.open("/console/")
    assert "ends soon" in later.text()
    assert "Run peerseal-registry init where the root key is" in later.text()


def test_a_fork_is_announced_on_the_page(registry: Driver, viewer: Browser) -> None:
    registry.joined(key(), "billing")
    registry.client.get("/v1/services/billing/jwks.jwt")
    viewer.open("/console/")
    backup = Backup(registry.store)
    registry.joined(key(), "late")
    registry.got("/ledger/checkpoint")
    backup.come_back(registry.store)
    assert viewer.open("/console/").status_code == 200
    assert "The ledger forked." in viewer.text()
    assert "reads only" in viewer.text()
    assert "root not known" in viewer.text()


def test_a_node_that_compares_its_ledger_with_no_other_says_how_to(viewer: Browser) -> None:
    viewer.open("/console/")
    assert "None is named: REGISTRY_CHECKPOINT_URLS" in viewer.text()


def test_other_nodes_and_copies_are_shown_with_what_they_said_last(registry: Driver) -> None:
    registry.joined(key(), "billing")
    here, answers = registry.got("/ledger/checkpoint"), dict[str, bytes]()
    with served(lambda path: answers.get(path)) as url:
        node = registry.node(console=True, checkpoint_urls=(url,))
        viewer = browser_of(node, Role.VIEWER)
        viewer.open("/console/")
        assert f"{url} ! no answer not asked yet" in viewer.text()
        node.registry.watch.ask()
        viewer.open("/console/")
        assert f"{url} ! no answer fetch_failed: " in viewer.text()
        answers["/ledger/checkpoint"] = here.encode()
        node.registry.watch.ask()
        viewer.open("/console/")
        assert f"{url} ✓ the same history {here.splitlines()[1]} entries" in viewer.text()
        backup = Backup(registry.store)
        registry.joined(key(), "late")
        answers["/ledger/checkpoint"] = registry.got("/ledger/checkpoint").encode()
        backup.come_back(registry.store)
        node.registry.watch.ask()
        viewer.open("/console/")
        assert f"{url} ✗ another history" in viewer.text()
        node.close()


def test_a_stranger_sees_nothing(stranger: Browser) -> None:
    assert stranger.open("/console/").request.path == "/console/sign-in"


# ---- witnesses


def stored(node: Driver, states: dict[str, WitnessState], *cosigned_by: str, at: float | None = None) -> None:
    """The node has in its file that these witnesses cosigned its newest checkpoint at that time, and their states."""
    note = Note.parse(node.got("/ledger/checkpoint"))
    when = int(node.clock() if at is None else at)
    lines = [cosign(note.text, name, witness_signer(name), when) for name in cosigned_by]
    signed = replace(note, signatures=(*note.signatures, *lines)) if lines else None
    CosignedFile(node.home).write(Cosigned(signed, states))


def with_witnesses(registry: Driver, *names: str) -> Driver:
    """A node that submits to these witnesses, at addresses where nothing listens."""
    addresses = tuple(WitnessAddress(witness_key(name), "http://127.0.0.1:1") for name in names)
    return registry.node(console=True, witnesses=addresses)


def size_of(registry: Driver) -> int:
    return registry.registry.overview.numbers().size


def test_without_witnesses_the_overview_says_nothing_of_them(viewer: Browser) -> None:
    viewer.open("/console/")
    assert "itness" not in viewer.text()


def test_each_witness_is_shown_with_what_it_cosigned_last(registry: Driver, clock: Clock) -> None:
    node = with_witnesses(registry, "a.example", "b.example", "c.example", "d.example")
    viewer, now = browser_of(node, Role.VIEWER), int(clock())
    size = size_of(node)
    states = {
        "a.example": WitnessState(size, now - 12),
        "b.example": WitnessState(size - 2, now - 3_700, 3, now, "it gave no answer: <script>"),
        "d.example": WitnessState(size + 1, now - 5),
    }
    stored(node, states, "a.example")
    viewer.open("/console/")
    assert f"a.example ✓ the newest checkpoint {size:,} entries, 12 s ago" in viewer.text()
    assert (
        f"b.example ! 2 entries behind {size - 2:,} entries, 1 h 1 min ago 3 failed attempts: "
        "it gave no answer: <script>"
    ) in viewer.text()
    assert "c.example ✗ has cosigned nothing" in viewer.text()
    assert "d.example ✗ has cosigned more than the ledger has" in viewer.text()
    assert "The root names no quorum" in viewer.text()
    assert "<script>" not in viewer.page
    node.close()


def test_the_quorum_is_met_late_or_missing(registry: Driver, clock: Clock) -> None:
    name_witnesses(registry, "a.example", "b.example", "c.example", needed=2)
    node = with_witnesses(registry, "a.example", "b.example", "c.example")
    viewer = browser_of(node, Role.VIEWER)
    stored(node, {}, "a.example")
    viewer.open("/console/")
    assert "✗ quorum never met 2 of 3 must have cosigned what clients believe." in viewer.text()
    stored(node, {}, "a.example", "b.example", at=clock() - 30)
    viewer.open("/console/")
    size = size_of(node)
    assert "✓ quorum met 2 of 3 must have cosigned what clients believe." in viewer.text()
    assert f"They had cosigned {size:,} entries 30 s ago." in viewer.text()
    registry.joined(key(), "billing")
    viewer.open("/console/")
    assert "! quorum not yet met" in viewer.text()
    assert "30 s ago, 2 fewer than the ledger has." in viewer.text()
    clock.forward(LATE)
    viewer.open("/console/")
    assert "✗ quorum not met" in viewer.text()
    node.close()


def test_witnesses_of_the_root_to_which_the_node_submits_nothing_are_named(registry: Driver) -> None:
    name_witnesses(registry, "a.example", "b.example", needed=1)
    for node, unasked in ((registry, "a.example, b.example"), (with_witnesses(registry, "a.example"), "b.example")):
        viewer = browser_of(node, Role.VIEWER)
        viewer.open("/console/")
        assert f"The root names {unasked}, and this node submits nothing there" in viewer.text()
        if node is not registry:
            node.close()
