"""What a refused caller is answered (RFC 9457, RFC 6750 section 3), and what the log says of it: for every adapter."""

import json
import re
import secrets
from http import HTTPStatus
from typing import Final, NamedTuple

from peerseal.errors import (
    ContentTooLarge,
    ContentUnreadable,
    Forbidden,
    MissingToken,
    PeersealError,
    TokenError,
    TrustUnavailable,
)
from peerseal.protocol import jose
from peerseal.protocol.encoding import strict_json_object
from peerseal.wsgi import bearer_token

REFUSALS: Final = (TokenError, Forbidden, TrustUnavailable, ContentTooLarge, ContentUnreadable)
"""What verification of a request raises."""
PROBLEM: Final = "application/problem+json"
LOGGED: Final = "%s: %s; unverified caller %r, kid %r; request %s; %r"
"""The log's line: what was done, code, caller, kid, request id, detail."""

_LONGEST = 200  # characters of anything unverified
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,64}")


class Refused(NamedTuple):
    """An answer, before a framework makes its own of it."""

    status: int
    headers: dict[str, str]
    body: bytes


def answer(error: PeersealError) -> Refused:
    """The answer to a refused call. It says the code and nothing of the request."""
    status = error.status
    members = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "code": error.code}
    headers = {"Content-Type": PROBLEM, "Cache-Control": "no-store"}
    if isinstance(error, TokenError):
        proven = "" if isinstance(error, MissingToken) else ' error="invalid_token"'
        headers["WWW-Authenticate"] = f"Bearer{proven}"
    elif isinstance(error, Forbidden):
        headers["WWW-Authenticate"] = 'Bearer error="insufficient_scope"'
    elif isinstance(error, TrustUnavailable):
        headers["Retry-After"] = str(error.retry_after)
    return Refused(status, headers, json.dumps(members).encode("ascii"))


def logged(what: str, error: PeersealError, authorization: str | None, request_id: str) -> tuple[object, ...]:
    """The arguments of LOGGED. ``request_id`` is the caller's, which stands there only if it may as it is."""
    caller, kid = _claimed(authorization)
    shown = request_id if _REQUEST_ID.fullmatch(request_id) else secrets.token_hex(8)
    return what, error.code, caller, kid, shown, str(error)[:_LONGEST]


def _claimed(authorization: str | None) -> tuple[str | None, str | None]:
    """Whom an unverified token claims to come from, and the kid that it names, as far as they can be read."""
    kid = None
    try:
        token = jose.parse(bearer_token(authorization))
        kid = token.header.kid[:_LONGEST]
        return str(strict_json_object(token.payload).get("iss"))[:_LONGEST], kid
    except TokenError:
        return None, kid
