"""Trust domains on sockets: real registries that an operator's commands change, and real services of each."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server

import peerseal
from peerseal.flask import PeerAuth, current_peer
from peerseal.runtime.limits import FetchLimits
from peerseal.transport.fetch import HttpFetcher
from registry.__main__ import main
from registry.app import create_app
from registry.services.setup.initialise import initialise
from registry.storage.engine import create_engine
from registry.storage.unit import Store
from tests.registry.driver import settings_at
from tests.support.migrated import copy_schema

LIMITS = peerseal.TrustLimits(wait=0.0, poll_interval=0.1, patience=60.0, cooldown=0.1)
"""A change is seen within a second, and what hangs is waited for as long as a busy machine needs."""
PATIENT = FetchLimits(read_timeout=60.0, total_timeout=60.0)
ALLOWED = 60.0
"""Seconds for which a registry hangs, at most."""


class _Silent(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any, **__: Any) -> None:
        """Writes nothing."""


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The URL at which a WSGI application answers."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Silent)
    serving = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


class Domain:
    """The registry of a trust domain at ``url``. With ``down`` it answers 502, as a proxy does in its place; while
    ``answers`` is not set it hangs. ``asked`` counts the questions that reached it."""

    def __init__(self, name: str, home: Path, opened: ExitStack) -> None:
        home.mkdir()
        self.name, self.down, self.asked = name, False, 0
        self.answers = threading.Event()
        self.answers.set()
        self._home, self._opened = home, opened
        database = f"sqlite:///{home / 'registry.sqlite3'}"
        settings = settings_at(database, home)
        copy_schema(database)
        store = Store(create_engine(database))
        self.pin = initialise(settings, store, name).pin
        store.engine.dispose()
        self._app = create_app(settings)
        self.url = opened.enter_context(served(self._answer))

    def _answer(self, environ: Any, start_response: Any) -> Any:
        self.asked += 1
        self.answers.wait(ALLOWED)
        if self.down or not self.answers.is_set():
            start_response("502 Bad Gateway", [("Content-Length", "0")])
            return [b""]
        return self._app(environ, start_response)

    def operate(self, *arguments: str) -> str:
        """What a command of ``peerseal-registry`` prints."""
        database = f"sqlite:///{self._home / 'registry.sqlite3'}"
        environ = {"REGISTRY_HOME": str(self._home), "REGISTRY_DATABASE_URL": database}
        ended = CliRunner().invoke(main, list(arguments), env=environ)
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    def federate(self, other: "Domain", *options: str) -> None:
        """Let this domain believe the other one: without limits where the options name none."""
        self.operate(
            "federation", "add", other.name, "--url", other.url, "--pin", other.pin, *(options or ("--unlimited",))
        )

    def identity(self, service: str, **options: Any) -> peerseal.Identity:
        """A started identity of that service."""
        token = json.loads(self.operate("join-token", "create", service, "--json"))["token"]
        wired: dict[str, Any] = {
            "fetcher": HttpFetcher([self.url], PATIENT),
            "alg": "ES256",
            "limits": LIMITS,
            **options,
        }
        identity = peerseal.Identity(service, registry=self.url, join_token=token, **wired)
        self._opened.callback(identity.stop)
        return identity.start()

    def serve(self, identity: peerseal.Identity, **allow: Any) -> str:
        """The URL of a service that tells each caller who it is: ``allow`` is that of PeerAuth."""
        app = Flask(identity.service)
        auth = PeerAuth(app, identity, sign_responses="on_request", **allow)

        @app.get("/who")
        @auth.require(scope="read")
        def who() -> dict[str, Any]:
            """The caller, as it was verified."""
            return {"id": current_peer.id, "scopes": sorted(current_peer.scopes)}

        return self._opened.enter_context(served(app))


@contextmanager
def domains(folder: Path) -> Iterator[tuple[Domain, Domain, ExitStack]]:
    """``acme.internal`` and ``partner.example``, and what opens more."""
    with ExitStack() as opened:
        yield (
            Domain("acme.internal", folder / "acme", opened),
            Domain("partner.example", folder / "partner", opened),
            opened,
        )
