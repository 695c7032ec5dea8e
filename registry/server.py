"""The registry under gunicorn, as ``peerseal-registry serve`` runs it."""

from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

from registry.app import create_app, log_to_stderr
from registry.settings import Settings

THREADS = 8
"""Threads of a worker: most wait for the database, or for a slow client."""


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, told what to do by values instead of a file."""

    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        self._settings = settings
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        """See BaseApplication."""
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """See BaseApplication."""
        return create_app(self._settings)


def run(settings: Settings, bind: str, workers: int) -> None:
    """Serves until told to stop. The application is made before the fork, so that a wrong setting ends the start."""
    log_to_stderr()
    options = {
        "bind": bind,
        "workers": workers,
        "worker_class": "gthread",
        "threads": THREADS,
        "preload_app": True,
        "graceful_timeout": 20,
        "forwarder_headers": "",  # no header of a proxy may shift the routing away from the request line
        "control_socket_disable": True,  # nobody asked for a socket that steers the server
        "proc_name": "peerseal-registry",
    }
    Server(settings, options).run()
