"""docker-compose.yml as it is written, and the settings that its first start lays down: what needs no engine."""

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.containers.certificates import main as make_certificates
from demo.containers.settings import settings
from demo.domain import CLIENT, DOMAIN, INVOICING, LEGACY, LOGIN_ISSUER
from demo.processes import ROOT
from registry.domain.policy import settings_from

FOR_PEOPLE = {"httpservice", "legacy-shop"}


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = read("docker-compose.yml")["services"]
    return found


def networks(service: Any) -> set[str]:
    """Of a service that does not share another one's."""
    return set(service.get("networks") or ())


def test_every_container_of_ours_can_change_nothing_of_its_system(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if "build" in service:
            assert (service["cap_drop"], service["read_only"]) == (["ALL"], True), name
            assert "no-new-privileges:true" in service["security_opt"], name


def test_people_are_on_no_network_with_data_and_every_service_names_its_own(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert networks(service) or "network_mode" in service, f"{name} would be on a network of everybody's"
    assert networks(services["httpservice"]) == {"edge", "services"}
    assert {name for name, one in services.items() if networks(one) == {"data"}} == {
        *("postgres", "redis", "kafka", "enroll")
    }
    inside = read("docker-compose.yml")["networks"]
    assert {name for name, one in inside.items() if one.get("internal")} == {"services", "data"}


def test_no_service_takes_a_secret_from_the_environment(services: dict[str, Any]) -> None:
    for name, service in services.items():
        written = [value for value in (service.get("environment") or {}).values() if "${" in str(value)]
        assert bool(written) == (name in FOR_PEOPLE), name


def test_hosts_without_a_network_for_builds_can_build_every_image(services: dict[str, Any]) -> None:
    built = {name for name, service in services.items() if "build" in service}
    assert read("docker-compose.build-network.yml")["services"].keys() == built


def test_the_registry_takes_the_settings_that_the_first_start_lays_down(tmp_path: Path) -> None:
    make_certificates(tmp_path, datetime.datetime.now(datetime.UTC))
    taken = settings_from(settings(tmp_path / "authority/authority.pem"), DOMAIN)
    assert [issuer.issuer for issuer in taken.issuers] == [LOGIN_ISSUER]
    assert taken.access_tokens["kafka"].services == {f"{DOMAIN}/{name}" for name in (CLIENT, INVOICING, LEGACY)}
    assert taken.exchange == {f"{DOMAIN}/{LEGACY}": {"jobs.example.com": frozenset({"trigger_invoicing"})}}
