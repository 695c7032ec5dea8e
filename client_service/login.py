"""``POST /authenticate`` for the demo's users, and what verifiers of their tokens need."""

import hmac
from typing import Any

from flask import Blueprint, Response

from client_service.problems import posted_json, problem
from client_service.routes import httpie
from client_service.user_tokens import LIFETIME, UserTokens, scope_of

DEMO_USERS = ("ada", "grace", "katherine")


def blueprint(tokens: UserTokens, password: str | None) -> Blueprint:
    """Login with that password, the same for each demo user; nobody gets in where there is none."""
    routes = Blueprint("login", __name__)

    @routes.post("/authenticate")
    @httpie("user=ada password=$CLIENT_DEMO_PASSWORD")
    def authenticate() -> tuple[dict[str, Any], dict[str, str]] | Response:
        """A user's token for 15 minutes, in exchange for name and password."""
        if password is None:
            return problem(403, "login_closed", "No password is set for the demo's users.")
        given = posted_json()
        if not isinstance(given, dict) or not all(isinstance(given.get(name), str) for name in ("user", "password")):
            return problem(400, "bad_login", 'The body is {"user": "…", "password": "…"}.')
        right = hmac.compare_digest(_bytes(given["password"]), _bytes(password))  # always, so that time tells nothing
        if not right or given["user"] not in DEMO_USERS:
            return problem(401, "wrong_login", "There is no such user, or the password is another one.")
        token, scope = tokens.issue(given["user"]), scope_of(given["user"])
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME, "scope": scope}
        return answer, {"Cache-Control": "no-store"}  # RFC 6749 section 5.1

    @routes.get("/.well-known/jwks.json")
    def jwks() -> dict[str, Any]:
        """The public key that users' tokens are signed with: a JWK Set."""
        return tokens.jwks

    @routes.get("/.well-known/openid-configuration")
    def openid_configuration() -> dict[str, Any]:
        """What there is to know about this issuer of users' tokens."""
        return tokens.discovery()

    return routes


def _bytes(text: str) -> bytes:
    """JSON may hold half a surrogate pair, which is no password but must not be an error either."""
    return text.encode("utf-8", "surrogatepass")
