"""Public documents as answers that caches may keep. Those in memory are answered before Flask sees the request.

Peers ask for the same few documents all the time. Flask's dispatch of a request takes longer than all that an answer
from memory needs. What is not in memory, not in force, restricted, or asked for in another way goes on to Flask.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from flask import Response, request
from werkzeug.datastructures import Headers

from peerseal.protocol.names import REGISTRY
from registry.limits import Limits
from registry.services.documents.answer_cache import PublicAnswer
from registry.services.documents.publish import SETTING_KINDS, AnswerName, Kind
from registry.services.registry import Registry
from registry.web.metrics import note
from registry.web.wire import registry

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

NO_TRANSFORM = "no-transform"
"""Tells proxies not to encode answers, which makes their ETags weak (RFC 9111 section 5.2.2.6). Not all obey."""
SECURITY = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)
"""Headers of every answer: no browser may guess its type, run it or frame it."""

_ENTITY_TAG = r'(?:W/)?"([\x21\x23-\x7e]*)"'  # one way to match it: with two, many tags would take for ever
_ENTITY_TAGS = re.compile(rf"[ \t,]*(?:{_ENTITY_TAG}[ \t]*(?:,[ \t,]*|\Z))+")  # RFC 9110 sections 8.8.3 and 5.6.1
_CODED = re.compile(r"(?<![-;:+])[-;:+]{1,2}(?:gzip|br|zstd|deflate)\Z")  # what a proxy that encodes answers adds
_LONGEST_TAGS = 4096  # characters of a header that are read
_PATH = re.compile(
    r"/v1/(?:services/([^/]+)/(?:(jwks\.jwt|jwks\.json|policy\.jwt)|keys/([^/]+)\.jwt|jwks/([^/]+)\.jwt)|(domain\.jwt|federation\.jwt))"
)
_QUERY = re.compile(r"(?:seq=(0|[1-9][0-9]{0,14}))?")
_STATUS_LINES = {200: "200 OK", 304: "304 NOT MODIFIED"}
_ENDPOINTS = {
    "jwks.jwt": "documents.signed_key_set",
    "part": "documents.key_set_part",
    "jwks.json": "documents.plain_key_set",
    "statement": "documents.key_statement",
    "policy.jwt": "policies.policy_document",
    "domain.jwt": "policies.domain_document",
    "federation.jwt": "policies.federation_document",
}


class Published(Response):
    """An answer with all its headers. It shares them with other answers, so they must not be changed."""

    default_mimetype = None

    def get_wsgi_headers(self, environ: "WSGIEnvironment") -> Headers:
        """See Response, which copies and completes the headers. That took a tenth of the time of an answer."""
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
    if known is not None and (known == answer.etag or _is_known(known, answer.etag)):
        return 304, _headers(answer.etag, cache_control), []
    return 200, _headers(answer.etag, cache_control, answer.content_type, len(answer.body)), [answer.body]


def _is_known(if_none_match: str, etag: str) -> bool:
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
    headers = [*SECURITY, ("ETag", etag), ("Cache-Control", f"{cache_control}, {NO_TRANSFORM}")]
    content = [] if content_type is None else [("Content-Type", content_type), ("Content-Length", str(length))]
    return Headers([*headers, *content])


def answered_with(
    answer: PublicAnswer,
    environ: "WSGIEnvironment",
    start_response: "StartResponse",
    endpoint: str | None,
    cache_control: str,
) -> Iterable[bytes]:
    """Answers without Flask: starts the response, returns the body, and notes the request for the metrics of
    ``endpoint``."""
    status, headers, body = public_response(answer, environ, cache_control)
    note(environ, endpoint, status)
    start_response(_STATUS_LINES[status], headers.to_wsgi_list())
    return body


class WarmAnswers:
    """A WSGI application: answers from memory where it can, and otherwise has ``application`` answer."""

    def __init__(self, application: "WSGIApplication", use_cases: Registry) -> None:
        self._application = application
        self._publisher = use_cases.publisher
        self._setting_documents = use_cases.documents
        self._cache_control = public_cache_control(use_cases.settings.limits)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """See PEP 3333."""
        name = _asked_for(environ)
        answer = None if name is None else self._kept(name, environ)
        if name is None or answer is None:
            return self._application(environ, start_response)
        return answered_with(answer, environ, start_response, _ENDPOINTS[name[0]], self._cache_control)

    def _kept(self, name: AnswerName, environ: "WSGIEnvironment") -> PublicAnswer | None:
        query = _QUERY.fullmatch(environ.get("QUERY_STRING", ""))
        if query is None:
            return None
        documents = self._setting_documents if name[0] in SETTING_KINDS else self._publisher
        try:
            return documents.kept(name, int(query[1] or 0))
        except Exception:  # Flask answers with the error, as a problem document
            return None


def _asked_for(environ: "WSGIEnvironment") -> AnswerName | None:
    """The name of the document that the request is a plain GET of."""
    found = _PATH.fullmatch(environ.get("PATH_INFO", ""))
    if found is None or environ["REQUEST_METHOD"] != "GET" or "HTTP_UPGRADE" in environ:
        return None
    service, kind, thumbprint, part, of_domain = found.groups()
    if service is None:
        return cast(Kind, of_domain), REGISTRY, ""
    if part is not None:
        return "part", service, part
    return ("statement", service, thumbprint) if kind is None else (cast(Kind, kind), service, "")
