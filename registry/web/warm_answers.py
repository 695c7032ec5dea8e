"""Answers to reads of public documents that are in memory, given before Flask sees the request.

Peers ask for the same few documents all the time. Flask's dispatch of a request takes longer than all that an answer
from memory needs. What is not in memory, not in force, restricted, or asked for in another way goes on to Flask.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from peerseal.protocol.names import REGISTRY
from registry.services.documents.answer_cache import PublicAnswer
from registry.services.documents.publish import AnswerName
from registry.services.registry import Registry
from registry.web.metrics import note
from registry.web.wire import public_cache_control, public_response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_PATH = re.compile(r"/v1/(?:services/([^/]+)/(?:(jwks\.jwt|jwks\.json|policy\.jwt)|keys/([^/]+)\.jwt)|domain\.jwt)")
_QUERY = re.compile(r"(?:seq=([0-9]{1,15}))?")
_STATUS_LINES = {200: "200 OK", 304: "304 NOT MODIFIED"}
_ENDPOINTS = {
    "jwks.jwt": "documents.signed_key_set",
    "jwks.json": "documents.plain_key_set",
    "statement": "documents.key_statement",
    "policy.jwt": "policies.policy_document",
    "domain.jwt": "policies.domain_document",
}


class WarmAnswers:
    """A WSGI application: answers from memory where it can, and otherwise has ``application`` answer."""

    def __init__(self, application: "WSGIApplication", registry: Registry) -> None:
        self._application = application
        self._of_service = registry.publisher
        self._of_settings = registry.documents
        self._cache_control = public_cache_control(registry.settings.limits)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """See PEP 3333."""
        name = _asked_for(environ)
        answer = None if name is None else self._kept(name, environ)
        if name is None or answer is None:
            return self._application(environ, start_response)
        status, headers, body = public_response(answer, environ, self._cache_control)
        note(environ, _ENDPOINTS[name[0]], status)
        start_response(_STATUS_LINES[status], headers.to_wsgi_list())
        return body

    def _kept(self, name: AnswerName, environ: "WSGIEnvironment") -> PublicAnswer | None:
        query = _QUERY.fullmatch(environ.get("QUERY_STRING", ""))
        if query is None:
            return None
        documents = self._of_settings if name[0] in ("policy.jwt", "domain.jwt") else self._of_service
        return documents.kept(name, int(query[1] or 0))


def _asked_for(environ: "WSGIEnvironment") -> AnswerName | None:
    """The name of the document that the request is a plain GET of."""
    found = _PATH.fullmatch(environ.get("PATH_INFO", ""))
    if found is None or environ["REQUEST_METHOD"] != "GET":
        return None
    service, kind, thumbprint = found.groups()
    if service is None:
        return "domain.jwt", REGISTRY, ""
    return ("statement", service, thumbprint) if kind is None else (kind, service, "")
