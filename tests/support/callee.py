"""A callee for tests: allows two callers, shows who called for whom. ``gunicorn tests.support.callee:create_app()``."""

from flask import Flask

import peerseal
import peerseal.flask


def create_app() -> Flask:
    """The service that the environment names."""
    identity = peerseal.Identity.from_env()
    identity.start()
    app = Flask(__name__)
    auth = peerseal.flask.PeerAuth(app, identity, allow={"client-service": {"read"}, "second-service": {"read"}})

    @app.get("/my-public-credentials")
    @auth.public
    def credentials() -> dict[str, str]:
        return identity.credentials.to_json()

    @app.route("/<path:anything>", methods=["GET", "POST"])
    @auth.require(scope="read")
    def show(anything: str) -> dict[str, str]:
        peer = peerseal.flask.current_peer
        user = {} if peer.transaction is None else {"user": peer.transaction.user}
        return {"caller": peer.service, "path": anything, **user}

    return app
