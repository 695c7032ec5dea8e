"""Logins at client-service, whose tokens any OIDC library reads, and what becomes of those that are not good."""

import stat
import threading
from pathlib import Path
from typing import Any

import jwt
import pytest

from client_service.settings import ISSUER_URL
from client_service.user_tokens import LIFETIME, UserTokens
from peerseal.protocol.policies import UserIssuer
from peerseal.protocol.tokens import LEEWAY
from peerseal.testing import Clock, MemoryRegistry
from tests.examples.world import NO_JSON, PASSWORD, Person, World
from tests.support.brokers import Broker


def token_of(person: Person) -> str:
    return person.headers["Authorization"].removeprefix("Bearer ")


def claims_of(person: Person) -> dict[str, Any]:
    """What PyJWT reads in the person's token, checked with the published key."""
    token = token_of(person)
    keys = jwt.PyJWKSet.from_dict(person.get("/.well-known/jwks.json").get_json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=["ES256"], audience="client-service", issuer=ISSUER_URL)
    return claims


def test_a_login_gives_a_token_that_others_libraries_verify(ada: Person) -> None:
    claims = claims_of(ada)
    assert claims["sub"] == "ada"
    assert claims["exp"] - claims["iat"] == 15 * 60
    assert set(claims["scope"].split()) >= {"profiles:read", "orders:write", "orders:read", "trigger_invoicing"}


def test_no_two_tokens_are_the_same(world: World) -> None:
    person = world.person()
    assert claims_of(person.log_in("ada"))["jti"] != claims_of(person.log_in("ada"))["jti"]


def test_the_discovery_document_names_issuer_and_keys(world: World) -> None:
    document = world.person().get("/.well-known/openid-configuration").get_json()
    assert (document["issuer"], document["jwks_uri"]) == (ISSUER_URL, f"{ISSUER_URL}/.well-known/jwks.json")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"user": "ada", "password": "guess"}, 401, "wrong_login"),
        ({"user": "mallory", "password": PASSWORD}, 401, "wrong_login"),
        ({"user": "ada", "password": ""}, 401, "wrong_login"),
        ({"user": "ada", "password": "\ud800"}, 401, "wrong_login"),
        ({"user": "ada"}, 400, "bad_login"),
        ({"user": ["ada"], "password": PASSWORD}, 400, "bad_login"),
        ({"user": "ada", "password": None}, 400, "bad_login"),
        ([], 400, "bad_login"),
        *((body, 400, "bad_login") for body in NO_JSON),
    ],
)
def test_nobody_else_gets_in(world: World, body: Any, status: int, code: str) -> None:
    answer = world.person().post("/authenticate", body)
    assert (answer.status_code, answer.get_json()["code"]) == (status, code)


def test_without_a_password_nobody_gets_in(world: World) -> None:
    answer = world.person(demo_password=None).post("/authenticate", {"user": "ada", "password": ""})
    assert (answer.status_code, answer.get_json()["code"]) == (403, "login_closed")


def test_the_workers_of_a_host_have_one_key_which_only_they_read(world: World) -> None:
    found: list[UserTokens] = []

    def begin() -> None:
        found.append(UserTokens.kept_in(world.folder / "new" / "key.pem", ISSUER_URL, world.client))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({str(tokens.jwks) for tokens in found}) == 1
    key = world.folder / "new" / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "PRIVATE" not in found[0].jwks_file.read_text()


def test_a_token_of_one_worker_is_good_at_another(world: World, ada: Person) -> None:
    other = world.person()
    other.headers = ada.headers
    assert other.get("/orders").status_code == 200


@pytest.mark.parametrize("path", ["/orders", "/invoices"])
@pytest.mark.parametrize(
    ("header", "code"),
    [(None, "missing_token"), ("Bearer guess", "malformed_token"), ("Basic YWRh", "malformed_token")],
)
def test_what_is_a_users_own_needs_the_users_token(world: World, path: str, header: str | None, code: str) -> None:
    person = world.person()
    person.headers = {} if header is None else {"Authorization": header}
    answer = person.get(path)
    assert (answer.status_code, answer.get_json()["code"]) == (401, code)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_token_that_is_not_good_is_not_taken_for_none(served: World) -> None:
    person = served.person()
    assert person.get("/profiles/1").status_code == 200
    person.headers = {"Authorization": "Bearer guess"}
    assert person.get("/profiles/1").status_code == 401


def test_a_token_is_good_for_a_quarter_of_an_hour(broker: Broker, tmp_path: Path) -> None:
    clock = Clock()
    with MemoryRegistry(clock=clock) as registry, World(registry, tmp_path, broker) as world:
        ada = world.person().log_in("ada")
        clock.advance(LIFETIME)
        assert ada.get("/orders").status_code == 200
        clock.advance(LEEWAY)
        answer = ada.get("/orders")
        assert (answer.status_code, answer.get_json()["code"]) == (401, "expired")


def token_of_another_sort(world: World, person: Person, **changes: Any) -> str:
    """A token of the real issuer's, signed by PyJWT with its key, with other claims."""
    key, kid = world.settings().user_key_file.read_text(), jwt.get_unverified_header(token_of(person))["kid"]
    return jwt.encode({**claims_of(person), **changes}, key, "ES256", {"kid": kid})


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"scope": "profiles:read"}, 403, "insufficient_scope"),
        ({"scope": ""}, 403, "insufficient_scope"),
        ({"scope": "orders:write orders:read"}, 403, "insufficient_scope"),  # but not to have it invoiced
        ({"aud": "another-service"}, 401, "wrong_audience"),
        ({"iss": "https://login.example"}, 401, "wrong_issuer"),
        ({"exp": 1}, 401, "expired"),
    ],
)
def test_a_token_allows_no_more_than_it_says(
    world: World, ada: Person, changes: dict[str, Any], status: int, code: str
) -> None:
    ada.headers = {"Authorization": f"Bearer {token_of_another_sort(world, ada, **changes)}"}
    answer = ada.post("/orders", {"items": [{"itemID": "pen", "quantity": 1}]})
    assert (answer.status_code, answer.get_json()["code"]) == (status, code)


def test_a_token_by_a_key_that_the_issuer_has_not_is_refused(world: World, ada: Person) -> None:
    other = UserTokens.kept_in(world.folder / "mallory" / "key.pem", ISSUER_URL, world.client)
    ada.headers = {"Authorization": f"Bearer {other.issue('ada')}"}
    answer = ada.get("/orders")
    assert (answer.status_code, answer.get_json()["code"]) == (401, "unknown_key")


def test_an_issuer_that_the_operator_takes_out_is_refused(world: World, ada: Person) -> None:
    assert ada.get("/orders").status_code == 200
    world.registry.set_domain(minters=["client-service"], issuers=[UserIssuer("https://login.example", "x")])
    world.client.trust.refresh()  # what the background does, but now
    answer = ada.get("/orders")
    assert (answer.status_code, answer.get_json()["code"]) == (401, "wrong_issuer")


def test_the_request_token_of_a_service_is_no_users_token(world: World) -> None:
    person = world.person()
    token = world.resource.sign_request("client-service", method="GET", target="/orders")
    person.headers = {"Authorization": f"Bearer {token}"}
    assert person.get("/orders").get_json()["code"] in ("wrong_type", "malformed_token")
