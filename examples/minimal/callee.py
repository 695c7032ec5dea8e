"""A callee: it answers one caller, whose name is proven by its signature, and refuses all others."""

from flask import Flask

import peerseal
import peerseal.flask


def create_app() -> Flask:
    """The service. Its name, its registry and its join token come from the environment."""
    app = Flask(__name__)
    identity = peerseal.Identity.from_env().start()
    auth = peerseal.flask.PeerAuth(app, identity, allow={"caller": {"greetings:read"}})

    @app.get("/greetings/<name>")
    @auth.require(scope="greetings:read")
    def greeting(name: str) -> dict[str, str]:
        """A greeting, and which service asked for it."""
        return {"hello": name, "caller": peerseal.flask.current_peer.service}

    return app
