"""A Flask service over HTTP that one caller may call, its registry, and the environment of that caller's host."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, redirect, request
from werkzeug.serving import WSGIRequestHandler, make_server

from demo.processes import environment
from peerseal import Identity
from peerseal.flask import PeerAuth, current_peer
from peerseal.logs import RequestIds
from peerseal.testing import MemoryRegistry
from tests.peerseal.served import served

CALLER = "client"
CALLEE = "orders"


@dataclass
class CalledService:
    """The service, and what arrived there."""

    url: str
    registry: MemoryRegistry
    environ: dict[str, str]
    """Of a process on the caller's host."""
    targets: list[str] = field(default_factory=list)
    elsewhere: str = ""
    """The URL to which ``/elsewhere`` redirects."""


class _Silent(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any, **__: Any) -> None:
        """Writes nothing."""


@contextmanager
def called_service(folder: Path, certificate: tuple[Path, Path] | None = None) -> Iterator[CalledService]:
    """It serves as long as the context lasts, over TLS with the files of a ``certificate`` and its key. The caller's
    key is in its folder already."""
    with MemoryRegistry() as registry, served(registry) as registry_url:
        registry.identity(CALLER, key_dir=folder / "keys", retire_at_exit=False).stop()
        settings = {
            "PEERSEAL_SERVICE": CALLER,
            "PEERSEAL_REGISTRY_URL": registry_url,
            "PEERSEAL_KEY_DIR": str(folder / "keys"),
            "HTTPIE_CONFIG_DIR": str(folder / "httpie"),
        }
        (folder / "httpie").mkdir()
        (folder / "httpie/config.json").write_text(json.dumps({"disable_update_warnings": True}))
        service = CalledService("", registry, environment(settings))
        app = _app(registry.identity(CALLEE), service)
        server = make_server("127.0.0.1", 0, app, True, request_handler=_Silent, ssl_context=certificate)
        serving = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        serving.start()
        service.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
        try:
            yield service
        finally:
            server.shutdown()
            serving.join()
            server.server_close()


def _app(identity: Identity, service: CalledService) -> Flask:
    app = Flask(__name__)
    auth = PeerAuth(app, identity, allow={CALLER: {"orders:write"}})
    app.wsgi_app = RequestIds(app.wsgi_app)

    @app.before_request
    def arrived() -> None:
        service.targets.append(f"{request.method} {request.full_path.rstrip('?')}")

    @app.route("/orders", methods=["GET", "POST"])
    @app.route("/a b/ä", methods=["GET"])
    @auth.require(scope="orders:write")
    def orders() -> Response:
        """Who called, and what came."""
        return jsonify(
            caller=current_peer.service,
            type=request.headers.get("Content-Type"),
            encoding=request.headers.get("Content-Encoding"),
            body=request.get_data().decode("latin-1"),
            query=request.args.to_dict(flat=False),
        )

    @app.get("/invoices")
    @auth.require(scope="invoices:read")
    def invoices() -> Response:
        """Nothing for this caller."""
        return jsonify([])

    @app.route("/moved", methods=["GET", "POST"])
    @auth.require(scope="orders:write")
    def moved() -> Response:
        """A redirect within the service."""
        return redirect("/orders?from=moved", int(request.args.get("with", "302")))

    @app.get("/elsewhere")
    @auth.require(scope="orders:write")
    def elsewhere() -> Response:
        """A redirect to another origin."""
        return redirect(service.elsewhere)

    @app.get("/broken")
    @auth.public
    def broken() -> tuple[str, int]:
        """An error."""
        return "out of order\n", 500

    @app.get("/bytes")
    @auth.public
    def binary() -> Response:
        """No text."""
        return Response(b"\xff\x00\x1b[2J", content_type="application/octet-stream")

    return app
