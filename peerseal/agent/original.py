"""The questions of proxies: is this request of a stranger to be passed on?

Each proxy tells method and target in its own way. Both are believed: only users in the agent's list can ask. The proxy
also says in ``X-Original-Body`` what it knows of the body. Without these headers the agent does not answer, so that a
forgotten line of the proxy's configuration shows at the first request.

=====================  =====================================  ======================================================
where                  nginx ``auth_request``                 Envoy ``ext_authz`` over HTTP
=====================  =====================================  ======================================================
path of the question   ``/authz``                             ``/authz`` and the request-target (``path_prefix``)
method                 ``X-Original-Method``                  the question's own
target                 ``X-Original-URI``                     the question's own, after ``/authz``
body                   ``X-Original-Body: none`` where nginx  ``X-Original-Body: sent``, and the question has it
                       knows that there is none
=====================  =====================================  ======================================================
"""

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from peerseal.agent.questions import QuestionRefused
from peerseal.asgi_routes import Scope
from peerseal.path_needs import is_ambiguous

AUTHZ = "/authz"
_METHOD, _TARGET, _BODY = "x-original-method", "x-original-uri", "x-original-body"
_NONE, _SENT = "none", "sent"


class OriginalRequest(NamedTuple):
    """The request at the proxy. ``body_is_here`` says whether the question has its body, or there is none."""

    method: str
    target: str
    body_is_here: bool

    @property
    def is_ambiguous(self) -> bool:
        """Whether the proxy and the service may read different paths in the target."""
        path = unquote_to_bytes(self.target.partition("?")[0].encode("latin-1", "backslashreplace"))
        return is_ambiguous(path.decode("utf-8", "surrogateescape"))


def original_request(scope: Scope, headers: Mapping[str, str]) -> OriginalRequest:
    """Raises QuestionRefused where the proxy does not tell enough."""
    path, body = raw_path(scope), _told(headers, _BODY)
    if path == AUTHZ:
        return OriginalRequest(_told(headers, _METHOD), _told(headers, _TARGET), body == _NONE)
    query = scope["query_string"].decode("latin-1")
    target = path.removeprefix(AUTHZ) + (f"?{query}" if query else "")
    return OriginalRequest(scope["method"], target, body == _SENT)


def raw_path(scope: Scope) -> str:
    """The path of the question, as it was sent."""
    path: bytes = scope["raw_path"]
    return path.decode("latin-1")


def _told(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        raise QuestionRefused("proxy_header_missing", f"{name}: the proxy must set it (docs/how-to/agent.md)")
    return value
