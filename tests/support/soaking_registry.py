"""A registry for the soak: gunicorn's target ``tests.support.soaking_registry:create_app()``."""

import os

from flask import Flask

import registry.app
from registry.limits import Limits
from registry.settings import Settings
from registry.web.log_context import configure_logging

RETIRED_SHOWN = 30
"""Seconds for which a retired key stays in its service's set, in the place of 400. Sets to which a key is added every
few seconds have then stopped growing before memory is measured."""


def create_app() -> Flask:
    """The registry that the environment describes."""
    configure_logging(os.environ)
    return registry.app.create_app(Settings.from_environ(os.environ, limits=Limits(retired_shown=RETIRED_SHOWN)))
