"""The gunicorn target: ``gunicorn --config python:registry.gunicorn_conf registry.wsgi:app``. Apart from the commands,
only this module reads the environment."""

import logging
import os
import sys

from peerseal.errors import ConfigurationError
from peerseal.runtime.extras import missing
from peerseal.runtime.terminal import say

try:
    from registry.app import create_app, watching
    from registry.settings import Settings
    from registry.web.log_context import configure_logging
except ModuleNotFoundError as error:
    raise missing(error, "registry") from error

_NO_START = 3
"""gunicorn's exit code of a worker that cannot start: its master ends then, and starts no other."""


try:
    configure_logging(os.environ)
    _settings = Settings.from_environ(os.environ)
    app = watching(create_app(_settings))
except ConfigurationError as error:  # a server would print a traceback
    say(f"Error: {error.code}: {error}", error=True)
    sys.exit(_NO_START)
if _settings.limits.waiting_calls:
    logging.getLogger(__name__).info(
        "REGISTRY_WAITING_CALLS=%d: so many calls may wait for changes in each process, and each occupies a thread of"
        " the server, unless gunicorn runs with --config python:registry.gunicorn_conf",
        _settings.limits.waiting_calls,
    )
