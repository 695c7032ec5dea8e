"""``POST /authenticate`` for people at a terminal: the identity provider checks the password and issues the token."""

import threading
from pathlib import Path
from typing import Any

import requests
from flask import Blueprint, Response, current_app

from client_service.problems import posted_json, problem
from client_service.resource import unavailable
from client_service.routes import httpie

TIMEOUT = (2.0, 4.0)
"""Timeouts in seconds: for the connection, and between two bytes of the answer."""
AT_ONCE = 4
"""The most logins that one worker forwards at the same time: a slow identity provider cannot take all threads."""
TOKEN_MEMBERS = ("access_token", "token_type", "expires_in", "scope")
"""The members of the identity provider's answer that are forwarded (RFC 6749 section 5.1)."""

Answer = tuple[dict[str, Any], dict[str, str]] | Response


def blueprint(login_url: str | None, ca_file: Path | None = None) -> Blueprint:
    """Login at the identity provider of that URL. ``ca_file``, if given, verifies its certificate. This service neither
    stores nor logs the password."""
    routes = Blueprint("login", __name__)
    room = threading.BoundedSemaphore(AT_ONCE)

    @routes.post("/authenticate")
    @httpie("user=ada password=$CLIENT_DEMO_PASSWORD")
    def authenticate() -> Answer:
        """A user's token for 15 minutes, from the identity provider, in exchange for name and password."""
        if login_url is None:
            return problem(404, "no_login", "CLIENT_LOGIN_URL is not set: bring a token of an issuer of this domain.")
        given = posted_json()
        if not isinstance(given, dict) or not all(isinstance(given.get(name), str) for name in ("user", "password")):
            return problem(400, "bad_login", 'The body is {"user": "…", "password": "…"}.')
        if not room.acquire(blocking=False):
            return unavailable("login_unavailable", "Too many people log in at once.", "1")
        try:
            return passed_on(ask(login_url, given["user"], given["password"], ca_file))
        except (requests.RequestException, RecursionError) as error:  # RecursionError: JSON that is nested too deeply
            current_app.logger.warning("the identity provider cannot be reached: %s", error)
            return unavailable("login_unavailable", "The identity provider cannot be reached now.")
        finally:
            room.release()

    return routes


def ask(login_url: str, user: str, password: str, ca_file: Path | None) -> requests.Response:
    """The identity provider's answer. Raises requests.RequestException."""
    with requests.Session() as session:
        session.verify = True if ca_file is None else str(ca_file)
        session.trust_env = False  # no proxy and no .netrc of this host sees a user's password
        body = {"user": user, "password": password}
        url = f"{login_url.rstrip('/')}/authenticate"
        return session.post(url, json=body, timeout=TIMEOUT, allow_redirects=False)


def passed_on(answer: requests.Response) -> Answer:
    """A token, or a refusal in this service's form. Raises requests.JSONDecodeError for a token that is no JSON, and
    RecursionError for JSON that is nested too deeply."""
    if answer.status_code in (400, 401):
        return problem(401, "wrong_login", "Unknown user or wrong password.")
    told = answer.json() if answer.status_code == 200 else None
    if not isinstance(told, dict) or not isinstance(told.get("access_token"), str):
        current_app.logger.warning("the identity provider answers HTTP %d, and no token", answer.status_code)
        return unavailable("login_unavailable", "The identity provider gives no token now.")
    return {name: told[name] for name in TOKEN_MEMBERS if name in told}, {"Cache-Control": "no-store"}
