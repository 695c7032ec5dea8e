"""Approvals in the console: what an operator sees, compares, admits and rejects."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerseal.protocol.keys import KeyPair
from peerseal.protocol.words import words_of
from registry.console.pages.approvals import is_same
from registry.services.access.operators import Role
from tests.registry.console.browser import Browser
from tests.registry.console.conftest import browser_of
from tests.registry.driver import Clock, Driver, entries_of

PAGE = "/console/approvals"
SCRIPT = "<script>alert(1)</script>\"'\u202e"


@pytest.fixture
def registry(sqlite_url: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(sqlite_url, tmp_path / "home", clock, console=True, applicants=True)
    yield driver
    driver.close()


def applicant(registry: Driver, service: str = "billing") -> str:
    """The thumbprint of a new key that waits."""
    key = KeyPair.generate("ES256")
    assert registry.post_key(service, {"proof": registry.proof(key, service)}).status_code == 202
    return key.public.thumbprint


def state_of(registry: Driver, thumbprint: str, service: str = "billing") -> str | None:
    """The state of a key; None where the registry knows none."""
    answer = registry.client.get(f"/v1/services/{service}/keys/{thumbprint}")
    return answer.get_json()["state"] if answer.status_code == 200 else None


def waiting(registry: Driver) -> list[str]:
    found = registry.client.get("/v1/applicants", headers=registry.operator).get_json()["applicants"]
    return [row["kid"].rpartition("/")[2] for row in found]


def test_without_applicants_the_page_says_what_to_do(registry: Driver, viewer: Browser) -> None:
    viewer.open(PAGE)
    assert "No applicant waits. A service that has no join token applies" in viewer.text()
    off = registry.node(console=True)
    browser = browser_of(off, Role.VIEWER)
    browser.open(PAGE)
    assert "REGISTRY_APPLICANTS=on" in browser.text()
    off.close()


def test_an_applicant_is_shown_with_its_thumbprint_in_groups_and_in_words(
    registry: Driver, viewer: Browser, clock: Clock
) -> None:
    thumbprint = applicant(registry)
    clock.forward(130)
    viewer.open(PAGE)
    text = viewer.text()
    assert " ".join(thumbprint[start : start + 4] for start in range(0, 43, 4)) in text
    assert "".join(f"<li>{word}</li>" for word in words_of(thumbprint)) in viewer.page
    assert f"acme.internal/billing/{thumbprint}" in text
    assert "for 2 min 10 s" in text
    assert "has registered keys before" not in text


def test_a_service_that_has_keys_is_marked(registry: Driver, viewer: Browser) -> None:
    registry.joined(KeyPair.generate("ES256"), "billing")
    applicant(registry)
    viewer.open(PAGE)
    assert "has registered keys before" in viewer.text()


def test_the_thumbprint_is_compared_with_what_the_owner_says(registry: Driver, viewer: Browser) -> None:
    thumbprint, other = applicant(registry), applicant(registry, "shop")
    for said in (thumbprint, f" acme.internal/billing/{thumbprint} ", " ".join(words_of(thumbprint)).upper()):
        viewer.open(PAGE, of=thumbprint, said=said)
        assert "Equal: this is the thumbprint" in viewer.text()
        assert "Not equal" not in viewer.text()
    for said in (other, thumbprint[:-1], thumbprint.swapcase(), " ".join(words_of(thumbprint)[:31]), SCRIPT):
        viewer.open(PAGE, of=thumbprint, said=said)
        assert "Not equal: this is another key" in viewer.text()
        assert "Equal: this is the thumbprint" not in viewer.text()
        assert SCRIPT not in viewer.page


def test_letters_with_blanks_between_them_are_the_same_thumbprint() -> None:
    thumbprint = "A7kPK1nDgwBgYF2y549TUtNhZcM_YEfYzZbkg_mJqPg"
    assert is_same(thumbprint, "A7kP K1nD gwBg YF2y 549T UtNh ZcM_ YEfY zZbk g_mJ qPg")
    assert not is_same(thumbprint, "")
    assert not is_same(thumbprint, "a7kpk1ndgwbgyf2y549tutnhzcm_yefyzzbkg_mjqpg")


def test_nothing_is_compared_that_was_not_asked_for(registry: Driver, viewer: Browser) -> None:
    thumbprint, _ = applicant(registry), applicant(registry, "shop")
    viewer.open(PAGE, of=thumbprint, said=thumbprint)
    assert viewer.text().count("qual: ") == 1


def test_an_operator_approves_and_a_second_click_changes_nothing(registry: Driver, operator: Browser) -> None:
    thumbprint = applicant(registry)
    operator.open(PAGE)
    answer = operator.send(f"{PAGE}/billing/{thumbprint}/approve")
    assert (answer.status_code, answer.request.path) == (200, PAGE)
    assert f"billing/{thumbprint} is admitted, by entry" in operator.text()
    assert state_of(registry, thumbprint) == "active"
    entries = entries_of(registry.store)
    operator.send(f"{PAGE}/billing/{thumbprint}/approve")
    assert f"billing/{thumbprint} is admitted" in operator.text()
    assert entries_of(registry.store) == entries
    operator.open(PAGE)
    assert "is admitted" not in operator.text()


def test_an_operator_rejects_with_a_reason_that_the_log_keeps(
    registry: Driver, operator: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    thumbprint = applicant(registry)
    operator.open(PAGE)
    with caplog.at_level(logging.INFO):
        operator.send(f"{PAGE}/billing/{thumbprint}/reject", why=f"not ours\nfake line {SCRIPT}")
    assert f"billing/{thumbprint} is rejected" in operator.text()
    [line] = [record.getMessage() for record in caplog.records if "applicant rejected" in record.getMessage()]
    assert "not ours\\nfake line <script>" in line
    assert "\n" not in line
    assert not waiting(registry)
    operator.send(f"{PAGE}/billing/{thumbprint}/reject", why="again")
    assert "waits no more" in operator.text()


def test_a_rejection_needs_a_reason(registry: Driver, operator: Browser) -> None:
    thumbprint = applicant(registry)
    operator.open(PAGE)
    operator.send(f"{PAGE}/billing/{thumbprint}/reject", why="   ")
    assert "give a reason" in operator.text()
    assert operator.send(f"{PAGE}/billing/{thumbprint}/reject", why="x" * 201).status_code == 400
    assert waiting(registry) == [thumbprint]


def test_who_comes_too_late_is_told_so(registry: Driver, operator: Browser, clock: Clock) -> None:
    thumbprint = applicant(registry)
    operator.open(PAGE)
    clock.forward(registry.settings.limits.applicant_ttl - 1)
    browser = browser_of(registry, Role.OPERATOR)
    browser.open(PAGE)
    clock.forward(1)
    browser.send(f"{PAGE}/billing/{thumbprint}/approve")
    assert "waits no more" in browser.text()
    assert state_of(registry, thumbprint) is None


def test_a_viewer_has_no_button_and_no_right(registry: Driver, viewer: Browser) -> None:
    thumbprint = applicant(registry)
    viewer.open(PAGE)
    assert "Approve" not in viewer.text()
    assert "Reject" not in viewer.text()
    for act in ("approve", "reject"):
        assert viewer.send(f"{PAGE}/billing/{thumbprint}/{act}", why="x").status_code == 403
    assert waiting(registry) == [thumbprint]
    assert state_of(registry, thumbprint) is None


@pytest.mark.parametrize("service", ["%3Cscript%3E", "Billing", "registry", "x" * 200])
def test_no_name_admits_a_key_of_another_service(registry: Driver, operator: Browser, service: str) -> None:
    thumbprint = applicant(registry)
    operator.open(PAGE)
    answer = operator.send(f"{PAGE}/{service}/{thumbprint}/approve")
    assert answer.status_code in {200, 400}
    assert "<script>" not in operator.page.replace('<script type="module"', "")
    assert waiting(registry) == [thumbprint]


def test_applicants_are_paged(registry: Driver, viewer: Browser) -> None:
    names = [f"service-{number}" for number in range(12)]
    for name in names:
        applicant(registry, name)
    viewer.open(PAGE)
    first = {name for name in names if f'">{name}</h2>' in viewer.page}
    following = viewer.page.partition('rel="next"')[0].rpartition('href="')[2].partition('"')[0]
    viewer.open(following)
    second = {name for name in names if f'">{name}</h2>' in viewer.page}
    assert (len(first), len(second), first | second) == (10, 2, set(names))
    assert ">First</a>" in viewer.page
