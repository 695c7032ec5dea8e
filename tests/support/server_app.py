"""One protected application as WSGI and as ASGI. ``WIRE_CALLER`` is the key of its one caller."""

import json
import os
from typing import Any

from flask import Flask, request

from peerseal.asgi import PUBLIC, Need
from peerseal.asgi import PeerAuth as AsgiPeerAuth
from peerseal.flask import PeerAuth, current_peer
from peerseal.protocol.keys import PublicKey
from peerseal.verify.request import Verifier
from tests.support.wire import Keys
from tests.support.wire_app import CALLEE, CALLER, METHODS


def verifier() -> Verifier:
    keys = Keys()
    keys.add(CALLER, PublicKey.from_jwk(json.loads(os.environ["WIRE_CALLER"])))
    return Verifier(keys, audience=CALLEE, allow={CALLER: {"wire:use"}})


def make_wsgi() -> Flask:
    app = Flask(__name__)
    app.url_map.merge_slashes = False
    auth = PeerAuth(app, verifier=verifier(), max_body=100_000)

    @app.get("/health")
    @auth.public
    def health() -> str:
        return "well"

    @app.route("/", methods=METHODS, defaults={"path": ""})
    @app.route("/<path:path>", methods=METHODS)
    @auth.require(scope="wire:use")
    def echo(path: str) -> dict[str, str]:
        return {"caller": current_peer.service, "body": request.get_data(as_text=True)}

    return app


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body that it got."""
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": f"{event['type']}.complete"})
            if event["type"] == "lifespan.shutdown":
                return
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), event.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps({"body": body.decode("latin-1")}).encode()})


def make_asgi() -> AsgiPeerAuth:
    needs = {"/": Need("wire:use"), "/health": PUBLIC}
    return AsgiPeerAuth(application, needs=needs, verifier=verifier(), max_body=100_000)


if "WIRE_CALLER" in os.environ:  # some servers take the name of an application only
    wsgi, asgi = make_wsgi(), make_asgi()
