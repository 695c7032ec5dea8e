"""A program for a terminal that logs a person in with the browser (RFC 8252), and orders in that person's name.

::

    python -m demo.console_client --login http://127.0.0.1:8003 --edge http://127.0.0.1:8001

It opens the login page, waits on a port of the loopback interface for the code, exchanges it (PKCE, RFC 7636), checks
the ID token, and shows what it got. Then it orders two pens and waits for the invoice.
"""

import argparse
import secrets
import sys
import time
import webbrowser
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from authlib.integrations.requests_client import OAuth2Session
from joserfc import jwt
from joserfc.jwk import KeySet

from demo.identity_provider.clients import CALLBACK, JWT_CONSOLE, OPAQUE_CONSOLE

SCOPE = "openid profile orders:read orders:write invoices:read cases:read"
ORDER: dict[str, Any] = {"items": [{"itemID": "pen", "quantity": 2}]}
DONE = b"<!doctype html><title>Logged in</title><p id=done>You are logged in. Go back to the terminal."


class LoginFailed(RuntimeError):
    """The person did not log in, or the answer belongs to another request."""


class Callback:
    """Waits on the loopback interface until the browser returns with ``state``."""

    def __init__(self, state: str) -> None:
        callback = self
        self.answer: str | None = None
        self._state = state

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mine = callback.takes(self.path)
                self.send_response(200 if mine else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(DONE if mine else b"")

            def log_message(self, *_: object) -> None:
                """The code in the URL is a secret."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}{CALLBACK}"

    def takes(self, path: str) -> bool:
        """Whether the request answers our login; another program may send one to this port."""
        parts = urlsplit(path)
        if parts.path != CALLBACK or parse_qs(parts.query).get("state") != [self._state]:
            return False
        self.answer = path
        return True

    def wait(self, seconds: float) -> str:
        """The path and query of the browser's request. Raises LoginFailed after that many seconds."""
        end = time.monotonic() + seconds
        with self._server as server:
            while self.answer is None:
                server.timeout = end - time.monotonic()
                if server.timeout <= 0:
                    raise LoginFailed(f"no one logged in within {seconds:.0f} s")
                server.handle_request()
        return self.answer


def log_in(login_url: str, *, client_id: str, open_browser: bool, wait: float) -> dict[str, Any]:
    """The tokens of a person who logs in with the browser, and the claims of the ID token as ``id_claims``. Raises
    LoginFailed, or what Authlib, joserfc and requests raise."""
    metadata = requests.get(f"{login_url}/.well-known/openid-configuration", timeout=10).json()
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    callback = Callback(state)
    session = OAuth2Session(
        client_id,
        redirect_uri=callback.url,
        scope=SCOPE,
        code_challenge_method="S256",
        token_endpoint_auth_method="none",
    )
    url, _ = session.create_authorization_url(
        metadata["authorization_endpoint"], state=state, nonce=nonce, code_verifier=verifier
    )
    print(f"Log in here: {url}", flush=True)
    if open_browser:
        webbrowser.open(url)
    answer = callback.wait(wait)
    if "code" not in parse_qs(urlsplit(answer).query):
        raise LoginFailed(f"the login was refused: {parse_qs(urlsplit(answer).query).get('error', ['?'])[0]}")
    tokens = dict(
        session.fetch_token(
            metadata["token_endpoint"],
            authorization_response=callback.url + answer,
            state=state,
            code_verifier=verifier,
        )
    )
    keys = KeySet.import_key_set(requests.get(metadata["jwks_uri"], timeout=10).json())
    id_token = jwt.decode(tokens["id_token"], keys, algorithms=metadata["id_token_signing_alg_values_supported"])
    expected = {"iss": metadata["issuer"], "aud": client_id, "nonce": nonce}
    rules = {name: {"essential": True, "value": value} for name, value in expected.items()}
    jwt.JWTClaimsRegistry(**rules, exp={"essential": True}).validate(id_token.claims)  # type: ignore[arg-type]
    return tokens | {"id_claims": id_token.claims}


def order(edge_url: str, access_token: str, wait: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The order that was placed with the token, and its invoice. Raises requests' errors, or TimeoutError."""
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {access_token}"
        session.trust_env = False  # no proxies and no .netrc for the loopback interface
        placed = session.post(f"{edge_url}/orders", json=ORDER, timeout=10)
        placed.raise_for_status()
        number = placed.json()["transactionID"]
        end = time.monotonic() + wait
        while time.monotonic() < end:
            found = session.get(f"{edge_url}/invoices", timeout=10)
            found.raise_for_status()
            for invoice in found.json()["invoices"]:
                if invoice["transactionID"] == number:
                    return placed.json(), invoice
            time.sleep(0.2)
    raise TimeoutError(f"no invoice for order {number} within {wait:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Log in, show the tokens, order, show the invoice; → the exit code."""
    parser = argparse.ArgumentParser(prog="console_client", description="Log in with the browser and order two pens.")
    parser.add_argument("--login", default="http://127.0.0.1:8003", metavar="URL", help="the identity provider")
    parser.add_argument("--edge", default="http://127.0.0.1:8001", metavar="URL", help="client-service")
    parser.add_argument("--jwt", action="store_true", help="ask for a JWT in the place of an opaque access token")
    parser.add_argument("--no-browser", action="store_true", help="print the login page's address, and open nothing")
    parser.add_argument("--wait", type=float, default=300, metavar="SECONDS", help="how long to wait for the login")
    given = parser.parse_args(arguments)
    try:
        tokens = log_in(
            given.login,
            client_id=JWT_CONSOLE if given.jwt else OPAQUE_CONSOLE,
            open_browser=not given.no_browser,
            wait=given.wait,
        )
        print(
            f"\naccess token ({'JWT' if given.jwt else 'opaque'}, scope {tokens['scope']}):\n  {tokens['access_token']}"
        )
        print("ID token: " + ", ".join(f"{name}={value}" for name, value in tokens["id_claims"].items()))
        placed, invoice = order(given.edge, tokens["access_token"], wait=60)
    except (LoginFailed, TimeoutError, requests.RequestException) as failure:
        print(f"console_client: {failure}", file=sys.stderr)
        return 1
    print(f"\nordered {placed['transactionID']} for {invoice['userID']}")
    print(f"invoice {invoice['invoiceID']}: {invoice['amount']} at {invoice['utcTime']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
