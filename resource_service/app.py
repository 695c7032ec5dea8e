"""Profiles, cases and invoices, for services that may read them. Every route is closed unless it says otherwise.

Run it with ``gunicorn --threads 8 'resource_service.app:create_app()'``;
the settings are in `resource_service.settings`.
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
from resource_service.settings import case_service_url, database_url

ALLOW = {
    "client-service": {"profiles:read", "invoices:read", "cases:read"},
    "invoicing": {"trigger_invoicing"},
    "httpservice": {"profiles:read"},
}
"""The callers and their scopes. Every other service is refused, even a registered one. As ``httpservice`` people call
from a terminal."""


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The service with the settings of the environment. Its identity registers the key, or tries until it can."""
    peerseal.logs.configure()
    identity = peerseal.Identity.from_env(environ)
    identity.start()
    invoices = Invoices(open_database(database_url(environ)), identity.clock)
    return build_app(identity, invoices, case_service_url(environ))


def build_app(identity: peerseal.Identity, stored: Invoices, case_url: str) -> Flask:
    """The service for ``identity``, which the caller starts. case-service is at ``case_url``."""
    app = Flask(__name__)
    auth = peerseal.flask.PeerAuth(app, identity, allow=ALLOW, sign_responses="on_request")
    app.register_blueprint(about.blueprint(auth, identity, sorted(ALLOW)))
    app.register_blueprint(profiles.blueprint(auth))
    third = identity.session(cases.CASE_SERVICE, case_url, limits=cases.LIMITS)
    app.register_blueprint(cases.blueprint(auth, third))
    app.register_blueprint(invoices.blueprint(auth, stored))
    handle_errors(app)
    return app
