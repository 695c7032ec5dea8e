"""Access tokens (RFC 9068) that the registry issues to services for resource servers outside of Peerseal, such as a
broker. Any JWT library verifies one with the registry's ``/.well-known/jwks.json``. Nothing in Peerseal accepts one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

ACCESS_TYP: Final = "at+jwt"


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """The claims of an access token. ``issuer`` is the registry's service id, ``service`` the id of the service that it
    is issued to, ``audience`` the resource server's URI. Times are seconds since the epoch."""

    issuer: str
    service: str
    audience: str
    scopes: frozenset[str]
    issued_at: int
    expires_at: int
    jti: str

    def claims(self) -> dict[str, Any]:
        """The payload (RFC 9068 section 2.2)."""
        return {
            "iss": self.issuer,
            "sub": self.service,
            "client_id": self.service,
            "aud": self.audience,
            "scope": scope_text(self.scopes),
            "iat": self.issued_at,
            "exp": self.expires_at,
            "jti": self.jti,
        }


def scope_text(scopes: Iterable[str]) -> str:
    """Several scopes as one text (RFC 6749 section 3.3), in one spelling."""
    return " ".join(sorted(scopes))
