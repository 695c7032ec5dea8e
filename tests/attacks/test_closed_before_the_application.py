"""Nothing of a Flask application that can tell a stranger anything runs before the check."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, request_started
from flask.sessions import SecureCookieSession, SessionInterface
from werkzeug.exceptions import Gone
from werkzeug.routing import BaseConverter

from peerseal.flask import PeerAuth
from peerseal.verify.request import Verifier
from tests.support.wire import NOW, Keys, Service

PEOPLE = ("ada", "grace")
Lookups = list[str]
Plant = Callable[[Flask, Lookups], None]


def look_up(name: str | None, lookups: Lookups) -> None:
    lookups.append(str(name))
    if name not in PEOPLE:
        abort(404)


def an_applications_value_preprocessor(app: Flask, lookups: Lookups) -> None:
    app.url_value_preprocessor(lambda _, values: look_up((values or {}).get("name"), lookups))


def a_blueprints_value_preprocessor(app: Flask, lookups: Lookups) -> None:
    blueprint = Blueprint("people", __name__)
    blueprint.url_value_preprocessor(lambda _, values: look_up((values or {}).get("name"), lookups))
    blueprint.add_url_rule("/blueprint/<name>", view_func=lambda name: name, endpoint="one")
    app.register_blueprint(blueprint)


def a_nested_blueprints_functions(app: Flask, lookups: Lookups) -> None:
    outer, inner = Blueprint("outer", __name__), Blueprint("inner", __name__)
    inner.url_value_preprocessor(lambda _, values: look_up((values or {}).get("name"), lookups))
    inner.before_request(lambda: look_up(None, lookups))
    inner.add_url_rule("/nested/<name>", view_func=lambda name: name, endpoint="one")
    outer.register_blueprint(inner)
    app.register_blueprint(outer)


def a_function_before_requests(app: Flask, lookups: Lookups) -> None:
    app.before_request(lambda: look_up("nobody", lookups))


def a_receiver_of_the_start_of_requests(app: Flask, lookups: Lookups) -> None:
    def receive(_: Flask, **__: Any) -> None:
        look_up("nobody", lookups)

    app.extensions["receiver"] = receive  # the signal holds it weakly
    request_started.connect(receive, app)


def an_overridden_preprocess_request(app: Flask, lookups: Lookups) -> None:
    class Early(type(app)):  # type: ignore[misc]
        def preprocess_request(self, *context: Any) -> Any:
            look_up("nobody", lookups)
            return super().preprocess_request(*context)

    app.__class__ = Early


def an_overridden_full_dispatch_request(app: Flask, lookups: Lookups) -> None:
    class Early(type(app)):  # type: ignore[misc]
        def full_dispatch_request(self, *context: Any) -> Any:
            look_up("nobody", lookups)
            return super().full_dispatch_request(*context)

    app.__class__ = Early


PLANTS = [
    an_applications_value_preprocessor,
    a_blueprints_value_preprocessor,
    a_nested_blueprints_functions,
    a_function_before_requests,
    a_receiver_of_the_start_of_requests,
    an_overridden_preprocess_request,
    an_overridden_full_dispatch_request,
]
PATHS = ("/people/{}", "/blueprint/{}", "/nested/{}", "/number/{}", "/slash/{}", "/{}")


def closed(app: Flask, pairs: Keys, **options: Any) -> PeerAuth:
    verifier = Verifier(pairs, audience="callee", allow={"caller": {"read"}}, clock=lambda: NOW)
    return PeerAuth(app, verifier=verifier, **options)


def people() -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/people/<name>", view_func=lambda name: name, endpoint="person")
    app.add_url_rule("/number/<int:number>", view_func=lambda number: str(number), endpoint="number")
    app.add_url_rule("/slash/<name>/", view_func=lambda name: name, endpoint="slash")
    app.register_error_handler(404, lambda _: ("not here", 404))
    app.register_error_handler(Exception, lambda _: ("something else", 418))
    return app


def answers(app: Flask, headers: dict[str, str] | None = None) -> set[tuple[int, bytes]]:
    """What a stranger is told of every path, for names that are there and others."""
    client = app.test_client()
    targets = [path.format(name) for path in PATHS for name in (*PEOPLE, "nobody", "7")]
    replies = [client.open(target, method=method, headers=headers) for target in targets for method in ("GET", "POST")]
    return {(reply.status_code, reply.data) for reply in replies}


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("earlier", [True, False], ids=["planted first", "planted later"])
def test_a_stranger_learns_no_name_and_runs_nothing(plant: Plant, earlier: bool) -> None:
    app, lookups = people(), Lookups()
    if earlier:
        plant(app, lookups)
    closed(app, Keys())
    if not earlier:
        plant(app, lookups)
    for headers in (None, {"Authorization": "Bearer a.b.c"}, {"Authorization": "Basic eDp5"}):
        assert [status for status, _ in answers(app, headers)] == [401], "one answer for all paths"
    assert lookups == []


@pytest.mark.parametrize("plant", PLANTS)
def test_a_proven_caller_runs_it_once_and_a_checked_token_is_not_checked_twice(plant: Plant) -> None:
    pairs, app, lookups = Keys(), people(), Lookups()
    caller = Service("caller", pairs, now=NOW)
    plant(app, lookups)
    auth = closed(app, pairs)
    targets: dict[Plant, str] = {a_blueprints_value_preprocessor: "/blueprint/ada"}
    targets[a_nested_blueprints_functions] = "/nested/ada"
    target = targets.get(plant, "/people/ada")
    token = caller.sign_request("callee", target=target)
    app.test_client().get(target, headers={"Authorization": f"Bearer {token}"})
    assert lookups
    assert not auth.refusals


@pytest.mark.parametrize("plant", PLANTS)
def test_where_it_reports_only_everything_runs_as_without_it(plant: Plant) -> None:
    app, bare, lookups = people(), people(), Lookups()
    plant(app, lookups)
    plant(bare, [])
    auth = closed(app, Keys(), report_only=True)
    assert answers(app) == answers(bare)
    assert lookups
    assert auth.refusals["missing_token"] == len(PATHS) * 4 * 2, "each call once"


def test_a_public_view_has_its_preprocessors_and_no_check() -> None:
    app, lookups = people(), Lookups()
    auth = closed(app, Keys())
    an_applications_value_preprocessor(app, lookups)
    app.add_url_rule("/open/<name>", view_func=auth.public(lambda name: name), endpoint="open")
    assert app.test_client().get("/open/ada").data == b"ada"
    assert app.test_client().get("/open/nobody").data == b"not here"
    assert lookups == ["ada", "nobody"]


class Known(BaseConverter):
    """A converter that knows who is there."""

    def to_python(self, value: str) -> str:
        look_up(value, [])
        return value


def test_a_converter_that_aborts_tells_a_stranger_nothing() -> None:
    app = people()
    app.url_map.converters["known"] = Known
    app.add_url_rule("/known/<known:name>", view_func=lambda name: name, endpoint="known")
    closed(app, Keys())
    client = app.test_client()
    assert {client.get(f"/known/{name}").status_code for name in (*PEOPLE, "nobody")} == {401}


def test_a_host_that_is_not_trusted_is_told_to_proven_callers_only() -> None:
    pairs, app = Keys(), people()
    caller = Service("caller", pairs, now=NOW)
    app.config["TRUSTED_HOSTS"] = ["wire.test"]
    closed(app, pairs)
    client = app.test_client()
    assert client.get("/people/ada", base_url="http://other.test").status_code == 401
    token = caller.sign_request("callee", target="/people/ada")
    headers = {"Authorization": f"Bearer {token}"}
    assert client.get("/people/ada", base_url="http://other.test", headers=headers).status_code == 418, "its own answer"


class Sessions(SessionInterface):
    """Sessions that are looked up for every request, as the documentation says."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open_session(self, app: Flask, request: Any) -> SecureCookieSession:
        self.opened.append(request.path)
        return SecureCookieSession()

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        """Nothing is kept."""


def test_what_runs_earlier_is_what_the_documentation_names() -> None:
    app, early = people(), Lookups()
    app.url_map.converters["known"] = Known
    app.session_interface = sessions = Sessions()
    inner = app.wsgi_app

    def middleware(environ: Any, start_response: Any) -> Any:
        early.append("middleware")
        return inner(environ, start_response)

    app.wsgi_app = middleware  # type: ignore[method-assign]
    closed(app, Keys())
    assert app.test_client().get("/people/ada").status_code == 401
    assert sessions.opened == ["/people/ada"]
    assert early == ["middleware"]


def test_an_error_within_the_check_is_no_ones_else_to_answer() -> None:
    """A fault of a key source is a 500 and opens nothing, whatever handlers there are."""

    class Broken(Keys):
        def policy(self, service_id: str) -> None:
            raise Gone

    pairs, app, lookups = Broken(), people(), Lookups()
    caller = Service("caller", pairs, now=NOW)
    an_applications_value_preprocessor(app, lookups)
    closed(app, pairs)
    token = caller.sign_request("callee", target="/people/ada")
    assert app.test_client().get("/people/ada", headers={"Authorization": f"Bearer {token}"}).status_code != 200
    assert lookups == []
