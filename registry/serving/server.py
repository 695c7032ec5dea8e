"""The registry under gunicorn, as ``peerseal-registry serve`` runs it."""

from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

from registry.app import create_app, log_to_stderr, watching
from registry.serving import gunicorn_conf
from registry.serving.drain import DRAIN
from registry.settings import Settings


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with the settings of `registry.gunicorn_conf` and ``options``."""

    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        self._settings = settings
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        """See BaseApplication."""
        for name, value in {**vars(gunicorn_conf), **self._options}.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Flask:
        """See BaseApplication."""
        return watching(create_app(self._settings))


def run(settings: Settings, bind: str, workers: int) -> None:
    """Serves until a signal stops it. The application is made before the fork: a wrong setting fails the start."""
    log_to_stderr()
    options = {
        "bind": bind,
        "workers": workers,
        "preload_app": True,
        "when_ready": lambda master: DRAIN.delay_stop_of(master, settings.drain_seconds),
    }
    Server(settings, options).run()
