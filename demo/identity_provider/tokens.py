"""Access tokens and authorization codes, kept in memory: a restart ends every login."""

import hashlib
import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from authlib.oauth2.rfc6749 import TokenMixin
from authlib.oidc.core import AuthorizationCodeMixin
from joserfc import jwt

from demo.identity_provider.clients import EDGE, Client
from demo.identity_provider.keys import ALG, SigningKey
from demo.identity_provider.people import Person

LIFETIME = 15 * 60
"""The lifetime of an access token, in seconds."""
CODE_LIFETIME = 60
"""The lifetime of a code, in seconds."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class OpaqueToken(TokenMixin):  # type: ignore[misc]  # Authlib has no annotations
    """The data of an opaque token. Times are in seconds since the epoch."""

    client_id: str
    person: Person
    scope: str
    issued_at: int
    expires_at: int
    clock: Clock = field(repr=False, compare=False)

    def is_expired(self) -> bool:
        """Whether it has expired."""
        return self.clock() >= self.expires_at

    def is_revoked(self) -> bool:
        """Always false: a revoked token is deleted."""
        return False


@dataclass(frozen=True, slots=True)
class AuthorizationCode(AuthorizationCodeMixin):  # type: ignore[misc]  # Authlib has no annotations
    """A code, bound to the program, its redirect URI and its PKCE challenge."""

    client_id: str
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str
    code_challenge_method: str
    person: Person
    authenticated_at: int

    def get_redirect_uri(self) -> str:
        """Authlib asks for it."""
        return self.redirect_uri

    def get_scope(self) -> str:
        """Authlib asks for it."""
        return self.scope

    def get_nonce(self) -> str | None:
        """For the ID token (Authlib asks for it)."""
        return self.nonce

    def get_auth_time(self) -> int:
        """For the ID token (Authlib asks for it)."""
        return self.authenticated_at


class Tokens:
    """Issues tokens in the name of ``issuer``. ``clock`` gives seconds since the epoch. Safe to use from threads."""

    def __init__(self, issuer: str, key: SigningKey, clock: Clock) -> None:
        self.issuer = issuer
        self.key = key
        self.clock = clock
        self._lock = threading.Lock()
        self._opaque: dict[bytes, OpaqueToken] = {}
        self._codes: dict[bytes, AuthorizationCode] = {}

    def issue(self, person: Person, client: Client, scope: str) -> str:
        """An access token for that person, opaque or a JWT as the program wants."""
        scope = " ".join(name for name in scope.split() if name in person.scopes)
        return (
            self.issue_jwt(person, client.client_id, scope) if client.jwt else self._issue_opaque(person, client, scope)
        )

    def issue_jwt(self, person: Person, client_id: str, scope: str) -> str:
        """A JWT as an access token (RFC 9068)."""
        now = int(self.clock())
        claims = {
            "iss": self.issuer,
            "sub": person.name,
            "aud": EDGE,
            "client_id": client_id,
            "scope": scope,
            "jti": str(uuid.uuid4()),
            "iat": now,
            "exp": now + LIFETIME,
        }
        return jwt.encode({"alg": ALG, "kid": self.key.kid, "typ": "at+jwt"}, claims, self.key.key, algorithms=[ALG])

    def _issue_opaque(self, person: Person, client: Client, scope: str) -> str:
        token, now = secrets.token_urlsafe(32), int(self.clock())
        with self._lock:
            self._opaque = {name: kept for name, kept in self._opaque.items() if not kept.is_expired()}
            self._opaque[_digest(token)] = OpaqueToken(client.client_id, person, scope, now, now + LIFETIME, self.clock)
        return token

    def find(self, token: str) -> OpaqueToken | None:
        """The data of an opaque token; None for any other text."""
        with self._lock:
            return self._opaque.get(_digest(token))

    def revoke(self, token: str) -> None:
        """Forget an opaque token (RFC 7009)."""
        with self._lock:
            self._opaque.pop(_digest(token), None)

    def add_code(self, code: str, granted: AuthorizationCode) -> None:
        """Keep a code until it is used or expires."""
        oldest = self.clock() - CODE_LIFETIME
        with self._lock:
            self._codes = {name: kept for name, kept in self._codes.items() if kept.authenticated_at > oldest}
            self._codes[_digest(code)] = granted

    def take_code(self, code: str) -> AuthorizationCode | None:
        """Removes the code and returns its grant: of two programs that show it, one gets tokens."""
        with self._lock:
            granted = self._codes.pop(_digest(code), None)
        return granted if granted and granted.authenticated_at > self.clock() - CODE_LIFETIME else None

    def described(self, token: OpaqueToken) -> dict[str, Any]:
        """The members of an introspection answer (RFC 7662 section 2.2)."""
        return {
            "active": True,
            "iss": self.issuer,
            "sub": token.person.name,
            "aud": EDGE,
            "client_id": token.client_id,
            "scope": token.scope,
            "iat": token.issued_at,
            "exp": token.expires_at,
        }


def _digest(secret: str) -> bytes:
    """The hash that is kept in place of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
