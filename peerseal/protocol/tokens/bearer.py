"""Bearer tokens in the Authorization header of requests and messages (RFC 6750 section 2.1)."""

from typing import Final

from peerseal.errors import MalformedToken, MissingToken
from peerseal.protocol.plain import plain_text

BLANKS: Final = " \t"
"""Characters around a header's value that are no part of it (RFC 9110 section 5.5)."""

_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/"


def bearer_token(header: object) -> str:
    """The token in the header's value, not verified. The scheme may have any case.

    Raises MissingToken where there is no header, or one of another scheme. Raises MalformedToken for two values, which
    servers join with a comma, and for an invalid token.
    """
    value = (plain_text(header) or "").strip(BLANKS)
    scheme, _, rest = value.partition(" ")
    token = rest.lstrip(" ")
    if scheme.lower() == "bearer" and _is_token(token):
        return token
    if not value:
        raise MissingToken("no token")
    if "," in value:
        raise MalformedToken("the Authorization header was sent twice, or contains a comma")
    if scheme.lower() != "bearer":
        raise MissingToken("another scheme than Bearer")
    raise MalformedToken("an invalid token follows the scheme Bearer (RFC 6750 section 2.1)")


def _is_token(text: str) -> bool:
    """Whether it has the characters of a token. A regular expression would take 10 µs on each
    request."""
    characters = text.rstrip("=")
    return bool(characters) and characters.isascii() and not characters.encode("ascii").translate(None, _CHARACTERS)
