"""An issuer of opaque tokens: Authlib's introspection endpoint and client authentication, served over HTTP.

So none of our own code says how an issuer reads a question. Signed answers are signed by PyJWT, with the issuer's key.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from flask import Flask, Response, request
from joserfc.jwk import KeySet
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.support.issuer import Issuer, running_issuer

SIGNED = "token-introspection+jwt"


@dataclass
class Client:
    """A service that may ask: with a secret, or with the keys that it publishes."""

    client_id: str
    secret: str | None = None
    published: Callable[[], list[dict[str, Any]]] | None = None

    def check_client_secret(self, secret: str) -> bool:
        """For Authlib."""
        return secret == self.secret

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        """For Authlib."""
        return method == ("client_secret_basic" if self.secret else "client_assertion_jwt")


@dataclass
class OpaqueToken:
    """One that was issued, with what is said about it."""

    members: dict[str, Any]
    revoked: bool = False

    def is_expired(self) -> bool:
        """For Authlib. The tests' clocks are not this server's, so a test revokes what has ended."""
        return False

    def is_revoked(self) -> bool:
        """For Authlib."""
        return self.revoked


@dataclass
class Introspecting:
    """What the issuer knows and was asked. ``override`` answers in its place, given the honest answer's members; a
    cleared ``open`` holds every answer back."""

    issuer: Issuer
    url: str = ""
    clients: dict[str, Client] = field(default_factory=dict)
    tokens: dict[str, OpaqueToken] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    most_at_once: int = 0
    signs: bool = False
    override: Callable[[dict[str, Any]], Response] | None = None
    open: threading.Event = field(default_factory=threading.Event)
    forms: list[dict[str, str]] = field(default_factory=list)
    now: Callable[[], float] = time.time

    @property
    def calls(self) -> int:
        """How often it was asked."""
        return self.asked.total()

    def issue(self, token: str, subject: str = "ada", **changes: Any) -> str:
        """Issues that token. ``changes`` replace members of the answer; None takes one away."""
        now = int(self.now())
        members = {
            "iss": self.issuer.url,
            "sub": subject,
            "aud": "edge",
            "scope": "orders:write orders:read",
            "client_id": "spa",
            "token_type": "Bearer",
            "iat": now,
            "exp": now + 600,
            "jti": f"id-of-{subject}",
        }
        self.tokens[token] = OpaqueToken({n: v for n, v in (members | changes).items() if v is not None})
        return token

    def signed(self, members: Mapping[str, Any], *, typ: str = SIGNED, **changes: Any) -> str:
        """An answer of RFC 9701 with these members. ``changes`` replace its own claims; None takes one away."""
        claims = {"iss": self.issuer.url, "aud": "edge-client", "iat": int(self.now())}
        claims |= {"token_introspection": dict(members), **changes}
        return self.issuer.sign({n: v for n, v in claims.items() if v is not None}, headers={"typ": typ})


def _application(state: Introspecting) -> Flask:
    app = Flask("issuer")

    class Assertions(JWTBearerClientAssertion):  # type: ignore[misc]
        def get_audiences(self) -> list[str]:
            return [state.issuer.url]

        def validate_jti(self, claims: Any, jti: str) -> bool:
            return True

        def resolve_client_public_key(self, client: Client) -> KeySet:
            assert client.published is not None
            return KeySet.import_key_set({"keys": [dict(key) for key in client.published()]})

    class Endpoint(IntrospectionEndpoint):  # type: ignore[misc]
        CLIENT_AUTH_METHODS = ["client_secret_basic", "client_assertion_jwt"]  # noqa: RUF012 - as Authlib has it

        def check_permission(self, token: Any, client: Any, request: Any) -> bool:
            return True

        def query_token(self, token_string: str, token_type_hint: str | None) -> OpaqueToken | None:
            return state.tokens.get(token_string)

        def introspect_token(self, token: OpaqueToken) -> dict[str, Any]:
            return dict(token.members)

    server = AuthorizationServer(app, query_client=state.clients.get)
    server.register_client_auth_method("client_assertion_jwt", Assertions())
    server.register_endpoint(Endpoint)

    @app.post("/introspect")
    def introspect() -> Response:
        state.asked[request.form["token"]] += 1
        state.forms.append(request.form.to_dict())
        state.waiting += 1
        state.most_at_once = max(state.most_at_once, state.waiting)
        state.open.wait(30)
        state.waiting -= 1
        answer: Response = server.create_endpoint_response("introspection")
        if answer.status_code != 200:
            return answer
        if state.override is not None:
            return state.override(json.loads(answer.data))
        if state.signs:
            return Response(state.signed(json.loads(answer.data)), mimetype=f"application/{SIGNED}")
        return answer

    return app


class _Silent(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any, **__: Any) -> None:
        pass

    def make_environ(self) -> Any:
        """Authlib answers https only; on loopback the tests speak http."""
        return super().make_environ() | {"wsgi.url_scheme": "https"}


@contextmanager
def running_introspection(*, alg: str = "ES256", now: Callable[[], float] = time.time) -> Iterator[Introspecting]:
    """An issuer on loopback with its keys, and its introspection endpoint."""
    with running_issuer(alg=alg) as issuer:
        state = Introspecting(issuer, now=now)
        state.open.set()
        server = make_server("127.0.0.1", 0, _application(state), threaded=True, request_handler=_Silent)
        server.daemon_threads = True  # type: ignore[attr-defined]
        state.url = f"http://127.0.0.1:{server.server_port}/introspect"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield state
        finally:
            state.open.set()
            server.shutdown()
            server.server_close()
