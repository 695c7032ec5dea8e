"""The programs that the identity provider knows (RFC 6749 section 2)."""

import hmac
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from authlib.oauth2.rfc6749 import ClientMixin

from demo.identity_provider.people import CUSTOMER_SCOPES

CALLBACK = "/callback"
OPAQUE_CONSOLE = "console"
JWT_CONSOLE = "console-jwt"
EDGE = "client-service"


@dataclass(frozen=True, slots=True)
class Client(ClientMixin):  # type: ignore[misc]  # Authlib has no annotations
    """A program. A program without a ``secret`` is public and uses PKCE alone. ``jwt`` says whether its access
    tokens are JWTs or opaque."""

    client_id: str
    jwt: bool = False
    secret: str | None = field(default=None, repr=False)

    def get_client_id(self) -> str:
        """The id."""
        return self.client_id

    def get_default_redirect_uri(self) -> None:
        """None: a request has to name its redirect URI."""

    def get_allowed_scope(self, scope: str | None) -> str:
        """The part of ``scope`` that this program may ask for."""
        return " ".join(name for name in (scope or "").split() if name in CUSTOMER_SCOPES)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Whether it is the callback on the loopback interface, on any port (RFC 8252 section 7.3)."""
        try:
            parts = urlsplit(redirect_uri)
            port = parts.port
        except ValueError:
            return False
        if port is None or self.secret is not None:
            return False
        return redirect_uri == f"http://127.0.0.1:{port}{CALLBACK}"

    def check_client_secret(self, client_secret: str) -> bool:
        """Whether the text is the program's secret."""
        return self.secret is not None and hmac.compare_digest(client_secret.encode(), self.secret.encode())

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        """A public program gets tokens; a program with a secret introspects them."""
        if self.secret is None:
            return method == "none" and endpoint == "token"
        return method == "client_secret_basic" and endpoint == "introspection"

    def check_response_type(self, response_type: str) -> bool:
        """Only authorization codes."""
        return self.secret is None and response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        """Only authorization codes."""
        return self.secret is None and grant_type == "authorization_code"


def known_clients(introspection_secret: str | None) -> dict[str, Client]:
    """The programs by id: the console client in its two forms, and client-service if it has a secret."""
    clients = [Client(OPAQUE_CONSOLE), Client(JWT_CONSOLE, jwt=True)]
    if introspection_secret is not None:
        clients.append(Client(EDGE, secret=introspection_secret))
    return {client.client_id: client for client in clients}
