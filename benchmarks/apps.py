"""The applications that gunicorn serves for the benchmarks."""

from pathlib import Path

from flask import Flask, Response

import peerseal
import peerseal.flask
from benchmarks.raw import raw_verify_once

SCOPE = "profiles:read"


def open_route() -> Flask:
    """One small route, for everybody."""
    app = Flask(__name__)
    app.add_url_rule("/profiles/<id>", "profile", _profile)
    app.add_url_rule("/ready", "ready", _ready)
    return app


def protected_route(shared: bool) -> Flask:
    """The same, protected, as the service that the environment names; its workers share a replay guard, or do not."""
    app = open_route()
    identity = peerseal.Identity.from_env().start()
    guard = identity.replay_guard() if shared else peerseal.MemoryReplayGuard()
    auth = peerseal.flask.PeerAuth(app, identity, allow={"client-service": {SCOPE}}, replay=guard)
    app.view_functions["profile"] = auth.require(scope=SCOPE)(_profile)
    auth.public(_ready)
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


def _profile(id: str) -> dict[str, str]:
    return {"id": id, "name": "Ada Lovelace", "city": "London"}


def _ready() -> dict[str, bool]:
    return {"ready": True}
