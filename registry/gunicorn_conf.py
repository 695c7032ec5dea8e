"""gunicorn's settings, under the name that people type: ``--config python:registry.gunicorn_conf``."""

import sys

from registry.serving import gunicorn_conf

sys.modules[__name__] = gunicorn_conf
