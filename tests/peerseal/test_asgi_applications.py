"""Applications under the ASGI adapter: their errors, their threads, and those of Starlette's."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Mount, Route

from peerseal import Identity, User
from peerseal.asgi import PUBLIC, Need, current_peer, require_scope
from peerseal.errors import TrustUnavailable
from peerseal.testing import MemoryRegistry
from tests.support.asgi import Callee, signed, user


def token_for_ada(client: Identity) -> str:
    proven = User("ada", "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    return client.mint_transaction(proven, scope=["read"]).carry()


async def fails(*_: Any) -> None:
    raise ZeroDivisionError(user())


async def asks_and_fails(*_: Any) -> None:
    raise TrustUnavailable("a call that could not be signed")


def test_an_applications_error_is_its_own_and_leaves_nobody(registry: MemoryRegistry, client: Identity) -> None:
    token = token_for_ada(client)
    callee = Callee(registry, fails)

    async def called() -> str | None:
        headers = [(name.encode(), value.encode()) for name, value in signed(client, txn_token=token).items()]
        scope = {"type": "http", "method": "GET", "path": "/x", "raw_path": b"/x", "headers": headers}
        with pytest.raises(ZeroDivisionError, match="ada"):
            await callee.auth(scope, only_a_request, nothing)
        return user()

    assert asyncio.run(called()) is None
    assert callee.auth.refusals == {}


async def only_a_request() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def nothing(_: Any) -> None:
    return


def test_an_outgoing_call_that_cannot_be_signed_is_answered_as_flask_does(
    registry: MemoryRegistry, client: Identity
) -> None:
    answer = Callee(registry, asks_and_fails).call(headers=signed(client))
    assert (answer.status, answer.json["code"]) == (503, "trust_unavailable")


def in_a_thread(_: Request) -> JSONResponse:
    return JSONResponse({"caller": current_peer().service, "user": user()})


async def in_the_loop(_: Request) -> JSONResponse:
    return JSONResponse({"user": user(), "from a thread": await asyncio.to_thread(user)})


def late_in_a_thread(_: Request) -> JSONResponse:
    require_scope("admin")
    return JSONResponse({})


async def late_in_the_loop(_: Request) -> JSONResponse:
    require_scope("read", transaction=True)
    return JSONResponse({})


ROUTES = [
    Route("/thread", in_a_thread),
    Route("/loop", in_the_loop),
    Route("/admin", in_a_thread),
    Route("/late-in-a-thread", late_in_a_thread),
    Route("/late-in-the-loop", late_in_the_loop),
]


def test_starlettes_handlers_know_caller_and_user_wherever_they_run(registry: MemoryRegistry, client: Identity) -> None:
    callee = Callee(registry, Starlette(routes=ROUTES))
    token = token_for_ada(client)
    assert callee.call(target="/thread", headers=signed(client, target="/thread", txn_token=token)).json == {
        "caller": "client",
        "user": "ada",
    }
    assert callee.call(target="/loop", headers=signed(client, target="/loop", txn_token=token)).json == {
        "user": "ada",
        "from a thread": "ada",
    }
    assert callee.call(target="/thread", headers=signed(client, target="/thread")).json["user"] is None


def test_what_starlettes_handlers_refuse_is_no_500(registry: MemoryRegistry, client: Identity) -> None:
    callee = Callee(registry, Starlette(routes=ROUTES))
    for path, status, code in (
        ("/late-in-a-thread", 403, "insufficient_scope"),
        ("/late-in-the-loop", 401, "bad_transaction_token"),
    ):
        answer = callee.call(target=path, headers=signed(client, target=path))
        assert (answer.status, answer.json["code"]) == (status, code)


def test_a_mounted_gate_tells_needs_below_its_mount(registry: MemoryRegistry, client: Identity) -> None:
    gate = Callee(registry, Starlette(routes=ROUTES))
    gate.auth, inner = Starlette(routes=[Mount("/v1", gate.auth)]), gate.auth  # type: ignore[assignment]
    for path, status in (("/v1/thread", 200), ("/v1/admin", 403), ("/v1/admin%0A", 403)):
        assert gate.call(target=path, headers=signed(client, target=path)).status == status
    assert inner.refusals == {"insufficient_scope": 2}


# ---- root paths of a framework's own


class StarletteOfItsOwnRoot(Starlette):
    """Does with a root path what FastAPI does, which not every environment has."""

    def __init__(self, routes: list[BaseRoute], root_path: str = "") -> None:
        super().__init__(routes=routes)
        self.root_path = root_path

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.root_path:
            scope["root_path"] = self.root_path
        await super().__call__(scope, receive, send)


Framework = Callable[..., Any]


@pytest.fixture(params=["starlette", "fastapi"])
def framework(request: pytest.FixtureRequest) -> Framework:
    """An application of these routes, perhaps with a root path of its own."""
    if request.param == "starlette":
        return StarletteOfItsOwnRoot
    return FastAPI


def admin(_: Request) -> JSONResponse:
    return JSONResponse("what only admins read")


ADMIN: list[BaseRoute] = [Route("/x", in_a_thread), Route("/admin/keys", admin)]
NEEDS = {"/": Need("read"), "/admin": Need("admin"), "/api/admin": PUBLIC, "/v1/admin": Need("admin")}

MOUNTED: dict[str, Callable[[Framework], Any]] = {
    "itself": lambda framework: framework(routes=ADMIN, root_path="/api"),
    "in middleware": lambda framework: GZipMiddleware(framework(routes=ADMIN, root_path="/api")),
    "mounted at the root": lambda framework: Starlette(
        routes=[Mount("/", framework(routes=ADMIN, root_path="/api"))],
    ),
    "mounted, in middleware": lambda framework: framework(
        routes=[Mount("", framework(routes=ADMIN, root_path="/api"), middleware=[Middleware(GZipMiddleware)])]
    ),
}


@pytest.mark.filterwarnings("ignore:The `root_path` parameter")
@pytest.mark.parametrize("app", MOUNTED.values(), ids=MOUNTED)
def test_a_root_path_of_the_frameworks_own_opens_nothing(
    registry: MemoryRegistry, client: Identity, framework: Framework, app: Callable[[Framework], Any]
) -> None:
    callee = Callee(registry, app(framework), needs=NEEDS, external_prefix="/api")
    for path in ("/admin/keys", "/api/admin/keys"):
        assert callee.call(target=path, headers=signed(client, target=f"/api{path}")).status == 403
    assert callee.call(target="/api/admin/keys").status == 401, "nor to strangers, though the path is public"
    assert callee.call(target="/x", headers=signed(client, target="/api/x")).json["caller"] == "client"
    assert callee.call(target="/apix", headers=signed(client, target="/api/apix")).status == 404


@pytest.mark.filterwarnings("ignore:The `root_path` parameter")
def test_a_function_is_not_asked_what_a_path_needs_that_is_read_otherwise(
    registry: MemoryRegistry, client: Identity, framework: Framework
) -> None:
    asked: list[str] = []

    def needs(_: str, path: str) -> Need:
        asked.append(path)
        return PUBLIC

    callee = Callee(registry, framework(routes=ADMIN, root_path="/api"), needs=needs)
    assert [callee.call(target=path).status for path in ("/api/admin/keys", "/admin/keys")] == [401, 200]
    assert asked == ["/admin/keys"]


@pytest.mark.filterwarnings("ignore:The `root_path` parameter")
def test_a_root_path_that_server_or_mount_say_as_well_is_served_as_before(
    registry: MemoryRegistry, client: Identity, framework: Framework
) -> None:
    served = Callee(registry, framework(routes=ADMIN, root_path="/api"), needs=NEEDS)
    for path, status in (("/api/x", 200), ("/api/admin/keys", 403)):
        assert served.call(target=path, headers=signed(client, target=path), root_path="/api").status == status
    sub = framework(routes=ADMIN, root_path="/v1")
    mounted = Callee(registry, framework(routes=[Mount("/v1", sub), Route("/v2/x", in_a_thread)]), needs=NEEDS)
    for path, status in (("/v1/x", 200), ("/v1/admin/keys", 403), ("/v2/x", 200)):
        assert mounted.call(target=path, headers=signed(client, target=path)).status == status


def test_a_folder_that_another_framework_calls_its_root_path_is_none(
    registry: MemoryRegistry, client: Identity
) -> None:
    class LikeQuart:
        """Whose ``root_path`` says where the code is: in an image perhaps ``/app``."""

        root_path = "/app"

        async def __call__(self, *call: Any) -> None:
            await Starlette(routes=[Route("/app/x", in_a_thread)])(*call)

    callee = Callee(registry, LikeQuart(), needs=NEEDS)
    assert callee.call(target="/app/x", headers=signed(client, target="/app/x")).status == 200
