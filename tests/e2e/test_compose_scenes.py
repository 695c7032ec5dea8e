"""The scenes of docker-compose.yml: an altered answer, another organisation, and a registry with two histories.

Each line that is typed stands in the compose file and on the page about it.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from demo.processes import ROOT
from tests.support.brokers import eventually
from tests.support.containers import Compose

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(600)]

COMPOSE_FILE: Final = "docker-compose.yml"
PAGES: Final = (COMPOSE_FILE, "docs/explanation/examples.md")
SCENES: Final = ("proxy", "partner", "split-view")
"""The profiles."""
PATIENCE: Final = 90.0

PROFILE = "http --auth-type=peerseal -a {} http://{}/profiles/1"
FOREIGN = PROFILE.format("demo.internal/resource-service", "resource-service")
ACCEPT = (
    "peerseal-registry federation accept https://partner-registry --pin PIN --service billing --scopes profiles:read"
)
EVIDENCE = "/var/lib/peerseal/cache/split-views"


@pytest.fixture(scope="module", autouse=True)
def scenes(compose: Compose) -> Iterator[None]:
    """The containers of all scenes run meanwhile."""
    profiles = [argument for scene in SCENES for argument in ("--profile", scene)]
    services = yaml.safe_load((ROOT / COMPOSE_FILE).read_text())["services"]
    added = [name for name in services if in_scene(services[name])]
    compose(*profiles, "up", "--wait")
    yield
    compose(*profiles, "stop", "--timeout", "1", *added)
    compose(*profiles, "rm", "--force", *added)


def in_scene(service: Any) -> bool:
    return bool({*service.get("profiles", ())} & {*SCENES})


def typed(compose: Compose, service: str, line: str, **meant: str) -> str:
    """What the published line prints; ``meant`` is put in the place of the names in it."""
    for page in PAGES:
        assert f"docker compose exec {service} {line}\n" in (ROOT / page).read_text()
    for name, value in meant.items():
        line = line.replace(name, value)
    program, *arguments = line.split()
    here = ("--ignore-stdin", "--no-check-status") if program == "http" else ()  # whatever HTTPie's configuration says
    return compose("exec", "-T", service, program, *here, *arguments)


def answer(compose: Compose, service: str, line: str) -> Any:
    """What a person gets for that line of HTTPie."""
    return json.loads(typed(compose, service, line))


def pin(compose: Compose, service: str) -> str:
    """The thumbprint of the root that the service believes."""
    (found,) = re.findall(r"^pin +(\S+)$", typed(compose, service, "peerseal whoami"), re.M)
    return str(found)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("page", PAGES)
def test_each_scene_is_started_by_a_line_that_people_read(page: str, scene: str) -> None:
    assert f"docker compose --profile {scene} up --wait " in (ROOT / page).read_text()


def test_an_altered_answer_is_taken_where_no_signature_is_required(compose: Compose) -> None:
    taken = answer(compose, "httpservice", PROFILE.format("resource-service", "altering-proxy"))
    assert (taken["name"], taken["caller"]) == ("Mallory", "httpservice")


def test_an_altered_answer_is_refused_where_a_signature_is_required(compose: Compose) -> None:
    refused = answer(compose, "httpservice", "http http://careful-client/profiles/1")
    assert (refused["status"], refused["code"], refused["reason"]) == (502, "answer_refused", "wrong_binding")
    assert "name" not in refused


def test_the_same_proxy_passes_a_signed_answer_that_it_does_not_alter(compose: Compose) -> None:
    taken = answer(compose, "httpservice", "http http://careful-client/profiles/2")
    assert (taken["name"], taken["caller"]) == ("Grace Hopper", "client-service")


def test_a_foreign_service_is_let_in_for_as_long_as_the_federation_names_it(compose: Compose) -> None:
    def refusal(service: str) -> str:
        return str(answer(compose, service, FOREIGN).get("code", ""))

    assert refusal("billing") == "unknown_key"
    typed(compose, "registry", ACCEPT, PIN=pin(compose, "billing"))
    eventually(lambda: refusal("billing") == "", "billing is let in", within=PATIENCE)
    assert answer(compose, "billing", FOREIGN)["caller"] == "partner.example/billing"
    assert refusal("reporting") == "caller_not_allowed"
    typed(compose, "registry", "peerseal-registry federation remove partner.example")
    eventually(lambda: refusal("billing") == "unknown_key", "billing is unknown again", within=PATIENCE)


def test_a_registry_that_shows_two_histories_is_found_by_an_ordinary_call(compose: Compose) -> None:
    def files() -> list[str]:
        try:
            return typed(compose, "resource-service", f"ls {EVIDENCE}").split()
        except AssertionError:
            return []

    assert files() == []
    called = answer(compose, "deceived", PROFILE.format("resource-service", "resource-service"))
    assert called["caller"] == "client-service", "the call itself goes on"
    typed(compose, "registry", "peerseal-registry join-token create guest")
    eventually(lambda: files() != [], "the contradiction is found", within=PATIENCE, every=1)
    line = f"peerseal evidence verify {EVIDENCE}/FILE --pin PIN"
    said = typed(compose, "resource-service", line, FILE=files()[0], PIN=pin(compose, "httpservice"))
    assert said.startswith("PROVEN (")
