"""Log lines with the id of the request and of its transaction, which are the same in all services.

::

    peerseal.logs.configure()                                  # once, where the application is made
    app.wsgi_app = peerseal.logs.RequestIds(app.wsgi_app)      # only for an application without PeerAuth

With ``PEERSEAL_LOG_FORMAT=json`` each line is a JSON object (`peerseal.runtime.log_lines`).

`configure` is for programs without a logging configuration. Any other program adds `RequestContextFilter` to its
handlers, and ``%(request_id)s`` and ``%(transaction_id)s`` to their format.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, TextIO

from peerseal.protocol.trace_context import parse_traceparent
from peerseal.runtime.log_lines import formatter_of
from peerseal.runtime.settings import SettingsReader
from peerseal.verify.context import (
    REQUEST_ID,
    current_request_id,
    current_traceparent,
    log_context,
    request_span,
    serving,
)
from peerseal.wsgi_environ import METHOD_KEY, REQUEST_ID_KEY, TRACEPARENT_KEY, telling, within_request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["FORMAT", "RequestContextFilter", "RequestIds", "configure", "current_request_id", "formatter", "serving"]

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s [%(request_id)s %(transaction_id)s] %(message)s"
"""The format of `configure`, with the ids of request and transaction in brackets; ``-`` if there is none."""


LOG_FORMAT: Final = "PEERSEAL_LOG_FORMAT"
"""The setting: ``text``, the default, or ``json``."""


class RequestContextFilter(logging.Filter):
    """Adds ``request_id``, ``transaction_id``, ``trace_id`` and ``span_id`` to every record of a handler; ``-`` where
    there is none.

    Add it to handlers: a filter of a logger does not see the records of the loggers below it. If another thread handles
    the records (`logging.handlers.QueueHandler`), add it to the first handler.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        request_id, transaction_id = log_context()
        record.request_id = request_id or "-"
        record.transaction_id = transaction_id or "-"
        ids = parse_traceparent(current_traceparent())
        record.trace_id, record.span_id = ids or ("-", "-")
        return True


def formatter(form: str = FORMAT, environ: Mapping[str, str] = os.environ) -> logging.Formatter:
    """The formatter that ``PEERSEAL_LOG_FORMAT`` chooses: ``text``, in that form, or ``json``. Raises
    ConfigurationError."""
    settings = SettingsReader(environ)
    return formatter_of(settings, LOG_FORMAT, form, settings.text("PEERSEAL_SERVICE"))


def configure(level: int = logging.INFO, *, stream: TextIO | None = None) -> None:
    """Write records from ``level`` on to ``stream`` (standard error by default): one line each with its request ids, or
    JSON only for records of the audit. If the root logger has handlers, only the audit is configured. May be called
    more than once. ``PEERSEAL_LOG_FORMAT`` chooses between text and JSON. Raises ConfigurationError."""
    stream = sys.stderr if stream is None else stream
    lines = logging.StreamHandler(stream)
    lines.setFormatter(formatter())
    lines.addFilter(RequestContextFilter())
    logging.basicConfig(level=level, handlers=[lines])
    audit = logging.getLogger("peerseal.audit")
    if not audit.handlers:
        records = logging.StreamHandler(stream)
        records.setFormatter(logging.Formatter("%(message)s"))
        audit.addHandler(records)
        audit.setLevel(logging.INFO)
        audit.propagate = False


class RequestIds:
    """Middleware that sets the request id: that of the ``X-Request-Id`` header, or a new one. The answer repeats it.
    For services that users call; `PeerAuth` does the same by itself."""

    def __init__(self, app: "WSGIApplication") -> None:
        self._app = app

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """See PEP 3333."""
        span = request_span(environ.get(METHOD_KEY))
        with serving(environ.get(REQUEST_ID_KEY), environ.get(TRACEPARENT_KEY)) as request_id, span or nullcontext():
            start_response = telling(span, environ, start_response)

            def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
                others = [(name, value) for name, value in headers if name.lower() != REQUEST_ID]  # a refusal has it
                return start_response(status, [*others, ("X-Request-Id", request_id)], *error)

            return within_request(self._app(environ, start), environ)
