"""Registry, caller and callee as real gunicorn processes on either database, called with the real HTTPie."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.httpie import http
from tests.support.postgres import Postgres
from tests.support.processes import Server
from tests.support.stack import CLIENT, DOMAIN, RESOURCE, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@dataclass(frozen=True)
class Running:
    """Everything up: two workers each."""

    stack: Stack
    registry: Server
    resource: Server
    client: Server
    secret: str = "only the operator knows"


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("services")
    database_url = None
    if request.param == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        database_url = postgres.new_database()
    with Stack(folder, database_url=database_url) as stack:
        registry = stack.start_registry()
        resource = stack.start_resource_service(preload=True)
        client = stack.start_client_service(resource.url, operator_secret=Running.secret, preload=True)
        yield Running(stack, registry, resource, client)


def test_the_index_lists_every_route_with_a_line_that_works(running: Running) -> None:
    routes = http(f"{running.client.url}/").json["routes"]
    assert {route["path"] for route in routes} == {
        "/",
        "/my-public-credentials",
        "/refresh-my-credentials",
        "/profiles/<id>",
    }
    for route in routes:
        program, *arguments = route["try"].split()
        assert program == "http"
        assert http(*arguments).status == (403 if route["method"] == "POST" else 200)


@pytest.mark.parametrize("service", [CLIENT, RESOURCE])
def test_public_credentials_are_those_in_the_registry(running: Running, service: str) -> None:
    url = {CLIENT: running.client.url, RESOURCE: running.resource.url}[service]
    shown = http(f"{url}/my-public-credentials").json
    keys = http(f"{running.registry.url}/v1/services/{service}/jwks.json").json["keys"]
    assert shown["keyId"].startswith(f"{DOMAIN}/{service}/")
    assert shown["keyId"] in {key["kid"] for key in keys}


def test_a_profile_comes_through_both_services(running: Running) -> None:
    answer = http(f"{running.client.url}/profiles/1")
    assert (answer.status, answer.json["name"], answer.json["caller"]) == (200, "Ada Lovelace", CLIENT)


@pytest.mark.parametrize("odd", ["%2f", "a%20b", "caf%C3%A9", "..%2f..", "~x", "a;b=c", "%25"])
def test_an_id_with_odd_characters_is_only_an_unknown_profile(running: Running, odd: str) -> None:
    assert http("--path-as-is", f"{running.client.url}/profiles/{odd}").status == 404


def test_an_unsigned_call_is_told_what_is_missing(running: Running) -> None:
    answer = http(f"{running.resource.url}/profiles/1")
    assert (answer.status, answer.code) == (401, "missing_token")
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("given", [[], ["Operator-Secret:"], ["Operator-Secret:wrong"], ["Operator-Secret:ünïcödé"]])
def test_a_key_is_not_replaced_for_a_stranger(running: Running, given: list[str]) -> None:
    answer = http("POST", f"{running.client.url}/refresh-my-credentials", *given)
    assert (answer.status, answer.code) == (403, "operator_secret_required")


def test_the_operator_has_a_key_replaced(running: Running) -> None:
    before = http(f"{running.client.url}/my-public-credentials").json["keyId"]
    new = http("POST", f"{running.client.url}/refresh-my-credentials", f"Operator-Secret:{running.secret}").json
    keys = http(f"{running.registry.url}/v1/services/{CLIENT}/jwks.json").json["keys"]
    assert {before, new["keyId"]} <= {key["kid"] for key in keys}
    assert before != new["keyId"]
    assert http(f"{running.client.url}/profiles/1").status == 200


def test_calls_go_on_while_the_registry_is_down(running: Running) -> None:
    running.registry.kill()
    try:
        assert [http(f"{running.client.url}/profiles/1").status for _ in range(5)] == [200] * 5
    finally:
        running.stack.start_registry()


def test_a_callee_that_is_down_is_said_to_be(running: Running) -> None:
    running.resource.kill()
    answer = http(f"{running.client.url}/profiles/1")
    assert (answer.status, answer.code) == (503, "resource_unreachable")
