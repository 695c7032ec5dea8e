"""The end of a key in the console: what falls with it, the typed name, and who may."""

from pathlib import Path

import pytest

from peerseal.protocol.keys import KeyPair
from tests.registry.console.browser import Browser
from tests.registry.driver import Clock, Driver, entries_of


def new_key() -> KeyPair:
    return KeyPair.generate("ES256")


def path_of(key: KeyPair, service: str = "billing") -> str:
    return f"/console/services/{service}/keys/{key.public.thumbprint}/revoke"


def state_of(registry: Driver, key: KeyPair, service: str = "billing") -> str:
    found = registry.client.get(f"/v1/services/{service}/keys/{key.public.thumbprint}").get_json()["state"]
    assert isinstance(found, str)
    return found


def family(registry: Driver, descendants: int) -> list[KeyPair]:
    """A chain of keys: each one vouched for the next."""
    keys = [registry.joined(new_key(), "billing")]
    for _ in range(descendants):
        keys.append(new_key())
        assert registry.rotate(keys[-2], keys[-1], "billing").status_code == 201
    return keys


def test_the_keys_that_fall_are_listed_first_with_their_exact_number(registry: Driver, operator: Browser) -> None:
    first, second, third = family(registry, 2)
    stranger = registry.joined(new_key(), "billing")
    operator.open(path_of(first))
    assert "2 more keys fall with it" in operator.text()
    for key in (second, third):
        assert f"<code>{key.public.thumbprint}</code></th>" in operator.page
    assert stranger.public.thumbprint not in operator.page
    operator.open(path_of(third))
    assert "No other key" in operator.text()


def test_a_long_list_is_bounded_and_its_number_exact(registry: Driver, operator: Browser) -> None:
    first = registry.joined(new_key(), "billing")
    for _ in range(51):
        assert registry.rotate(first, new_key(), "billing").status_code == 201
    operator.open(path_of(first))
    assert "51 more keys fall with it" in operator.text()
    assert "The oldest 50 of 51" in operator.text()
    assert operator.page.count('<th scope="row">') == 50


def test_the_number_and_the_oldest_keys_are_exact_on_each_database(
    registry_database: str, tmp_path: Path, clock: Clock
) -> None:
    driver = Driver(registry_database, tmp_path / "node", clock)
    first, *others = family(driver, 4)
    thumbprints = [key.public.thumbprint for key in others]
    found = driver.registry.records.falling("billing", first.public.thumbprint, 3)
    assert (found.number, [key["kid"].rpartition("/")[2] for key in found.first]) == (4, thumbprints[:3])
    assert driver.operator_ends(others[2], "billing").status_code == 204
    found = driver.registry.records.falling("billing", first.public.thumbprint, 3)
    assert (found.number, [key["kid"].rpartition("/")[2] for key in found.first]) == (2, thumbprints[:2])
    driver.close()


def test_a_compromised_key_falls_with_its_descendants(registry: Driver, operator: Browser) -> None:
    keys = family(registry, 2)
    stranger = registry.joined(new_key(), "billing")
    operator.open(path_of(keys[0]))
    answer = operator.send(path_of(keys[0]), service="billing", reason="compromised")
    assert (answer.status_code, answer.request.method) == (200, "GET")
    assert "3 keys are revoked" in operator.text()
    assert "There is nothing to do" in operator.text()
    assert [state_of(registry, key) for key in (*keys, stranger)] == ["revoked"] * 3 + ["active"]


def test_a_retired_key_ends_alone(registry: Driver, operator: Browser) -> None:
    first, second = family(registry, 1)
    operator.open(path_of(first))
    operator.send(path_of(first), service="billing", reason="retired")
    assert "1 key is retired" in operator.text()
    assert (state_of(registry, first), state_of(registry, second)) == ("retired", "active")
    assert 'value="retired"' not in operator.page
    assert 'value="compromised"' in operator.page


@pytest.mark.parametrize("reason", ["compromised", "retired"])
def test_a_second_click_changes_nothing(registry: Driver, operator: Browser, reason: str) -> None:
    first, _ = family(registry, 1)
    operator.open(path_of(first))
    operator.send(path_of(first), service="billing", reason=reason)
    entries = entries_of(registry.store)
    operator.send(path_of(first), service="billing", reason=reason)
    assert "Nothing was changed" in operator.text()
    assert entries_of(registry.store) == entries


@pytest.mark.parametrize("typed", ["", "Billing", "billing2", "acme.internal/billing", "<script>alert(1)</script>"])
def test_the_name_is_typed_to_confirm_and_what_was_typed_is_kept(
    registry: Driver, operator: Browser, typed: str
) -> None:
    [key] = family(registry, 0)
    operator.open(path_of(key))
    assert operator.send(path_of(key), service=typed, reason="compromised").status_code == 400
    assert "Nothing was changed: type billing to confirm" in operator.text()
    assert 'value="compromised" required checked' in operator.page
    assert "<script>alert" not in operator.page
    assert state_of(registry, key) == "active"


@pytest.mark.parametrize("reason", ["", "rejected", "REVOKED", "<script>alert(1)</script>"])
def test_another_reason_is_refused(registry: Driver, operator: Browser, reason: str) -> None:
    [key] = family(registry, 0)
    operator.open(path_of(key))
    assert operator.send(path_of(key), service="billing", reason=reason).status_code == 400
    assert "<script>alert" not in operator.page
    assert state_of(registry, key) == "active"


def test_a_key_is_ended_under_its_own_service_only(registry: Driver, operator: Browser) -> None:
    [key] = family(registry, 0)
    registry.joined(new_key(), "shop")
    operator.open(path_of(key))
    form = operator.page
    for service, status in (("shop", 404), ("nothing", 404), ("%3Cscript%3E", 400)):
        assert operator.open(path_of(key, service)).status_code == status
        operator.page = form
        assert operator.send(path_of(key, service), service=service, reason="compromised").status_code == status
        assert "<script>" not in operator.page
    assert state_of(registry, key) == "active"


def test_a_viewer_neither_sees_the_form_nor_ends_a_key(registry: Driver, viewer: Browser) -> None:
    [key] = family(registry, 0)
    assert viewer.open(path_of(key)).status_code == 403
    viewer.open("/console/")
    assert viewer.send(path_of(key), service="billing", reason="compromised").status_code == 403
    assert state_of(registry, key) == "active"
