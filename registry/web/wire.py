"""Reads requests strictly, and makes answers."""

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from flask import Response, current_app, request, url_for
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.routing import BaseConverter

from peerseal.errors import MalformedToken, MissingToken
from peerseal.protocol.encoding import MAX_DIGITS, canonical_json, natural, strict_json_object
from peerseal.protocol.tokens.bearer import bearer_token as one_bearer_token
from peerseal.verify.request import Peer
from peerseal.wsgi_environ import wsgi_target
from registry.domain.admission import TOKEN_ID
from registry.domain.errors import BadRequest
from registry.services.access.operators import Operator, Role
from registry.services.keys.admit import Admitted
from registry.services.registry import Registry
from registry.web.metrics import count_admission

EXTENSION = "peerseal-registry"

WRITING = frozenset(("POST", "PUT", "PATCH", "DELETE"))
"""The methods of calls that may change something."""


def is_navigation() -> bool:
    """Whether the call shows a page, as far as the browser says: no picture, frame or script of a page asks (Fetch
    Metadata Request Headers, sections 2.1 and 2.2)."""
    mode, place = request.headers.get("Sec-Fetch-Mode", "navigate"), request.headers.get("Sec-Fetch-Dest", "document")
    return (mode, place) == ("navigate", "document")


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # PostgreSQL takes no NUL in a text
_JSON = re.compile(r"application/json(?: *; *charset=\"?utf-8\"?)?", re.IGNORECASE)


class ThumbprintConverter(BaseConverter):
    """A path segment that has the shape of an RFC 7638 SHA-256 thumbprint."""

    regex = "[A-Za-z0-9_-]{43}"


class TokenIdConverter(BaseConverter):
    """A path segment that has the shape of a join token's id."""

    regex = TOKEN_ID.pattern


class UnsupportedMedia(BadRequest):
    """A body of another media type. Answered with 415."""

    status = 415


def registry() -> Registry:
    """The use cases of the application that serves this request."""
    return cast(Registry, current_app.extensions[EXTENSION])


def location(endpoint: str, **values: Any) -> str:
    """The path of a new resource as the caller sees it: with the prefix that a proxy in front strips."""
    return registry().settings.external_prefix + url_for(endpoint, **values)


def bearer_token() -> str | None:
    """The one bearer token of the request, not verified; None where there is no Authorization header.

    Raises MalformedToken for anything else than one token: two headers arrive joined by a comma.
    """
    header = request.headers.get("Authorization")
    if header is None:
        return None
    try:
        return one_bearer_token(header)
    except MissingToken as error:
        raise MalformedToken("the Authorization header holds something else than one bearer token") from error


def calling_service(unverified_token: str) -> Peer:
    """The service that signed this request. Raises TokenError, Forbidden or TrustUnavailable."""
    target = wsgi_target(request.environ, registry().settings.external_prefix)
    headers = {name.lower(): value for name, value in request.headers.items()}
    return registry().callers.verify(unverified_token, method=request.method, target=target, body=body, headers=headers)


def operator(needs: Role) -> Operator:
    """The operator who calls. Raises MissingToken, MalformedToken, OperatorRefused or RoleRefused."""
    token = bearer_token()
    if token is None:
        raise MissingToken("an operator's token is needed")
    return registry().operators.authenticate(token, needs)


def role_named(label: str) -> Role:
    """The role of that name. Raises BadRequest."""
    try:
        return Role.of(label)
    except ValueError:
        raise BadRequest("invalid_parameter", f"role is {label!r:.40}; expected viewer, operator or admin") from None


def body() -> bytes:
    """The complete body. Raises BadRequest where a part is missing, RequestEntityTooLarge where it is too long.

    Flask truncates a chunked body at its limit without an error, and accepts a body whose sender disconnected. So
    Flask's limit is one byte more than ours, and the length is compared.
    """
    content, announced = request.get_data(), request.content_length
    if len(content) > registry().settings.limits.body:
        raise RequestEntityTooLarge
    if announced is not None and len(content) != announced:
        raise BadRequest("malformed_body", f"the body has {len(content)} bytes; its Content-Length is {announced}")
    return content


def json_body() -> dict[str, Any]:
    """The body, a JSON object read strictly. Raises UnsupportedMedia or BadRequest; 413 comes from Flask."""
    if not _JSON.fullmatch(request.headers.get("Content-Type", "")) or request.headers.get("Content-Encoding"):
        raise UnsupportedMedia("unsupported_media_type", "the body must be application/json, not encoded")
    try:
        return strict_json_object(body())
    except MalformedToken as error:
        raise BadRequest("malformed_body", str(error)) from error


def member(members: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """A member of exactly that JSON type, or the default where it is missing. Raises BadRequest."""
    value = members.get(name, default)
    if type(value) is not kind:
        raise BadRequest("malformed_body", f"member {name} is missing or of the wrong type")
    return value


def only(members: Mapping[str, Any], *names: str) -> None:
    """Raises BadRequest for members with other names."""
    if not members.keys() <= set(names):
        raise BadRequest("malformed_body", f"unknown members; expected are {', '.join(names)}")


def number(name: str, default: int = 0) -> int:
    """A query parameter that is a natural number. Raises BadRequest."""
    text = parameter(name)
    if text is None:
        return default
    value = natural(text)
    if value is None:
        raise BadRequest("invalid_parameter", f"{name} is not a natural number of at most {MAX_DIGITS} digits")
    return value


def parameter(name: str) -> str | None:
    """A query parameter, given once at most, without control characters. Raises BadRequest."""
    if not request.environ.get("QUERY_STRING"):
        return None  # most requests have none, and parsing it takes longer than answering from memory
    values = request.args.getlist(name)
    if len(values) > 1:
        raise BadRequest("invalid_parameter", f"{name} is given twice")
    if values and _CONTROL.search(values[0]):
        raise BadRequest("invalid_parameter", f"{name} holds control characters")
    return values[0] if values else None


def private_json(value: Any, status: int = 200) -> Response:
    """An answer for this caller only."""
    response = Response(canonical_json(value), status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def created(members: Mapping[str, Any], endpoint: str, **values: str) -> Response:
    """The answer about something new: 201, with the path of ``endpoint`` in Location."""
    response = private_json(members, 201)
    response.headers["Location"] = location(endpoint, **values)
    return response


def page(rows: Callable[[str, int | None], Mapping[str, Any]]) -> Response:
    """One page of rows with names: those after ``?after=``, ``?limit=`` of them at most."""
    return private_json(rows(parameter("after") or "", number("limit") or None))


def admitted_key(admitted: Admitted) -> Response:
    """The answer about a key that is registered: its statement, 201 where the key is new."""
    record, publisher = admitted.record, registry().publisher
    if admitted.appended is not None:
        count_admission(record.admitted_by)
        rendered = publisher.new_statement(record, admitted.appended)
    else:
        rendered = publisher.statement(record.service, record.thumbprint, record.admitted_seq)
    response = Response(rendered.body, 201 if admitted.new else 200, content_type=rendered.content_type)
    response.headers["Location"] = location("keys.read", service=record.service, thumbprint=record.thumbprint)
    return response


def no_content() -> Response:
    """204."""
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response
