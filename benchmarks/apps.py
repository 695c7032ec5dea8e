"""The applications that gunicorn serves for the benchmarks."""

import os
from collections.abc import Sequence
from pathlib import Path

from flask import Flask, Response

import peerseal
import peerseal.flask
from benchmarks.counted import CountedFetcher
from benchmarks.raw import raw_verify_once
from peerseal.runtime.settings import SettingsReader

SCOPE = "profiles:read"


def open_route() -> Flask:
    """One small route, open to all callers."""
    app = Flask(__name__)
    app.add_url_rule("/profiles/<id>", "profile", profile)
    app.add_url_rule("/ready", "ready", _ready)
    return app


def protected_route(shared: bool) -> Flask:
    """The same route, protected, for the service that the environment names; its workers may share a replay guard."""
    identity = peerseal.Identity.from_env().start()
    guard = identity.replay_guard() if shared else peerseal.MemoryReplayGuard()
    return protected_by(identity, guard, ["client-service"])[0]


def protected_by(
    identity: peerseal.Identity,
    guard: peerseal.ReplayGuard,
    callers: Sequence[str],
    *,
    sign_responses: bool = False,
) -> tuple[Flask, peerseal.flask.PeerAuth]:
    """The same route, protected by that guard and open to these callers, and what protects it."""
    app = open_route()
    allow = {caller: {SCOPE} for caller in callers}
    auth = peerseal.flask.PeerAuth(app, identity, allow=allow, replay=guard, sign_responses=sign_responses)
    app.view_functions["profile"] = auth.require(scope=SCOPE)(profile)
    auth.public(_ready)
    return app, auth


def flooded_route(callers: Sequence[str]) -> Flask:
    """The protected route for these callers, and a route that lists the trust store's questions to the registry, with
    their times (`time.monotonic`)."""
    identity = peerseal.Identity.from_env()
    asked = identity.trust.fetcher = CountedFetcher([SettingsReader(os.environ).required("PEERSEAL_REGISTRY_URL")])
    app, auth = protected_by(identity.start(), peerseal.MemoryReplayGuard(), callers)
    app.add_url_rule("/asked", "asked", auth.public(lambda: asked.times))
    return app


def route_with_raw_verify() -> Flask:
    """The same, open, with one raw RSA-2048 verify before every request and nothing else."""
    app = open_route()
    app.before_request(raw_verify_once())
    return app


def constant(file: str) -> Flask:
    """One route that returns the bytes of a file, read once, and headers that never change."""
    app = Flask(__name__)
    body = Path(file).read_bytes()
    app.add_url_rule("/ready", "ready", lambda: Response(body, content_type="application/jwt"))
    return app


def profile(id: str) -> dict[str, str]:
    """A small answer."""
    return {"id": id, "name": "Ada Lovelace", "city": "London"}


def _ready() -> dict[str, bool]:
    return {"ready": True}
