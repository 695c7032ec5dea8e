"""The edge: people call it, with a user's token or without, and it calls resource-service with signed requests.

Run it with ``gunicorn 'client_service.app:create_app()'``; the settings are in `client_service.settings`.
"""

import hmac
import os
from collections.abc import Mapping

from flask import Flask, Response, request

import peerseal
import peerseal.logs
from client_service import health, login, orders, resource
from client_service.outbox import Outbox
from client_service.problems import handle_errors, problem
from client_service.routes import add_index, httpie
from client_service.settings import Settings
from client_service.storage import open_database, waiting
from client_service.user_tokens import UserTokens
from client_service.users import Users


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The service, with its key made and registered, or about to be, as the environment says."""
    peerseal.logs.configure()
    settings = Settings.from_env(environ)
    identity = peerseal.Identity.from_env(environ)
    identity.start()
    return build_app(identity, settings)


def build_app(identity: peerseal.Identity, settings: Settings) -> Flask:
    """The service in the name of ``identity``, which the caller starts. Opens the database, and makes what is missing
    of it and of the issuer's key."""
    app = Flask(__name__)
    app.wsgi_app = peerseal.logs.RequestIds(app.wsgi_app)  # type: ignore[method-assign] # as Flask has middleware put in
    tokens = UserTokens.kept_in(settings.user_key_file, settings.issuer_url, identity)
    users = Users(identity, tokens)
    database = open_database(settings.database_url, settings.state)
    outbox = app.extensions["outbox"] = Outbox.of(settings, database)
    add_index(app, identity)
    add_credentials(app, identity, settings.operator_secret)
    health.add_routes(app, identity, lambda: waiting(database))
    login.add_routes(app, tokens, settings.demo_password)
    resource.add_routes(app, users, identity.session("resource-service", settings.resource_url))
    orders.add_routes(app, users, orders.Orders(identity, database, settings.events_audience), outbox)
    handle_errors(app)
    return app


def add_credentials(app: Flask, identity: peerseal.Identity, secret: str | None) -> None:
    """The routes about this service's own key."""

    @app.get("/my-public-credentials")
    def my_public_credentials() -> dict[str, str]:
        """The key that this service signs with now."""
        return identity.credentials.to_json()

    @app.post("/refresh-my-credentials")
    @httpie('"Operator-Secret:$CLIENT_OPERATOR_SECRET"')
    def refresh_my_credentials() -> dict[str, str] | Response:
        """Publishes a new key, which signs after a lead time, and shows it. For the operator."""
        given = request.headers.get("Operator-Secret", "")
        if secret is None or not hmac.compare_digest(given.encode(), secret.encode()):
            return problem(403, "operator_secret_required", "Send the operator's secret in Operator-Secret.")
        return identity.rotate().to_json()
