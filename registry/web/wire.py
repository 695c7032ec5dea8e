"""Reads requests strictly, and makes answers."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from flask import Response, current_app, request, url_for
from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.routing import BaseConverter

from peerseal.errors import MalformedToken, MissingToken
from peerseal.protocol.encoding import MAX_DIGITS, canonical_json, natural, strict_json_object
from peerseal.protocol.tokens.bearer import bearer_token as one_bearer_token
from peerseal.verify.request import Peer
from peerseal.wsgi import wsgi_target
from registry.domain.admission import TOKEN_ID
from registry.domain.errors import BadRequest
from registry.services.access.operators import Operator, Role
from registry.services.documents.answer_cache import PublicAnswer
from registry.services.keys.admit import Admitted
from registry.services.registry import Registry
from registry.settings import Limits
from registry.web.metrics import count_admission, note

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

EXTENSION = "peerseal-registry"

NO_TRANSFORM = "no-transform"
"""Tells proxies not to encode answers, which makes their ETags weak (RFC 9111 section 5.2.2.6). Not all obey."""
WRITING = frozenset(("POST", "PUT", "PATCH", "DELETE"))
"""The methods of calls that may change something."""

_ENTITY_TAG = r'(?:W/)?"([\x21\x23-\x7e]*)"'  # one way to match it: with two, many tags would take for ever
_ENTITY_TAGS = re.compile(rf"[ \t,]*(?:{_ENTITY_TAG}[ \t]*(?:,[ \t,]*|\Z))+")  # RFC 9110 sections 8.8.3 and 5.6.1
_CODED = re.compile(r"(?<![-;:+])[-;:+]{1,2}(?:gzip|br|zstd|deflate)\Z")  # what a proxy that encodes answers adds
_LONGEST_TAGS = 4096  # characters of a header that are read
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # PostgreSQL takes no NUL in a text
_JSON = re.compile(r"application/json(?: *; *charset=\"?utf-8\"?)?", re.IGNORECASE)
_SECURITY = (  # no browser may guess the type of an answer, run it or frame it
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)


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


class Published(Response):
    """An answer with all its headers. It shares them with other answers, so they must not be changed."""

    default_mimetype = None

    def get_wsgi_headers(self, environ: "WSGIEnvironment") -> Headers:
        """See Response, which copies and completes the headers: a tenth of the time of a warm answer."""
        return self.headers


def published(rendered: PublicAnswer, cache_control: str | None = None) -> Response:
    """An answer that caches may keep, or 304 where the caller has it."""
    status, headers, body = public_response(
        rendered, request.environ, cache_control or public_cache_control(registry().settings.limits)
    )
    note(request.environ, request.endpoint, status)
    return Published(body, status, headers)


def public_cache_control(limits: Limits) -> str:
    """The Cache-Control of documents that everyone may read."""
    return f"public, max-age={limits.max_age}, stale-if-error={limits.stale_if_error}"


def public_response(
    answer: PublicAnswer, environ: "WSGIEnvironment", cache_control: str
) -> tuple[int, Headers, list[bytes]]:
    """Status, headers and body of an answer: 200, or 304 where the caller has it (RFC 9110 section 13.1.2). The headers
    are shared with other answers, so they must not be changed: making them took longer than the rest of a warm
    answer."""
    known = environ.get("HTTP_IF_NONE_MATCH")
    if known is not None and (known == answer.etag or _names(known, answer.etag)):
        return 304, _headers(answer.etag, cache_control), []
    return 200, _headers(answer.etag, cache_control, answer.content_type, len(answer.body)), [answer.body]


def _names(if_none_match: str, etag: str) -> bool:
    """Whether the header names this ETag, also as a weak one (RFC 9110 section 13.1.2) or as a proxy changed it."""
    return if_none_match.strip() == "*" or etag[1:-1] in entity_tags(if_none_match)


def entity_tags(header: str) -> set[str]:
    """The opaque tags in If-Match or If-None-Match. Weak tags count, and the suffix of a proxy that encodes answers is
    removed: nginx makes ``"N"`` weak, Apache makes it ``"N-gzip"``, and clients send that back. A header that is no
    list of tags names none."""
    if len(header) > _LONGEST_TAGS or not _ENTITY_TAGS.fullmatch(header):
        return set()
    return {_CODED.sub("", match[1]) for match in re.finditer(_ENTITY_TAG, header)}


@lru_cache(4096)
def _headers(etag: str, cache_control: str, content_type: str | None = None, length: int = 0) -> Headers:
    headers = [*_SECURITY, ("ETag", etag), ("Cache-Control", f"{cache_control}, {NO_TRANSFORM}")]
    content = [] if content_type is None else [("Content-Type", content_type), ("Content-Length", str(length))]
    return Headers([*headers, *content])


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


def after_request(response: Response) -> Response:
    """Adds the headers that all answers have, and counts the answers that `published` did not count."""
    if not isinstance(response, Published):
        response.headers.update(_SECURITY)
        response.headers.setdefault("Cache-Control", "no-store")
        if request.method in WRITING and response.status_code < 300:
            registry().housekeeping.now_and_then()
        note(request.environ, request.endpoint, response.status_code)
    return response
