"""client-service as people see it."""

from pathlib import Path
from typing import Any

import pytest

from client_service.settings import Settings
from demo.altering import altering
from peerseal.errors import ConfigurationError
from tests.examples.world import NO_JSON, PEN, SECRET, Person, World

ROUTES = {
    ("GET", "/"),
    ("GET", "/my-public-credentials"),
    ("POST", "/refresh-my-credentials"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("POST", "/authenticate"),
    ("GET", "/profiles/<id>"),
    ("GET", "/invoices"),
    ("GET", "/cases"),
    ("POST", "/orders"),
    ("GET", "/orders"),
    ("GET", "/approvals"),
    ("POST", "/approvals/<id>"),
}


def test_the_index_lists_every_route_with_a_line_to_try(world: World) -> None:
    app = world.client_app()
    listed = app.test_client().get("/").get_json()["routes"]
    assert {(route["method"], route["path"]) for route in listed} == ROUTES
    assert {route["path"] for route in listed} == {rule.rule for rule in app.url_map.iter_rules()} - {
        "/static/<path:filename>"
    }
    assert all(route["what"] and route["try"].startswith(f"http {route['method']} http://") for route in listed)


@pytest.mark.parametrize("given", [None, "", "wrong", "ünïcödé"])
def test_only_the_operator_has_the_key_replaced(world: World, given: str | None) -> None:
    headers = {} if given is None else {"Operator-Secret": given}
    client = world.client_app().test_client()
    assert client.post("/refresh-my-credentials", headers=headers).get_json()["code"] == "operator_secret_required"
    assert client.post("/refresh-my-credentials", headers={"Operator-Secret": SECRET}).status_code == 200


def test_a_profile_says_for_whom_it_was_asked(served: World) -> None:
    person = served.person()
    assert person.get("/profiles/1").get_json()["user"] is None
    profile = person.log_in("grace").get("/profiles/1").get_json()
    assert (profile["caller"], profile["user"]) == ("client-service", "grace")
    person.headers = {}
    assert person.get("/profiles/1").get_json()["user"] is None


def test_an_answer_that_was_altered_is_refused_where_answers_must_be_signed(served: World) -> None:
    with altering(f"http://127.0.0.1:{served.resource_port}", b"Ada Lovelace", b"Mallory") as proxy:
        careless = served.person(resource_url=proxy)
        careful = served.person(resource_url=proxy, require_signed_response=True)
        assert careless.get("/profiles/1").get_json()["name"] == "Mallory"
        refused = careful.get("/profiles/1")
        assert careful.get("/profiles/2").get_json()["name"] == "Grace Hopper"
    assert (refused.status_code, "Mallory" in refused.text) == (502, False)
    assert (refused.get_json()["code"], refused.get_json()["reason"]) == ("answer_refused", "wrong_binding")


def test_answers_must_be_signed_where_the_environment_says_so() -> None:
    assert not Settings.from_env({}).require_signed_response
    assert Settings.from_env({"CLIENT_REQUIRE_SIGNED_RESPONSE": "on"}).require_signed_response


def test_resource_service_logs_who_asked_for_a_profile_and_why(served: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "resource_service")
    served.person().log_in("grace").get("/profiles/1")
    assert "profile 1 told to client-service for user 'grace', purpose 'profile page'" in caplog.text


def test_a_service_that_may_not_speak_for_users_says_so(served: World) -> None:
    person = served.person().log_in("ada")
    served.registry.set_domain(minters=[], issuers=served.registry.settings().issuers)
    answer = person.get("/profiles/1")
    assert (answer.status_code, answer.get_json()["code"]) == (503, "caller_not_allowed")


def test_while_resource_service_is_away_its_routes_fail_at_once_and_orders_go_on(ada: Person) -> None:
    answers = [ada.get("/profiles/1") for _ in range(4)]
    assert {answer.status_code for answer in answers} == {503}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
    codes = [answer.get_json()["code"] for answer in answers]
    assert codes[0] == "resource_unreachable"
    assert codes[-1] == "circuit_open"
    assert ada.order(PEN)["amount"] == 500


def test_an_order_is_priced(ada: Person) -> None:
    placed = ada.order(PEN, {"itemID": "telescope", "quantity": 1})
    assert placed["items"] == [
        {"itemID": "pen", "quantity": 2, "price": 250},
        {"itemID": "telescope", "quantity": 1, "price": 129_900},
    ]
    assert placed["amount"] == 130_400


def test_orders_are_the_users_own_the_newest_first(world: World, ada: Person) -> None:
    first, second = ada.order(PEN), ada.order(PEN, PEN)
    grace = world.person().log_in("grace")
    grace.order(PEN)
    assert ada.get("/orders").get_json()["orders"] == [second, first]
    assert len(grace.get("/orders").get_json()["orders"]) == 1


@pytest.mark.parametrize(
    "order",
    [
        None,
        [],
        {},
        {"items": []},
        {"items": {}},
        *NO_JSON,
        {"items": [PEN] * 101},
        {"items": [PEN], "userID": "grace"},
        {"items": [PEN], "amount": 1},
        {"items": [{**PEN, "price": 1}]},
        {"items": [{**PEN, "userID": "grace"}]},
        {"items": [{"itemID": "pen"}]},
        {"items": [{"itemID": "unheard-of", "quantity": 1}]},
        {"items": [{"itemID": ["pen"], "quantity": 1}]},
        *({"items": [{"itemID": "pen", "quantity": quantity}]} for quantity in (0, -1, 1001, 1.0, "1", True, None)),
    ],
)
def test_an_order_with_anything_else_in_it_is_refused_and_nothing_stored(ada: Person, order: Any) -> None:
    answer = ada.post("/orders", order)
    assert (answer.status_code, answer.get_json()["code"]) == (400, "bad_order")
    assert ada.get("/orders").get_json()["orders"] == []


def test_nobody_orders_without_a_users_token(world: World) -> None:
    answer = world.person().post("/orders", {"items": [PEN]})
    assert (answer.status_code, answer.get_json()["code"]) == (401, "missing_token")


def test_settings_come_from_the_environment_and_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    (tmp_path / "broker.json").write_text('{"security.protocol": "SSL"}')
    settings = Settings.from_env(
        {
            "PEERSEAL_KEY_DIR": str(tmp_path / "keys"),
            "CLIENT_OPERATOR_SECRET_FILE": str(tmp_path / "secret"),
            "BROKER_CONFIG_FILE": str(tmp_path / "broker.json"),
        }
    )
    assert settings.state == tmp_path
    assert settings.operator_secret == "from a file"
    assert settings.broker_settings == {"security.protocol": "SSL"}
    assert settings.login_url is None
    assert "from a file" not in repr(settings)


@pytest.mark.parametrize("url", ["identity-provider", "ftp://identity-provider", "//identity-provider"])
def test_a_login_url_that_is_none_is_said_at_the_start(url: str) -> None:
    with pytest.raises(ConfigurationError, match=f"CLIENT_LOGIN_URL='{url}': expected a URL"):
        Settings.from_env({"CLIENT_LOGIN_URL": url})


def test_certificates_for_the_login_that_are_not_there_end_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"CLIENT_LOGIN_CA_FILE=.*ca\.pem"):
        Settings.from_env({"CLIENT_LOGIN_CA_FILE": str(tmp_path / "ca.pem")})


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_settings_of_the_broker_that_are_none_are_said_to_be(tmp_path: Path, content: str) -> None:
    (tmp_path / "broker.json").write_text(content)
    with pytest.raises(ConfigurationError):
        Settings.from_env({"BROKER_CONFIG_FILE": str(tmp_path / "broker.json")})


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", "/nowhere", "not_found"), ("PATCH", "/orders", "method_not_allowed")]
)
def test_what_no_route_takes_is_answered_with_a_problem(world: World, method: str, path: str, code: str) -> None:
    answer = world.client_app().test_client().open(path, method=method)
    assert answer.mimetype == "application/problem+json"
    assert answer.get_json()["code"] == code
    assert ("Allow" in answer.headers) == (answer.status_code == 405)
