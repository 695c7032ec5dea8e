"""An issuer at which people sign in: the code flow with PKCE over HTTP, with the mistakes and lies that a test sets.

Tokens are written by PyJWT, and the checks of the token endpoint are this module's own, so none of the registry's code
says what a good request is. As a process of its own it is ``python -m tests.support.sign_in_issuer PORT``.
"""

import base64
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.support.issuer import Issuer, handler_of

CLIENT, SECRET = "registry-console", "s3cret-of-the-console"
AUTHORIZE, TOKEN = "/authorize", "/oauth/token"


class SignInIssuer(Issuer):
    """Each visitor is signed in at once as ``person``, whose claims go into the ID token; None removes one.

    ``answer_changes`` replace parameters of the answer in the browser, ``headers`` members of the token's header, and
    ``forge`` makes another token of the good one. ``forms`` are the requests of the token endpoint.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(url)
        self.clock = clock
        self.person: dict[str, Any] = {"sub": "8f1d", "preferred_username": "ada", "groups": ["sre"]}
        self.answer_changes: dict[str, str | None] = {}
        self.headers: dict[str, Any] = {}
        self.forge: Callable[[str], Any] = lambda token: token
        self.forms: list[dict[str, str]] = []
        self.asked: dict[str, str] = {}
        self._codes: dict[str, dict[str, str]] = {}

    @property
    def discovery(self) -> dict[str, Any]:
        return {
            **super().discovery,
            "authorization_endpoint": self.url + AUTHORIZE,
            "token_endpoint": self.url + TOKEN,
            "authorization_response_iss_parameter_supported": True,
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        }

    def authorize(self, address: str) -> str:
        """Where the browser goes back to, after the sign-in at that address."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert (asked["response_type"], asked["client_id"], asked["code_challenge_method"]) == ("code", CLIENT, "S256")
        assert "openid" in asked["scope"].split()
        code, self.asked = secrets.token_urlsafe(24), asked
        self._codes[code] = asked
        answer = {"code": code, "state": asked["state"], "iss": self.url} | self.answer_changes
        return f"{asked['redirect_uri']}?{urlencode({k: v for k, v in answer.items() if v is not None})}"

    def exchange(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """The answer of the token endpoint."""
        self.forms.append(form)
        if base64.b64decode(authorization.removeprefix("Basic ")).decode() != f"{CLIENT}:{SECRET}":
            return 401, {"error": "invalid_client"}
        asked = self._codes.pop(form["code"], None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=")
        if asked is None or asked["code_challenge"] != challenge.decode():
            return 400, {"error": "invalid_grant"}
        if form["redirect_uri"] != asked["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        claims = self.claims(self.person["sub"], CLIENT, now=self.clock()) | {"nonce": asked["nonce"]} | self.person
        token = self.sign({k: v for k, v in claims.items() if v is not None}, headers=self.headers)
        return 200, {"access_token": "opaque", "token_type": "Bearer", "id_token": self.forge(token)}


def sign_in_handler(issuer: SignInIssuer) -> type[BaseHTTPRequestHandler]:
    """Serves it."""

    class Handler(handler_of(issuer)):  # type: ignore[misc]  # the base is made for this issuer
        def do_GET(self) -> None:
            if self.path.startswith(f"{AUTHORIZE}?") and not issuer.down:
                self.send(302, {"Location": issuer.authorize(self.path)})
            else:
                super().do_GET()

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if issuer.down:
                self.close_connection = True
            elif self.path in issuer.answers:
                self.send(*issuer.answers[self.path])
            else:
                form = {name: values[0] for name, values in parse_qs(text).items()}
                status, answer = issuer.exchange(form, self.headers.get("Authorization", ""))
                self.send(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    return Handler


@contextmanager
def running_sign_in_issuer(clock: Callable[[], float] = time.time) -> Iterator[SignInIssuer]:
    """Such an issuer on loopback, served by threads of this process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.daemon_threads = True
    issuer = SignInIssuer(f"http://127.0.0.1:{server.server_port}", clock=clock)
    server.RequestHandlerClass = sign_in_handler(issuer)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()


def main(port: int) -> None:
    """Serve one until the process is ended."""
    issuer = SignInIssuer(f"http://127.0.0.1:{port}")
    ThreadingHTTPServer(("127.0.0.1", port), sign_in_handler(issuer)).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
