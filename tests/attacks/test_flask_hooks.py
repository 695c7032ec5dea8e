"""What an application lets Flask do before its views: none of it runs for a stranger, so none tells what is there."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, g
from werkzeug.test import TestResponse

from peerseal.flask import PeerAuth
from peerseal.verify.request import Verifier
from tests.support.wire import NOW, Keys, Service

CUSTOMERS = {"ada", "grace"}


@pytest.fixture
def ran() -> list[str]:
    """Which hooks ran."""
    return []


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def caller(keys: Keys) -> Service:
    return Service("caller", keys, now=NOW)


@pytest.fixture(params=["closed at once", "closed last"])
def app(request: pytest.FixtureRequest, keys: Keys, ran: list[str]) -> Flask:
    """An application with every hook that Flask has for the time before a view; PeerAuth comes first, or last."""
    app = Flask(__name__)
    verifier = Verifier(keys, audience="callee", allow={"caller": {"read"}}, clock=lambda: NOW)
    if request.param == "closed at once":
        PeerAuth(app, verifier=verifier)
    add_hooks(app, ran)
    if request.param == "closed last":
        PeerAuth(app, verifier=verifier)
    return app


def add_hooks(app: Flask, ran: list[str]) -> None:
    blueprint = Blueprint("shop", __name__, url_prefix="/shop")

    def known_customer(what: str) -> Callable[[str | None, dict[str, Any] | None], None]:
        def pull(_: str | None, values: dict[str, Any] | None) -> None:
            ran.append(what)
            g.customer = (values or {}).get("customer")
            if g.customer is not None and g.customer not in CUSTOMERS:
                abort(404)

        return pull

    def before(what: str) -> Callable[[], None]:
        return lambda: ran.append(what)

    app.url_value_preprocessor(known_customer("application's values"))
    app.before_request(before("application's before"))
    blueprint.url_value_preprocessor(known_customer("blueprint's values"))
    blueprint.before_request(before("blueprint's before"))
    blueprint.before_app_request(before("blueprint's before, of the application"))
    blueprint.app_url_value_preprocessor(known_customer("blueprint's values, of the application"))

    @blueprint.get("/<customer>/orders")
    def orders(customer: str) -> str:
        return customer

    app.register_blueprint(blueprint)


def stranger(app: Flask, path: str) -> TestResponse:
    return app.test_client().get(path)


@pytest.mark.parametrize("path", ["/shop/ada/orders", "/shop/nobody/orders", "/shop/nowhere", "/nowhere", "/shop"])
def test_a_stranger_gets_one_answer_whoever_is_known(app: Flask, ran: list[str], path: str) -> None:
    answer = stranger(app, path)
    assert (answer.status_code, answer.get_json()["code"]) == (401, "missing_token")
    assert ran == []


def test_a_caller_gets_every_hook_as_ever(app: Flask, caller: Service, ran: list[str]) -> None:
    def called(path: str) -> int:
        token = caller.sign_request("callee", method="GET", target=path)
        return app.test_client().get(path, headers={"Authorization": f"Bearer {token}"}).status_code

    assert called("/shop/ada/orders") == 200
    assert len(ran) == 6
    assert called("/shop/nobody/orders") == 404


def test_a_subclass_with_hooks_of_its_own_is_closed_too(keys: Keys, ran: list[str]) -> None:
    class Eager(Flask):
        def preprocess_request(self, *arguments: Any) -> Any:
            ran.append("eager")
            return super().preprocess_request(*arguments)

    app = Eager(__name__)
    PeerAuth(app, verifier=Verifier(keys, audience="callee", allow={}, clock=lambda: NOW))
    assert stranger(app, "/").status_code == 401
    assert ran == []
