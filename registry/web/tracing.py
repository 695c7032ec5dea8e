"""Spans of requests that come with a trace (`peerseal.otel`). A request without one begins none: probes, scrapes and
the calls of thousands of waiting peers would be most of what a collector gets."""

from collections.abc import Iterable, Mapping
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

from peerseal.protocol.trace_context import parse_traceparent
from peerseal.runtime.tracing import installed
from peerseal.verify.context import Before, enter_request, leave_request
from peerseal.wsgi_environ import METHOD_KEY, TRACEPARENT_KEY, telling
from registry.web.delayed_answer import DelayedBody, ended_wait
from registry.web.metrics import ENDPOINT

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def continuing(application: "WSGIApplication", routes: Mapping[str, str]) -> "WSGIApplication":
    """The application, which continues the traces of its callers, if spans are made. ``routes`` are those of the
    endpoints: an answer from memory is not routed. The span of a call that waits ends with its answer, which another
    thread may make."""

    def continued(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        given = environ.get(TRACEPARENT_KEY)
        if installed.tracer is None or ended_wait(environ) is not None or parse_traceparent(given) is None:
            return application(environ, start_response)
        context = copy_context()
        before = context.run(enter_request, None, given, environ.get(METHOD_KEY))
        leave = partial(context.run, partial(_leave, before, environ, routes))
        try:
            body = context.run(application, environ, telling(before[-1], environ, start_response))
        except BaseException:
            leave()
            raise
        if isinstance(body, DelayedBody):
            body.answer_in(context, leave)
        else:
            leave()
        return body

    return continued


def _leave(before: Before, environ: "WSGIEnvironment", routes: Mapping[str, str]) -> None:
    route = routes.get(environ.get(ENDPOINT) or "")
    if before[-1] is not None and route is not None:
        before[-1].add({"http.route": route})
    leave_request(before)
