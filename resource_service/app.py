"""Profiles, cases and invoices, for services that may read them. Every route is closed unless it says otherwise.

Run it with ``gunicorn 'resource_service.app:create_app()'``; the settings are in `resource_service.settings`.
"""

import os
from collections.abc import Mapping

from flask import Flask

import peerseal
import peerseal.flask
import peerseal.logs
from resource_service import about, cases, invoices, profiles
from resource_service.database import Invoices, open_database
from resource_service.problems import handle_errors
from resource_service.settings import database_url

ALLOW = {"client-service": {"profiles:read", "invoices:read"}, "invoicing": {"trigger_invoicing"}}
"""Who may call, with which scopes. Nobody else gets in, however well registered."""


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The service, with its key made and registered, or about to be, as the environment says."""
    peerseal.logs.configure()
    identity = peerseal.Identity.from_env(environ)
    identity.start()
    return build_app(identity, Invoices(open_database(database_url(environ)), identity.clock))


def build_app(identity: peerseal.Identity, stored: Invoices) -> Flask:
    """The service in the name of ``identity``, which the caller starts."""
    app = Flask(__name__)
    auth = peerseal.flask.PeerAuth(app, identity, allow=ALLOW)
    app.register_blueprint(about.blueprint(auth, identity, sorted(ALLOW)))
    app.register_blueprint(profiles.blueprint(auth))
    app.register_blueprint(cases.blueprint(auth))
    app.register_blueprint(invoices.blueprint(auth, stored))
    handle_errors(app)
    return app
