"""The edge: people call it, with a user's token or without, and it calls resource-service with signed requests.

Run it with ``gunicorn --threads 16 'client_service.app:create_app()'``; the settings are in `client_service.settings`.
"""

import os
from collections.abc import Mapping

from flask import Flask
from sqlalchemy import Engine

import peerseal
import peerseal.logs
from client_service import about, approvals, login, orders, resource, routes
from client_service.problems import handle_errors
from client_service.settings import Settings
from client_service.storage import OUTBOX, open_database
from client_service.users import Users
from peerseal.messaging import login_settings, open_outlet
from peerseal.outbox import Outbox

MAX_BODY = 1024 * 1024
"""The largest accepted request body, in bytes."""


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The service with the settings of the environment. Its identity registers the key, or tries until it can."""
    peerseal.logs.configure()
    settings = Settings.from_env(environ)
    identity = peerseal.Identity.from_env(environ)
    identity.start()
    return build_app(identity, settings)


def build_app(identity: peerseal.Identity, settings: Settings) -> Flask:
    """The service for ``identity``, which the caller starts. Opens the database and creates missing tables."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.wsgi_app = peerseal.logs.RequestIds(app.wsgi_app)  # type: ignore[method-assign] # as Flask has middleware put in
    users = Users(identity)
    database = open_database(settings.database_url, settings.state)
    outbox = app.extensions["outbox"] = started_outbox(database, identity, settings)
    session = identity.session(
        "resource-service",
        settings.resource_url,
        limits=resource.LIMITS,
        require_signed_response=settings.require_signed_response,
    )
    app.register_blueprint(routes.blueprint(app, identity))
    app.register_blueprint(about.blueprint(identity, settings.operator_secret, outbox))
    app.register_blueprint(login.blueprint(settings.login_url, settings.login_ca_file))
    app.register_blueprint(resource.blueprint(users, session))
    placed = orders.Orders(identity, database, outbox, settings.events_audience)
    app.register_blueprint(orders.blueprint(users, placed))
    app.register_blueprint(approvals.blueprint(users, placed))
    handle_errors(app)
    return app


def started_outbox(database: Engine, identity: peerseal.Identity, settings: Settings) -> Outbox:
    """The outbox; its relay runs in each worker. Without ``BROKER_URL``, events stay in the database."""
    outbox = Outbox(database, OUTBOX, clock=identity.clock)
    url = settings.broker_url
    if url is not None:
        options = {**login_settings(identity, url, settings.broker_login), **settings.broker_settings}
        outbox.start(lambda: open_outlet(url, settings=options))
    return outbox
