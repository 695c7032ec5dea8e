"""The applications that uvicorn serves for the benchmarks, and one that PyJWT protects as Starlette's docs say."""

import os
from collections.abc import Sequence
from typing import Any

import jwt
from jwt import PyJWKClient
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser, requires
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import peerseal
from benchmarks.apps import SCOPE
from benchmarks.raw import raw_verify_once
from peerseal.asgi import PUBLIC, App, Need, PeerAuth
from peerseal.runtime.settings import SettingsReader


async def profile(request: Request) -> JSONResponse:
    """A small answer."""
    return JSONResponse({"id": request.path_params["id"], "name": "Ada Lovelace", "city": "London"})


async def ready(_: Request) -> JSONResponse:
    """Open in each application."""
    return JSONResponse({"ready": True})


def open_route() -> Starlette:
    """One small route, open to all callers."""
    return _application(profile)


def protected_route() -> App:
    """The same route, protected, for the service that the environment names, with the guard of the host."""
    identity = peerseal.Identity.from_env().start()
    needs = {"/profiles": Need(SCOPE), "/ready": PUBLIC}
    return PeerAuth(open_route(), identity, allow={"client-service": {SCOPE}}, needs=needs)


def route_with_raw_verify() -> Starlette:
    """The same, open, with one raw RSA-2048 verify before every answer and nothing else."""
    verify = raw_verify_once()

    async def verified(request: Request) -> JSONResponse:
        verify()
        return await profile(request)

    return _application(verified)


class _Bearer(AuthenticationBackend):
    """A backend of Starlette's AuthenticationMiddleware with PyJWT's PyJWKClient."""

    def __init__(self) -> None:
        settings = SettingsReader(os.environ)
        self._keys = PyJWKClient(settings.required("BENCH_KEYS_URL"), cache_keys=True)
        self._audience = settings.required("BENCH_AUDIENCE")

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        scheme, _, token = conn.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer":
            return None
        try:
            key = self._keys.get_signing_key_from_jwt(token)
            claims = jwt.decode(token, key, algorithms=["RS256"], audience=self._audience, leeway=30)
        except jwt.PyJWTError as error:
            raise AuthenticationError("invalid token") from error
        return AuthCredentials(["authenticated"]), SimpleUser(claims["iss"])


def pyjwt_route() -> Starlette:
    """The same route, protected by PyJWT in Starlette's own middleware."""
    return _application(requires("authenticated")(profile), [Middleware(AuthenticationMiddleware, backend=_Bearer())])


def _application(endpoint: Any, middleware: Sequence[Middleware] = ()) -> Starlette:
    routes = [Route("/profiles/{id}", endpoint), Route("/ready", ready)]
    return Starlette(routes=routes, middleware=list(middleware))
