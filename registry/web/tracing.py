"""Spans of requests that come with a trace (`peerseal.otel`). A request without one begins none: probes, scrapes and
the calls of thousands of waiting peers would be most of what a collector gets."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from peerseal.protocol.trace_context import parse_traceparent
from peerseal.runtime.tracing import installed
from peerseal.verify.context import enter_request, leave_request
from peerseal.wsgi_environ import METHOD_KEY, TRACEPARENT_KEY, telling
from registry.web.metrics import ENDPOINT

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def continuing(application: "WSGIApplication", routes: Mapping[str, str]) -> "WSGIApplication":
    """The application, which continues the traces of its callers, if spans are made. ``routes`` are those of the
    endpoints: an answer from memory is not routed."""

    def continued(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        given = environ.get(TRACEPARENT_KEY)
        if installed.tracer is None or parse_traceparent(given) is None:
            return application(environ, start_response)
        before = enter_request(None, given, environ.get(METHOD_KEY))
        try:
            body = application(environ, telling(before[-1], environ, start_response))
            route = routes.get(environ.get(ENDPOINT) or "")
            if before[-1] is not None and route is not None:
                before[-1].add({"http.route": route})
            return body
        finally:
            leave_request(before)

    return continued
