"""The identity provider's routes. Run it with ``gunicorn --workers 1 'demo.identity_provider.app:create_app()'``: codes
and opaque tokens are kept in the process."""

import hmac
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2 import OAuth2Error
from flask import Flask, Response, render_template, request, session

from demo.identity_provider.clients import JWT_CONSOLE, known_clients
from demo.identity_provider.grants import S256Only, code_grant, id_tokens, introspection
from demo.identity_provider.keys import ALG, SigningKey
from demo.identity_provider.people import Person, logged_in
from demo.identity_provider.settings import Settings
from demo.identity_provider.tokens import LIFETIME, Tokens

MAX_BODY = 1024 * 1024
"""The largest accepted request body, in bytes."""
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The identity provider with the settings of the environment."""
    return build_app(Settings.from_env(environ))


def build_app(settings: Settings, clock: Callable[[], float] = time.time) -> Flask:
    """The identity provider. ``clock`` gives seconds since the epoch."""
    app = Flask(__name__)
    app.secret_key = secrets.token_bytes(32)
    app.config.update(SESSION_COOKIE_SAMESITE="Lax", SESSION_COOKIE_HTTPONLY=True, SESSION_COOKIE_NAME="login")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    tokens = Tokens(settings.issuer, SigningKey.kept_in(settings.key_file), clock)
    server = authorization_server(app, tokens, settings)
    add_login_page(app, server, settings)
    add_token_routes(app, server, tokens)
    add_metadata(app, tokens, settings)
    add_login_without_browser(app, tokens, settings)

    @app.after_request
    def harden(response: Response) -> Response:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return app


def authorization_server(app: Flask, tokens: Tokens, settings: Settings) -> AuthorizationServer:
    """Authlib's server over our clients and tokens."""

    def access_token(client: Any, grant_type: str, user: Person, scope: str) -> str:
        return tokens.issue(user, client, scope)

    app.config["OAUTH2_ACCESS_TOKEN_GENERATOR"] = access_token
    app.config["OAUTH2_TOKEN_EXPIRES_IN"] = {"authorization_code": LIFETIME}
    clients = known_clients(settings.introspection_secret)
    server = AuthorizationServer(app, query_client=clients.get, save_token=lambda token, request: None)
    server.register_grant(code_grant(tokens), [S256Only(required=True), id_tokens(tokens)])
    server.register_endpoint(introspection(tokens))
    return server


def add_login_page(app: Flask, server: AuthorizationServer, settings: Settings) -> None:
    """The page on which a person logs in. The login is also the consent to the scopes that the page lists."""

    def page(client: str, scope: str, problem: str = "", status: int = 200) -> tuple[str, int]:
        form_token = session.setdefault("form_token", secrets.token_urlsafe(16))
        user = request.form.get("user", "")
        html = render_template(
            "login.html", client=client, scope=scope, problem=problem, form_token=form_token, user=user
        )
        return html, status

    def is_of_our_page() -> bool:
        """Whether the form belongs to a page that this browser was shown; other forms are refused."""
        shown, given = session.get("form_token"), request.form.get("form_token", "")
        return shown is not None and hmac.compare_digest(given.encode("utf-8"), shown.encode("utf-8"))

    @app.route("/authorize", methods=["GET", "POST"])
    def authorize() -> Any:
        """The login page, and where its form goes."""
        try:
            grant = server.get_consent_grant()
        except OAuth2Error as error:
            return server.handle_error_response(None, error)
        except ValueError:  # Authlib quotes refused input in errors, which must be ASCII
            return "A parameter is not text that may stand in it.", 400
        client, scope = grant.client.client_id, grant.request.payload.scope or "nothing"
        if request.method == "GET":
            return page(client, scope)
        if not is_of_our_page():
            return page(client, scope, "The form was too old. Please try again.", 400)
        person = logged_in(request.form.get("user", ""), request.form.get("password", ""), settings.password)
        if person is None:
            return page(client, scope, "Name or password is wrong.", 401)
        session.clear()
        return server.create_authorization_response(grant_user=person, grant=grant)


def add_token_routes(app: Flask, server: AuthorizationServer, tokens: Tokens) -> None:
    """The endpoints for programs."""

    @app.post("/token")
    def token() -> Any:
        """Tokens for a code (RFC 6749 section 4.1.3)."""
        return server.create_token_response()

    @app.post("/introspect")
    def introspect() -> Any:
        """The meaning of an opaque token (RFC 7662)."""
        try:
            return server.create_endpoint_response("introspection")
        except ValueError:  # Authlib decodes any credentials as UTF-8
            return {"error": "invalid_client"}, 401

    @app.post("/revoke")
    def revoke() -> tuple[str, int]:
        """Ends an opaque token; every holder may end it (RFC 7009)."""
        tokens.revoke(request.form.get("token", ""))
        return "", 200


def add_metadata(app: Flask, tokens: Tokens, settings: Settings) -> None:
    """Public metadata for programs."""

    @app.get("/.well-known/jwks.json")
    def jwks() -> dict[str, Any]:
        """The key that tokens are signed with."""
        return tokens.key.jwks

    @app.get("/.well-known/openid-configuration")
    def openid_configuration() -> dict[str, Any]:
        """OpenID Connect Discovery 1.0 section 3."""
        url = settings.url
        return {
            "issuer": settings.issuer,
            "authorization_endpoint": f"{url}/authorize",
            "token_endpoint": f"{url}/token",
            "introspection_endpoint": f"{url}/introspect",
            "revocation_endpoint": f"{url}/revoke",
            "jwks_uri": f"{url}/.well-known/jwks.json",
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALG],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
            "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
        }


def posted_json() -> Any:
    """The body as JSON; None if it is no JSON or is nested too deeply."""
    try:
        return request.get_json(silent=True)
    except RecursionError:
        return None


def add_login_without_browser(app: Flask, tokens: Tokens, settings: Settings) -> None:
    """The route for people at a terminal."""

    @app.post("/authenticate")
    def authenticate() -> tuple[dict[str, Any], int]:
        """A JWT for 15 minutes, in exchange for name and password."""
        given = posted_json()
        if not isinstance(given, dict) or not all(isinstance(given.get(name), str) for name in ("user", "password")):
            return {"error": "invalid_request", "error_description": 'The body is {"user": "…", "password": "…"}.'}, 400
        person = logged_in(given["user"], given["password"], settings.password)
        if person is None:
            return {"error": "invalid_grant", "error_description": "Name or password is wrong."}, 401
        scope = " ".join(sorted(person.scopes))
        token = tokens.issue_jwt(person, JWT_CONSOLE, scope)
        return {"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME, "scope": scope}, 200
