"""docker-compose.yml, for real: built, started, called from its own HTTPie container as people type, and taken down."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from jose import jwt

from demo.processes import ROOT
from tests.support.brokers import eventually
from tests.support.containers import UP, Compose, crash, described, ends, run, serves

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(1500)]

CONFIGURE_HTTPIE = """mkdir -p $HTTPIE_CONFIG_DIR
echo '{"default_options": ["--check-status"]}' > $HTTPIE_CONFIG_DIR/config.json
"""
"""A configuration of a person's own, with which a refused call fails its line."""
LOGINS = """
import base64, json, sys, time
from confluent_kafka import KafkaException, Producer
import peerseal
from peerseal.kafka import oauthbearer

def part(members):
    return base64.urlsafe_b64encode(json.dumps(members).encode()).decode().rstrip("=")

now = int(time.time())
claims = {"iss": "demo.internal/registry", "aud": "https://kafka.demo.internal", "scope": "kafka", "jti": "1"}
claims |= {"sub": "demo.internal/client-service", "iat": now, "exp": now + 60}
token = f"{part({'alg': 'none'})}.{part(claims)}."
tls = {"ssl.ca.location": "/tls/authority/authority.pem"}
login = {
    "plaintext": lambda: {},
    "forged": lambda: {
        **tls,
        "security.protocol": "SASL_SSL",
        "sasl.mechanisms": "OAUTHBEARER",
        "oauth_cb": lambda _: (token, now + 60),
    },
    "registered": lambda: {**tls, **oauthbearer(peerseal.Identity.from_env().start(), "kafka")},
}[sys.argv[1]]()
client = Producer({"bootstrap.servers": "kafka:9092", "log_level": 0, **login})
client.poll(0)
try:
    client.list_topics(timeout=5)
    print("let in")
except KafkaException:
    print("refused")
"""
"""Logs in at the broker in one of three ways, in a container that reaches it."""
REWRITE = """
import os, sys
import psycopg

with open(os.environ["REGISTRY_DATABASE_URL_FILE"]) as url, psycopg.connect(url.read()) as connection:
    try:
        connection.execute(sys.argv[1])
        print("done")
    except psycopg.errors.InsufficientPrivilege:
        print("refused")
"""
"""Tries a statement as the role with which the registry serves."""
ORDER = (
    "http --ignore-stdin POST http://clientservice/orders 'items[0][itemID]=pen' 'items[0][quantity]:=2'"
    " -A bearer -a $TOKEN"
)


def ask(compose: Compose, *request: str) -> Any:
    """What HTTPie gets in its container. ``--check-status``: any other answer than a 2xx fails the command."""
    return json.loads(compose("exec", "-T", "httpservice", "http", "--ignore-stdin", "--check-status", "-b", *request))


def as_user(compose: Compose, user: str) -> str:
    """HTTPie's argument for a fresh login."""
    login = f"http --ignore-stdin -b POST http://client-service/authenticate user={user} password=$CLIENT_DEMO_PASSWORD"
    answer = json.loads(typed(login))
    return f"Authorization:Bearer {answer['access_token']}"


def typed(*lines: str, ends_with: int = 0) -> str:
    """What the lines print, typed in a shell of the container ``httpservice``."""
    shell = ("bash", "-eo", "pipefail", "-c", CONFIGURE_HTTPIE + "\n".join(lines))
    return run("docker", "exec", "httpservice", *shell, ends_with=ends_with)


def typed_as_legacy_shop(compose: Compose, *lines: str) -> str:
    """What the lines print, typed in a shell of the program without the SDK."""
    shell = ("bash", "-eo", "pipefail", "-c", CONFIGURE_HTTPIE + "\n".join(lines))
    return compose("run", "--rm", "-T", "legacy-shop", *shell)


def invoices_of(compose: Compose, user: str, count: int) -> list[Any]:
    """The user's invoices, once there are so many."""
    token, deadline = as_user(compose, user), time.monotonic() + 60
    while len(found := ask(compose, "http://client-service/invoices", token)["invoices"]) < count:
        assert time.monotonic() < deadline, compose("logs", "--no-color", "--tail=40", "invoicing", "client-service")
        time.sleep(0.5)
    return list(found)


@pytest.mark.parametrize("page", ["README.md", "docs/explanation/examples.md", "docker-compose.yml"])
def test_it_is_started_by_the_line_that_people_read(page: str) -> None:
    assert f"make .env && docker compose {' '.join(UP)}\n" in (ROOT / page).read_text()


@pytest.mark.parametrize("service", ["clientservice", "resourceservice"])
def test_the_published_line_works_as_it_stands(compose: Compose, service: str) -> None:
    shown = run(*f"docker exec -t httpservice http http://{service}/my-public-credentials".split())
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown)  # a terminal has colours
    assert "200 OK" in text
    assert re.search(rf'"keyId": "demo.internal/{service.removesuffix("service")}-service/[\w-]{{43}}"', text)


@pytest.mark.parametrize("page", ["docker-compose.yml", "README.md", "docs/how-to/terminal.md"])
def test_the_published_line_of_a_signed_call_works_as_it_stands(compose: Compose, page: str) -> None:
    line = "http --auth-type=peerseal -a resource-service http://resource-service/profiles/1"
    assert f"docker compose exec httpservice {line}\n" in (ROOT / page).read_text()
    answer = json.loads(compose("exec", "-T", "httpservice", *line.split(), "--ignore-stdin", "--check-status", "-b"))
    assert (answer["id"], answer["caller"]) == ("1", "httpservice")


def test_people_make_a_signed_call_without_httpie_too(compose: Compose) -> None:
    call = "peerseal call resource-service GET http://resource-service/profiles/1"
    assert json.loads(compose("exec", "-T", "httpservice", *call.split()))["caller"] == "httpservice"
    call = "peerseal call resource-service GET http://resource-service/profiles/9"
    assert json.loads(compose("exec", "-T", "httpservice", *call.split(), ends_with=4))["code"] == "profile_not_found"


def index(compose: Compose) -> Any:
    """What ``GET /`` says."""
    return ask(compose, "http://clientservice/")


def test_the_lines_of_the_index_work_as_they_stand(compose: Compose) -> None:
    shown = index(compose)
    assert len(shown["routes"]) > 8
    refused = [route["try"] for route in shown["routes"] if route["path"].startswith("/approvals")]  # to ada
    typed(shown["login"], *(route["try"] for route in shown["routes"] if route["try"] not in refused))
    for line in refused:
        typed(shown["login"], line, ends_with=4)


def test_the_lines_of_the_token_exchange_work_as_they_stand(compose: Compose) -> None:
    shown = index(compose)
    token = typed_as_legacy_shop(compose, shown["login"], *shown["exchange"], "echo $EVENT_TOKEN").split()[-1]
    claims = jwt.get_unverified_claims(token)
    assert (claims["iss"], claims["act"]) == ("demo.internal/registry", {"sub": "demo.internal/legacy-shop"})
    assert (claims["sub"], claims["scope"], claims["aud"]) == ("ada", "trigger_invoicing", "jobs.example.com")


def test_an_event_of_the_token_exchange_becomes_an_invoice(compose: Compose) -> None:
    shown = index(compose)
    publish = "python3 -m demo.publish /tmp/order.json $EVENT_TOKEN"
    order = typed_as_legacy_shop(compose, shown["login"], *shown["exchange"], publish, "echo t-$ORDER").split()[-1]
    eventually(
        lambda: (order, 500) in [(one["transactionID"], one["amount"]) for one in invoices_of(compose, "ada", 1)],
        "legacy-shop's order is invoiced to ada",
    )


def test_public_credentials_are_shown(compose: Compose) -> None:
    credentials = ask(compose, "http://client-service/my-public-credentials")
    assert credentials["keyId"].startswith("demo.internal/client-service/")
    assert credentials.keys() == {"keyId", "publicKey"}


def test_a_call_passes_through_both_services(compose: Compose) -> None:
    profile = ask(compose, "http://client-service/profiles/1")
    assert (profile["id"], profile["caller"]) == ("1", "client-service")


def test_an_order_becomes_an_invoice(compose: Compose) -> None:
    katherine = as_user(compose, "katherine")
    items = 'items:=[{"itemID": "slide-rule", "quantity": 2}]'
    placed = ask(compose, "POST", "http://client-service/orders", katherine, items)
    (invoice,) = invoices_of(compose, "katherine", 1)
    assert invoice["transactionID"] == placed["transactionID"]
    assert (invoice["userID"], invoice["amount"]) == ("katherine", 9800)


def test_an_order_is_taken_while_kafka_is_down(compose: Compose) -> None:
    compose("stop", "--timeout", "10", "kafka")
    items = 'items:=[{"itemID": "pen", "quantity": 1}]'
    ask(compose, "POST", "http://client-service/orders", as_user(compose, "grace"), items)
    compose("start", "kafka")
    assert [invoice["amount"] for invoice in invoices_of(compose, "grace", 1)] == [250]


@pytest.mark.parametrize(
    ("login", "outcome"), [("registered", "let in"), ("plaintext", "refused"), ("forged", "refused")]
)
def test_the_broker_lets_in_nobody_without_a_token_of_the_registry(compose: Compose, login: str, outcome: str) -> None:
    assert compose("exec", "-T", "invoicing", "python3", "-c", LOGINS, login).strip() == outcome


def test_people_reach_no_data_and_only_its_services_do(compose: Compose) -> None:
    for host in ("postgres", "redis", "kafka"):
        typed(f"getent hosts {host}", ends_with=2)
    typed("getent hosts resourceservice registry")
    assert members(compose, "data") == {
        *("postgres", "redis", "kafka"),
        *("registry", "client-service", "resource-service", "invoicing"),
    }
    assert members(compose, "edge") == {"httpservice", "login", "client-service"}


def members(compose: Compose, network: str) -> set[str]:
    """The services on that network that run."""
    return {
        service
        for service, container in described(compose).items()
        if container["State"]["Running"]
        and any(name.endswith(f"_{network}") for name in container["NetworkSettings"]["Networks"])
    }


def test_no_service_has_a_secret_in_its_environment(compose: Compose, secrets_folder: Path) -> None:
    made = {file.name: file.read_text() for file in (secrets_folder / "secrets").iterdir()}
    assert len(made) == 11
    containers = described(compose)
    assert len(containers) == 17
    for service, container in containers.items():
        if service != "httpservice":  # that one is for people
            started = "\n".join([*(container["Config"]["Env"] or []), container["Path"], *container["Args"]])
            assert [name for name, secret in made.items() if secret in started] == [], service


def test_the_join_tokens_are_only_their_services_to_read(compose: Compose) -> None:
    listing = compose("exec", "-T", "client-service", "ls", "-ln", "/join/token")
    assert listing.splitlines()[0].startswith("-rw------- 1 10001 0 ")


def test_a_service_restarts_with_the_key_that_it_has(compose: Compose) -> None:
    before = ask(compose, "http://client-service/my-public-credentials")
    compose("restart", "client-service")
    wait = (
        "until http --ignore-stdin --check-status -q http://client-service/profiles/2 2>/dev/null; do sleep 0.5; done"
    )
    compose("exec", "-T", "httpservice", "timeout", "60", "sh", "-c", wait)
    assert ask(compose, "http://client-service/my-public-credentials") == before


def test_services_run_as_nobody_special(compose: Compose) -> None:
    for service in ("registry", "login", "client-service", "resource-service", "case-service", "invoicing"):
        assert compose("exec", "-T", service, "id", "-u").strip() == "10001"


def test_the_registry_can_rewrite_no_entry(compose: Compose) -> None:
    for statement in ("UPDATE entries SET seq = seq", "DELETE FROM entries", "DROP TABLE entries"):
        assert compose("exec", "-T", "registry", "python3", "-c", REWRITE, statement).strip() == "refused"


def test_the_root_key_is_not_where_the_registry_serves(compose: Compose) -> None:
    find = ("find", "/root-key", "/var/lib/peerseal", "-name", "root-key.pem")
    assert compose("exec", "-T", "registry", *find) == ""
    assert compose("run", "--rm", "-T", "--no-deps", "init", *find).strip() == "/root-key/root-key.pem"


def test_the_signing_key_is_replaced_where_the_root_key_is(compose: Compose) -> None:
    compose("run", "--rm", "-T", "--no-deps", "init", "peerseal-registry", "root", "roll", "signing")
    works(compose)


def works(compose: Compose) -> None:
    """Passes once every container serves, the registry exchanges a token, and an order of ada's is invoiced: so all
    services, both databases and the broker have found each other again."""

    def troubled() -> list[str]:
        return [name for name, one in described(compose).items() if not ends(one) and not serves(one)]

    def ordered() -> bool:
        try:
            shown = index(compose)
            typed_as_legacy_shop(compose, shown["login"], *shown["exchange"], ORDER)
        except AssertionError:
            return False
        return True

    eventually(lambda: not troubled(), "every container serves", within=240, every=1)
    before = len(invoices_of(compose, "ada", 0))
    eventually(ordered, "a token is exchanged and an order taken", within=120, every=1)
    invoices_of(compose, "ada", before + 1)


@pytest.mark.parametrize("service", ["postgres", "registry", "kafka", "client-service", "invoicing"])
def test_a_container_that_crashes_is_started_again(compose: Compose, service: str) -> None:
    crashed = described(compose)[service]
    crash(crashed)
    eventually(lambda: started_again(compose, service, crashed), "the engine starts it again", within=60, every=1)
    works(compose)


def started_again(compose: Compose, service: str, before: Any) -> bool:
    """Whether the same container has another first process."""
    now = described(compose)[service]
    return now["Id"] == before["Id"] and now["State"]["Pid"] not in (0, before["State"]["Pid"])


def test_containers_find_each_other_in_whatever_order_they_start(compose: Compose) -> None:
    """As when the host starts: the engine waits for no dependency. PostgreSQL comes last."""
    containers = {name: one["Id"] for name, one in described(compose).items() if not ends(one)}
    run("docker", "stop", "--time", "5", *containers.values())
    postgres = containers.pop("postgres")
    run("docker", "start", *containers.values())
    not_ready = "the registry serves, and is not ready"
    eventually(lambda: answers(containers["registry"], "/readyz") == "503", not_ready, within=120, every=1)
    assert answers(containers["registry"], "/healthz") == "200"
    run("docker", "start", postgres)
    works(compose)


def answers(registry: str, path: str) -> str:
    """The status with which the registry in that container answers; none where it does not."""
    get = f"import requests; print(requests.get('https://127.0.0.1{path}', timeout=9).status_code)"
    try:
        return run("docker", "exec", registry, "python3", "-c", get).strip()
    except AssertionError:
        return "none"


def test_after_down_and_up_everything_is_as_it_was(compose: Compose) -> None:
    before = ask(compose, "http://client-service/my-public-credentials"), invoices_of(compose, "ada", 1)
    compose("down")
    compose(*UP)
    assert (ask(compose, "http://client-service/my-public-credentials"), invoices_of(compose, "ada", 1)) == before
    works(compose)


def test_a_service_that_lost_its_volume_joins_with_another_key(compose: Compose) -> None:
    before = ask(compose, "http://client-service/my-public-credentials")
    mounts = described(compose)["client-service"]["Mounts"]
    (volume,) = (mount["Name"] for mount in mounts if mount["Destination"] == "/var/lib/peerseal")
    compose("rm", "--stop", "--force", "client-service")
    run("docker", "volume", "rm", volume)
    compose(*UP)
    assert ask(compose, "http://client-service/my-public-credentials")["keyId"] != before["keyId"]
    works(compose)
