"""The gunicorn target: ``gunicorn --config python:registry.gunicorn_conf registry.wsgi:app``. It reads the environment,
as nothing below it does."""

import os

from peerseal.runtime.extras import missing

try:
    from registry.app import create_app, log_to_stderr, watching
    from registry.settings import Settings
except ModuleNotFoundError as error:
    raise missing(error, "registry") from error

log_to_stderr()
app = watching(create_app(Settings.from_environ(os.environ)))
