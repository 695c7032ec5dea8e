"""docker-compose.yml as it is written, and the settings that its first start lays down: what needs no engine."""

import datetime
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.containers.certificates import main as make_certificates
from demo.containers.settings import settings
from demo.domain import CLIENT, DOMAIN, INVOICING, LEGACY, LOGIN_ISSUER
from demo.processes import ROOT
from registry.domain.policy import settings_from
from registry.serving.gunicorn_conf import graceful_timeout
from registry.serving.worker import LINGER
from registry.settings import DRAIN_SECONDS
from resource_service.app import ALLOW

FOR_PEOPLE = {"httpservice", "legacy-shop"}
HOSTS_OF_CLIENT = {CLIENT, "careful-client", "deceived"}
"""The containers that run as client-service, with its one key."""


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
        *("postgres", "redis", "kafka", "roles", "migrate", "init", "grants", "enroll", "another-database")
    }
    inside = read("docker-compose.yml")["networks"]
    assert {name for name, one in inside.items() if one.get("internal")} == {"services", "data"}


def once(services: dict[str, Any]) -> set[str]:
    """The services whose containers end when their work is done."""
    return {name for name, service in services.items() if service["restart"] == "on-failure:5"}


def test_every_container_that_serves_is_started_again_and_keeps_little_log(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["restart"] == "unless-stopped" or name in once(services), name
        assert service["logging"]["driver"] == "json-file", name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name


def started(services: dict[str, Any], *profiles: str) -> dict[str, Any]:
    """The services that ``docker compose up`` starts with these profiles."""
    return {name: one for name, one in services.items() if {*one.get("profiles", ())} <= {*profiles}}


@pytest.mark.parametrize(
    ("profile", "more"),
    [("", ()), ("proxy", ()), ("partner", ("partner-setup",)), ("split-view", ("another-database",))],
)
def test_up_and_wait_takes_the_end_of_no_container_for_a_failure(
    services: dict[str, Any], profile: str, more: tuple[str, ...]
) -> None:
    running = started(services, profile)
    waited_for = {
        dependency
        for service in running.values()
        for dependency, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    assert all("disable" not in service.get("healthcheck", {}) for service in services.values())
    default = {"certificates", "roles", "migrate", "init", "grants", "enroll", "topics"}
    assert waited_for == once(running) == default | {*more}


def test_a_start_without_a_profile_starts_no_scene(services: dict[str, Any]) -> None:
    assert services.keys() - started(services).keys() == {
        "legacy-shop",
        *("altering-proxy", "careful-client"),
        *("partner-setup", "partner-registry", "billing", "reporting"),
        *("another-database", "another-history", "deceived"),
    }


def mounting(services: dict[str, Any], volume: str) -> set[str]:
    """The services whose containers mount that volume."""
    return {name for name, one in services.items() if any(f"{volume}:" in mount for mount in one.get("volumes", ()))}


def test_every_service_has_a_join_token_and_a_key_folder_of_its_own(services: dict[str, Any]) -> None:
    environments = {name: one.get("environment") or {} for name, one in services.items()}
    running = {name: one["PEERSEAL_SERVICE"] for name, one in environments.items() if "PEERSEAL_SERVICE" in one}
    joining = set(running.values())
    assert running.keys() - joining == HOSTS_OF_CLIENT - {CLIENT}
    assert all(f"/join/{name}" in (ROOT / "Dockerfile").read_text() for name in joining)
    assert enrolled_by(services, "enroll") | enrolled_by(services, "partner-setup") == joining
    for name in joining:
        enrols = "partner-setup" if name in enrolled_by(services, "partner-setup") else "enroll"
        hosts = HOSTS_OF_CLIENT if name == CLIENT else {name}
        (join,) = (
            mount.removesuffix(":/join:ro") for mount in services[name]["volumes"] if mount.endswith(":/join:ro")
        )
        assert f"{join}:/join/{name}" in services[enrols]["volumes"]
        (keys,) = (mount.split(":")[0] for mount in services[name]["volumes"] if mount.endswith(":/var/lib/peerseal"))
        assert (mounting(services, join), mounting(services, keys)) == ({*hosts, enrols}, hosts)


def enrolled_by(services: dict[str, Any], container: str) -> set[str]:
    """The services for which that container makes join tokens."""
    named = re.search(r"for service in ([a-z -]+);", services[container]["command"][-1])
    assert named is not None
    return set(named[1].split())


def test_people_may_call_the_service_that_the_published_line_names(services: dict[str, Any]) -> None:
    assert ALLOW[services["httpservice"]["environment"]["PEERSEAL_SERVICE"]] == {"profiles:read"}
    assert ALLOW["partner.example/billing"] == {"profiles:read"}


def test_the_engine_waits_until_the_registry_has_drained(services: dict[str, Any]) -> None:
    waits = int(services["registry"]["stop_grace_period"].removesuffix("s"))
    assert waits > DRAIN_SECONDS + graceful_timeout + LINGER


def test_only_what_initialises_a_registry_has_its_root_key(services: dict[str, Any]) -> None:
    assert mounting(services, "registry-root") == {"init"}
    assert mounting(services, "registry-home") == {"init", "registry", "enroll", "another-history"}
    assert mounting(services, "partner-root") == {"partner-setup"}
    assert mounting(services, "partner-home") == {"partner-setup", "partner-registry"}


def test_only_what_changes_the_schema_or_the_roots_documents_is_the_owner(services: dict[str, Any]) -> None:
    owners = {name for name, one in services.items() if any("owner" in secret for secret in one.get("secrets", ()))}
    assert owners == {"roles", "migrate", "init", "grants"}


def test_the_registry_runs_from_an_image_without_the_examples_as_that_image_says(services: dict[str, Any]) -> None:
    built = {name: service["build"]["target"] for name, service in services.items() if "build" in service}
    assert {name for name, target in built.items() if target == "registry"} == {
        *("registry", "migrate", "init"),
        *("partner-registry", "another-history"),
    }
    assert "command" not in services["registry"]


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
