"""The browser's own check of the ledger: green for an honest registry, and red for one that lies."""

from collections.abc import Callable, Mapping, Sequence

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import alert_is_present
from selenium.webdriver.support.wait import WebDriverWait

from peerseal.protocol.ledger.entries import Entry
from registry.services.access.operators import Role
from registry.storage.queries import ledger
from tests.browser.lying import Lying
from tests.browser.person import Person
from tests.browser.populated import Populated
from tests.registry.console.ledger_check import forged_files
from tests.support.chromium import PATIENCE

pytestmark = pytest.mark.browser

VERDICT = "#verification-verdict"


@pytest.fixture
def viewer(signed_in: Callable[[Role], Person], front: Lying, monkeypatch: pytest.MonkeyPatch) -> Person:
    """A viewer whose browser knows neither pin nor checkpoint."""
    person = signed_in(Role.VIEWER)
    front.tell_the_truth()
    monkeypatch.setattr(person, "url", front.url)
    person.open("/ledger")
    person.chrome.execute_script("localStorage.clear()")
    person.open("/ledger")
    return person


def type_pin(person: Person, pin: str) -> None:
    person.see(VERDICT, "it does not know the registry's pin yet")
    person.fill("#verification-pin", pin)
    person.press(Keys.ENTER)


def bodies(state: Populated) -> list[bytes]:
    with state.driver.store.read() as connection:
        return list(ledger.read_bodies(connection, 0, ledger.head(connection)))


def forged(state: Populated, texts: Sequence[bytes]) -> Mapping[str, bytes]:
    """The public files of another ledger, which the registry's own keys sign."""
    files = forged_files(state.driver.registry.authority.current(), texts)
    return {f"/{path}": content for path, content in files.items()}


def test_an_honest_registry_is_green_on_each_page_and_the_pin_is_kept_until_it_is_forgotten(
    viewer: Person, state: Populated
) -> None:
    type_pin(viewer, state.driver.pin)
    viewer.see(f"{VERDICT}.done", "Verified by this browser")
    assert viewer.count("#verification-steps .proved") == 4
    viewer.inspect("ledger-green")
    size = len(bodies(state))
    for path in ("/ledger/1", "/ledger/256", "/ledger/257", f"/ledger/{size}", "/ledger?at=2100"):
        viewer.open(path)
        viewer.see(f"{VERDICT}.done", "Verified by this browser")
    viewer.inspect("ledger-entry-green")
    viewer.click("#verification-known summary")
    viewer.click("#verification-forget")
    WebDriverWait(viewer.chrome, PATIENCE).until(alert_is_present()).accept()
    viewer.see(VERDICT, "it does not know the registry's pin yet")


def test_a_wrong_pin_is_red(viewer: Person) -> None:
    type_pin(viewer, "A" * 43)
    viewer.see(f"{VERDICT}.refusal", "the pin is")


def test_another_history_than_this_browser_saw_is_red_with_both_checkpoints(
    viewer: Person, state: Populated, front: Lying
) -> None:
    type_pin(viewer, state.driver.pin)
    viewer.see(f"{VERDICT}.done")
    texts = bodies(state)
    others = [Entry(seq, 1, "noted", data={"other": True}).encode() for seq in range(3, len(texts) + 1)]
    front.lies = forged(state, [*texts[:2], *others])
    viewer.open("/ledger")
    viewer.see(f"{VERDICT}.refusal", "Does not match, do not rely on this page")
    viewer.see("#verification-fork", "Two checkpoints, both signed")
    viewer.inspect("ledger-red")
    front.tell_the_truth()
    viewer.open("/ledger")
    viewer.see(f"{VERDICT}.done", "Verified by this browser")


def test_a_ledger_that_was_rolled_back_is_red(viewer: Person, state: Populated, front: Lying) -> None:
    type_pin(viewer, state.driver.pin)
    viewer.see(f"{VERDICT}.done")
    size = len(bodies(state))
    front.lies = forged(state, bodies(state)[:-5])
    viewer.open(f"/ledger/{size - 5}")
    viewer.see(f"{VERDICT}.refusal", f"the registry shows {size - 5} entries, and this browser saw {size}")


def test_an_entry_that_the_page_shows_otherwise_is_red(viewer: Person, state: Populated, front: Lying) -> None:
    type_pin(viewer, state.driver.pin)
    viewer.see(f"{VERDICT}.done")
    front.altered = {b"policy_set": b"domain_set"}
    viewer.open("/ledger?at=4000")
    viewer.see(f"{VERDICT}.refusal", "Does not match")


def test_an_entry_that_the_page_leaves_out_is_red(viewer: Person, state: Populated, front: Lying) -> None:
    type_pin(viewer, state.driver.pin)
    viewer.see(f"{VERDICT}.done")
    front.altered = {b'<tr data-seq="3990">': b"<tr hidden>"}
    viewer.open("/ledger?at=4000")
    viewer.see(f"{VERDICT}.refusal", "entry 3989 does not follow the one before it")


def test_a_checkpoint_with_another_signature_is_red(viewer: Person, state: Populated, front: Lying) -> None:
    note = forged(state, bodies(state))["/ledger/checkpoint"]
    front.lies = {"/ledger/checkpoint": note.replace(note.split(b"\n")[2], b"A" * 43 + b"=")}
    type_pin(viewer, state.driver.pin)
    viewer.see(f"{VERDICT}.refusal", "Does not match")
