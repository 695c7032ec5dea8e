"""Paths and methods that an application may read otherwise than the check: they reach no need of another path."""

from typing import Any

import pytest

from peerseal.asgi_routes import AppNeeds
from peerseal.errors import ConfigurationError
from peerseal.path_needs import ALWAYS_REFUSED, PathNeeds
from peerseal.refusals import PUBLIC, Need

ADMIN = Need("admin")


@pytest.mark.parametrize(
    "path",
    [
        "/adm\udcffin",  # Bottle leaves out what is no UTF-8, and serves /admin
        "/\udcffadmin",
        f"/adm{chr(0xFFFD)}in",  # what ASGI servers make of such bytes
        "/@@admin",  # Pyramid's traversal serves /admin
        "/x/@@admin",
        "//admin",
        "/x/../admin",
        "/x/..;/admin",
        "\\admin",
        "http://127.0.0.1/admin",  # an absolute target, of which Quart routes the path
        "admin",
    ],
)
def test_a_path_that_an_application_may_read_as_another_is_refused_at_public_paths_too(path: str) -> None:
    assert PathNeeds({"/admin": ADMIN, "/": PUBLIC}).need("GET", path) is ALWAYS_REFUSED


@pytest.mark.parametrize("path", ["/caf\u00e9", "/@scope/name", "/a@@b", "/a.b/..c", "/"])
def test_other_paths_have_the_need_of_their_trunk(path: str) -> None:
    assert PathNeeds({"/admin": ADMIN, "/": PUBLIC}).need("GET", path) is PUBLIC


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "http://127.0.0.1/admin"),
        ("GET", "admin"),
        ("OPTIONS", "*"),
        ("post", "/orders"),  # Django and Bottle run POST
        ("Post", "/orders"),
        ("", "/orders"),
        ("PO ST", "/orders"),
    ],
)
def test_a_function_is_not_asked_about_what_an_application_reads_otherwise(method: str, path: str) -> None:
    asked: list[str] = []

    def needs(method: str, path: str) -> Need:
        asked.append(path)
        return PUBLIC

    assert PathNeeds(needs).need(method, path) is ALWAYS_REFUSED
    assert asked == []


@pytest.mark.parametrize("path", ["", "/", "/orders", "//orders"])
def test_a_function_is_asked_about_each_path_below_the_root(path: str) -> None:
    assert PathNeeds(lambda method, path: ADMIN if path == "/admin" else PUBLIC).need("M-SEARCH", path) is PUBLIC


class _Within:
    """A middleware."""

    def __init__(self, app: Any) -> None:
        self.app = app


Litestar = type("Litestar", (), {"__module__": "litestar.app"})


@pytest.mark.parametrize("app", [Litestar(), _Within(Litestar())], ids=["bare", "in a middleware"])
def test_litestar_has_one_need_for_all_paths(app: Any) -> None:
    with pytest.raises(ConfigurationError, match="Litestar"):
        AppNeeds(app, {"/admin": ADMIN, "/": PUBLIC})
    assert AppNeeds(app, {"/": ADMIN}).need({"path": "/healthz/api/admin", "root_path": "/api"}) is ADMIN
    assert AppNeeds(app, lambda method, path: ADMIN).need({"path": "/admx"}) is ADMIN
