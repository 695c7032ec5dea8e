"""Logins by way of client-service, the issuer's tokens that any OIDC library reads, and what becomes of those that are
not good."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from flask import Flask
from joserfc.jwk import ECKey

from client_service.login import AT_ONCE
from demo.containers.certificates import main as make_certificates
from demo.identity_provider.tokens import LIFETIME
from peerseal.protocol.policies import UserIssuer
from peerseal.protocol.tokens.claims import LEEWAY
from peerseal.testing import Clock, MemoryRegistry
from tests.examples.world import ISSUER_URL, NO_JSON, PASSWORD, Person, World, served_at
from tests.support.brokers import Broker
from tests.support.processes import free_port

AS_JSON = {"Content-Type": "application/json"}


def token_of(person: Person) -> str:
    return person.headers["Authorization"].removeprefix("Bearer ")


def claims_of(world: World, person: Person) -> dict[str, Any]:
    """What PyJWT reads in the person's token, checked with the issuer's published key."""
    token = token_of(person)
    keys = jwt.PyJWKSet.from_dict(world.login.test_client().get("/.well-known/jwks.json").get_json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=["ES256"], audience="client-service", issuer=ISSUER_URL)
    return claims


def test_a_login_gives_a_token_that_others_libraries_verify(world: World, ada: Person) -> None:
    claims = claims_of(world, ada)
    assert claims["sub"] == "ada"
    assert claims["exp"] - claims["iat"] == 15 * 60
    assert set(claims["scope"].split()) >= {"profiles:read", "orders:write", "orders:read", "trigger_invoicing"}


def test_no_two_tokens_are_the_same(world: World) -> None:
    person = world.person()
    assert claims_of(world, person.log_in("ada"))["jti"] != claims_of(world, person.log_in("ada"))["jti"]


@pytest.mark.parametrize("path", ["/.well-known/jwks.json", "/.well-known/openid-configuration", "/token"])
def test_the_edge_issues_nothing_itself(world: World, path: str) -> None:
    assert world.person().get(path).status_code == 404


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


def test_a_body_larger_than_any_login_is_not_read(world: World) -> None:
    unread = io.BytesIO(b'{"user": "ada", "password": "' + b"x" * 2 * 1024 * 1024 + b'"}')
    stranger = world.client_app().test_client()
    answer = stranger.post("/authenticate", input_stream=unread, content_length=len(unread.getvalue()), headers=AS_JSON)
    assert (answer.status_code, unread.tell()) == (413, 0)


def test_without_an_identity_provider_a_login_names_the_setting_that_is_missing(world: World) -> None:
    answer = world.person(login_url=None).post("/authenticate", {"user": "ada", "password": PASSWORD})
    assert (answer.status_code, answer.get_json()["code"]) == (404, "no_login")
    assert "CLIENT_LOGIN_URL" in answer.get_json()["detail"]


def test_while_the_identity_provider_is_away_a_login_says_so_and_who_is_logged_in_goes_on(
    world: World, ada: Person
) -> None:
    edge = world.person(login_url=f"http://127.0.0.1:{free_port()}")
    edge.headers = ada.headers
    answer = edge.post("/authenticate", {"user": "ada", "password": PASSWORD})
    assert (answer.status_code, answer.get_json()["code"]) == (503, "login_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert edge.order({"itemID": "pen", "quantity": 1})["amount"] == 250


def test_a_login_over_https_is_checked_with_the_certificates_in_the_settings(world: World, tmp_path: Path) -> None:
    make_certificates(tmp_path, datetime.now(UTC))
    port, login = free_port(), {"user": "ada", "password": PASSWORD}
    url = f"https://127.0.0.1:{port}"
    with served_at(port, world.login, tmp_path / "login/login.pem"):
        known = world.person(login_url=url, login_ca_file=tmp_path / "authority/authority.pem")
        assert known.post("/authenticate", login).status_code == 200
        assert world.person(login_url=url).post("/authenticate", login).get_json()["code"] == "login_unavailable"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        *(("{", 200), ("[]", 200), ('{"token": "t"}', 200), ('{"access_token": 1}', 200), ("", 500), ("", 302)),
        pytest.param("[" * 100_000, 200, id="nested too deeply"),
    ],
)
def test_an_identity_provider_that_gives_no_token_lets_nobody_in(world: World, body: str, status: int) -> None:
    broken, port = Flask("broken"), free_port()
    broken.add_url_rule("/authenticate", "login", lambda: (body, status, {"Location": "/"}), methods=["POST"])
    with served_at(port, broken):
        answer = world.person(login_url=f"http://127.0.0.1:{port}").post(
            "/authenticate", {"user": "a", "password": "b"}
        )
    assert (answer.status_code, answer.get_json()["code"]) == (503, "login_unavailable")


def test_an_identity_provider_that_hangs_holds_a_few_threads_only(world: World, ada: Person) -> None:
    hanging, port, end, held = Flask("hanging"), free_port(), threading.Event(), threading.Semaphore(0)

    def login() -> str:
        held.release()
        end.wait(30)
        return ""

    hanging.add_url_rule("/authenticate", "login", login, methods=["POST"])
    app, body = world.client_app(login_url=f"http://127.0.0.1:{port}"), {"user": "ada", "password": PASSWORD}
    with served_at(port, hanging), ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(app.test_client().post, "/authenticate", json=body) for _ in range(AT_ONCE)]
        assert all(held.acquire(timeout=10) for _ in waiting)
        one_more = app.test_client().post("/authenticate", json=body)
        assert (one_more.status_code, one_more.get_json()["code"]) == (503, "login_unavailable")
        assert app.test_client().get("/orders", headers=ada.headers).status_code == 200
        end.set()
        assert {answer.result().get_json()["code"] for answer in waiting} == {"login_unavailable"}
        assert held.acquire(blocking=False) is False, "the one more never went out"
        assert app.test_client().post("/authenticate", json=body).status_code == 503
        assert held.acquire(timeout=10), "there is room again"


def test_neither_password_nor_token_of_a_login_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    person = world.person().log_in("ada")
    person.post("/authenticate", {"user": "ada", "password": "a-wrong-guess"})
    world.person(login_url=f"http://127.0.0.1:{free_port()}").post(
        "/authenticate", {"user": "ada", "password": PASSWORD}
    )
    assert "cannot be reached" in caplog.text
    assert [secret for secret in (PASSWORD, "a-wrong-guess", token_of(person)) if secret in caplog.text] == []


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
    key, kid = world.login_key.read_text(), jwt.get_unverified_header(token_of(person))["kid"]
    return jwt.encode({**claims_of(world, person), **changes}, key, "ES256", {"kid": kid})


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
    mallory = ECKey.generate_key("P-256")
    forged = jwt.encode(
        claims_of(world, ada), mallory.as_pem(private=True).decode(), "ES256", {"kid": mallory.thumbprint()}
    )
    ada.headers = {"Authorization": f"Bearer {forged}"}
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
