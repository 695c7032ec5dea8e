"""Bearer tokens in the Authorization header of requests and messages (RFC 6750 section 2.1)."""

import re
from typing import Final

from peerseal.errors import MalformedToken, MissingToken
from peerseal.protocol.plain import plain_text

BLANKS: Final = " \t"
"""What stands around a header's value and is no part of it (RFC 9110 section 5.5)."""

_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE | re.ASCII)


def bearer_token(header: object) -> str:
    """The token in the header's value, not verified. The scheme may stand in any case.

    Raises MissingToken where there is no header, or one of another scheme. Raises MalformedToken for two values, which
    servers join with a comma, and for an invalid token.
    """
    value = (plain_text(header) or "").strip(BLANKS)
    match = _BEARER.fullmatch(value)
    if match is not None:
        return match[1]
    if not value:
        raise MissingToken("no token")
    if "," in value:
        raise MalformedToken("two values of the token's header, or a comma in one")
    if value.partition(" ")[0].lower() != "bearer":
        raise MissingToken("another scheme than Bearer")
    raise MalformedToken("an invalid token follows the scheme Bearer (RFC 6750 section 2.1)")
