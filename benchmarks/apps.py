"""The applications that gunicorn serves for the benchmarks."""

from pathlib import Path

from flask import Flask, Response

import peerseal
import peerseal.flask

SCOPE = "profiles:read"


def route(protected: bool) -> Flask:
    """One small route, open, or protected as the service that the environment names."""
    app = Flask(__name__)

    def profile(id: str) -> dict[str, str]:
        return {"id": id, "name": "Ada Lovelace", "city": "London"}

    def ready() -> dict[str, bool]:
        return {"ready": True}

    if protected:
        identity = peerseal.Identity.from_env().start()
        auth = peerseal.flask.PeerAuth(app, identity, allow={"client-service": {SCOPE}})
        auth.public(ready)
        app.add_url_rule("/profiles/<id>", "profile", auth.require(scope=SCOPE)(profile))
    else:
        app.add_url_rule("/profiles/<id>", "profile", profile)
    app.add_url_rule("/ready", "ready", ready)
    return app


def constant(file: str) -> Flask:
    """One route that returns the bytes of a file, read once, and headers that never change."""
    app = Flask(__name__)
    body = Path(file).read_bytes()

    @app.get("/ready")
    def answer() -> Response:
        return Response(body, content_type="application/jwt")

    return app
