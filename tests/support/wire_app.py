"""A protected Flask application for gunicorn that says what it was asked for.

``WIRE_CALLER`` holds the public JWK of the one caller, ``wire-caller``; ``WIRE_PREFIX`` the external prefix.
"""

import json
import os
from typing import Any

from flask import Flask, request

from peerseal.flask import PeerAuth, current_peer
from peerseal.protocol.keys import PublicKey
from peerseal.verify.request import Verifier
from tests.support.wire import Keys

CALLER = "wire-caller"
CALLEE = "wire-callee"
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS")


def create_app() -> Flask:
    keys = Keys()
    keys.add(CALLER, PublicKey.from_jwk(json.loads(os.environ["WIRE_CALLER"])))
    verifier = Verifier(keys, audience=CALLEE, allow={CALLER: {"wire:use"}})
    app = Flask(__name__)
    app.url_map.merge_slashes = False
    auth = PeerAuth(app, verifier=verifier, external_prefix=os.environ.get("WIRE_PREFIX", ""), max_body=100_000)

    @app.get("/health")
    @auth.public
    def health() -> str:
        return "well"

    @app.route("/echo", methods=METHODS, defaults={"path": "echo"})
    @app.route("/", methods=METHODS, defaults={"path": ""})
    @app.route("/<path:path>", methods=METHODS)
    @auth.require(scope="wire:use")
    def echo(path: str) -> dict[str, Any]:
        return {
            "caller": current_peer.service,
            "jti": current_peer.claims["jti"],
            "path": request.path,
            "raw": request.environ["RAW_URI"],
            "body": request.get_data(as_text=True),
            "form": request.form.to_dict(),
            "files": {name: file.read().decode() for name, file in request.files.items()},
        }

    return app
