"""Problem documents (RFC 9457): how a refused request is answered, whatever the framework.

The answer names the stable code. `problem_of` writes nothing of the request and no detail of the error, which are for
the log only. `problem` writes a ``detail`` and further members if its caller gives them.
"""

from http import HTTPStatus
from typing import Final, NamedTuple

from peerseal.errors import PeersealError
from peerseal.protocol.encoding import canonical_json

MEDIA_TYPE: Final = "application/problem+json"


class Problem(NamedTuple):
    """An answer that holds a problem document; an adapter turns it into its framework's response."""

    status: int
    headers: dict[str, str]
    body: bytes


def problem(
    status: int,
    code: str,
    *,
    detail: str | None = None,
    challenge: str | None = None,
    retry_after: int | None = None,
    **extensions: str,
) -> Problem:
    """The answer with this status and stable code.

    ``challenge`` is the value of WWW-Authenticate (RFC 6750 section 3), ``retry_after`` that of Retry-After in seconds.
    ``extensions`` are further members of the document.
    """
    members = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "code": code, **extensions}
    headers = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"}
    if detail is not None:
        members["detail"] = detail
    if challenge is not None:
        headers["WWW-Authenticate"] = challenge
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return Problem(status, headers, canonical_json(members))


def problem_of(error: PeersealError, **extensions: str) -> Problem:
    """The answer to a request that was refused with this error."""
    return problem(error.status, error.code, challenge=error.challenge, retry_after=error.retry_after, **extensions)
