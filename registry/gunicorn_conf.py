"""gunicorn's settings, under the name that people type: ``--config python:registry.gunicorn_conf``."""

import os
import sys

from peerseal.errors import ConfigurationError
from registry.web.log_context import configure_logging

try:
    configure_logging(os.environ)  # before the first warning of a setting
    from registry.serving import gunicorn_conf
except ConfigurationError as error:
    sys.exit(f"Error: {error.code}: {error}")  # gunicorn would print a traceback

sys.modules[__name__] = gunicorn_conf
