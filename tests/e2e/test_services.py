"""Registry, identity provider, three services, consumer and broker as real processes, the registry on either
database, called with the real HTTPie."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from tests.support.brokers import eventually
from tests.support.httpie import http
from tests.support.postgres import Postgres
from tests.support.processes import Process, Server
from tests.support.stack import CASES, CLIENT, DOMAIN, INVOICING, RESOURCE, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@dataclass(frozen=True)
class Running:
    """Everything up: two workers each."""

    stack: Stack
    registry: Server
    resource: Server
    client: Server
    invoicing: Process
    broker_url: str
    secret: str = "only-the-operator-knows"
    password: str = "everybody-in-the-demo"

    def as_user(self, user: str) -> str:
        """HTTPie's argument for a fresh login."""
        login = http("POST", f"{self.client.url}/authenticate", f"user={user}", f"password={self.password}")
        return f"Authorization:Bearer {login.json['access_token']}"


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("services")
    database_url = None
    if request.param == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        database_url = postgres.new_database()
    with Stack(folder, database_url=database_url) as stack:
        started = stack.start_all(Running.password, operator_secret=Running.secret, preload=True)
        yield Running(stack, started.registry, started.resource, started.client, started.invoicing, started.broker_url)


@pytest.mark.thorough
def test_the_index_lists_every_route_with_a_line_that_works(running: Running) -> None:
    environment = {
        "$TOKEN": running.as_user("ada").removeprefix("Authorization:Bearer "),
        "$CLIENT_DEMO_PASSWORD": running.password,
        "$CLIENT_OPERATOR_SECRET": "of-somebody-else",
    }
    expected = {"/refresh-my-credentials": 403, "/approvals": 403, "/approvals/<id>": 403}  # no administrator
    routes = http(f"{running.client.url}/").json["routes"]
    assert len(routes) == 13
    for route in routes:
        line = route["try"]
        for name, value in environment.items():
            line = line.replace(name, value)
        program, *arguments = shlex.split(line)
        assert program == "http"
        created = (route["method"], route["path"]) == ("POST", "/orders")
        assert http(*arguments).status == expected.get(route["path"], 201 if created else 200), line


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


def test_a_user_is_known_through_both_services(running: Running) -> None:
    profile = http(f"{running.client.url}/profiles/1", running.as_user("katherine")).json
    assert (profile["caller"], profile["user"]) == (CLIENT, "katherine")


def test_an_order_becomes_an_invoice(running: Running) -> None:
    grace, url = running.as_user("grace"), running.client.url
    placed = http("POST", f"{url}/orders", grace, 'items:=[{"itemID": "telescope", "quantity": 1}]')
    assert placed.status == 201
    eventually(lambda: http(f"{url}/invoices", grace).json["invoices"] != [], "there is an invoice")
    (invoice,) = http(f"{url}/invoices", grace).json["invoices"]
    assert invoice["transactionID"] == placed.json["transactionID"]
    assert (invoice["userID"], invoice["amount"]) == ("grace", 129_900)
    for service in (CLIENT, INVOICING, CASES, RESOURCE):
        (line,) = [line for line in running.stack.log(service).read_text().splitlines() if told_of(line, invoice)]
        assert "INFO" in line, f"{service} says in one line what it did"


def told_of(line: str, invoice: dict[str, str]) -> bool:
    """Whether a line of a log says what became of the invoice's transaction."""
    return f"transaction {invoice['transactionID']}:" in line


def test_no_service_reads_anothers_database(running: Running) -> None:
    files = {path.relative_to(running.stack.root).parts[0]: path for path in running.stack.root.glob("*/*/*.sqlite3")}
    tables = {
        service: set(inspect(create_engine(f"sqlite:///{path}")).get_table_names()) for service, path in files.items()
    }
    assert tables[CLIENT] >= {"orders", "peerseal_outbox"}
    assert tables[RESOURCE] == {"invoices"}
    assert tables[INVOICING] == {"peerseal_inbox"}
    assert tables[CASES] == {"cases"}


@pytest.mark.thorough
def test_orders_wait_for_a_consumer_that_was_stopped(running: Running) -> None:
    url, katherine = running.client.url, running.as_user("katherine")
    running.invoicing.stop()
    assert running.invoicing.exit_code == 0
    for _ in range(3):
        assert http("POST", f"{url}/orders", katherine, 'items:=[{"itemID": "pen", "quantity": 1}]').status == 201
    running.stack.start_invoicing(running.resource.url, running.broker_url)
    eventually(lambda: len(http(f"{url}/invoices", katherine).json["invoices"]) == 3, "all are invoiced")


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
