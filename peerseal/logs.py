"""Log lines that name their request: its id and its transaction's, the same at every hop.

::

    peerseal.logs.configure()                                  # once, in what makes the application
    app.wsgi_app = peerseal.logs.RequestIds(app.wsgi_app)      # only where no PeerAuth stands before the application

`configure` is for programs that configure no logging of their own. In one that does, add `RequestContextFilter` to the
handlers, and ``%(request_id)s`` and ``%(transaction_id)s`` to their format.
"""

import logging
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TextIO

from peerseal.runtime.terminal import LineFormatter
from peerseal.verify.context import current_request_id, log_context, serving
from peerseal.wsgi import REQUEST_ID_KEY, within_request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["FORMAT", "RequestContextFilter", "RequestIds", "configure", "current_request_id", "serving"]

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s [%(request_id)s %(transaction_id)s] %(message)s"
"""The lines that `configure` has written: in brackets the ids of request and transaction, ``-`` where there is none."""


class RequestContextFilter(logging.Filter):
    """Adds ``request_id`` and ``transaction_id`` to every record that passes its handler, and stops none.

    It belongs on handlers: a filter on a logger does not see the records of the loggers below it. Where a record is
    handled on another thread than it was made on (`logging.handlers.QueueHandler`), it belongs on the first handler.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        request_id, transaction_id = log_context()
        record.request_id = request_id or "-"
        record.transaction_id = transaction_id or "-"
        return True


def configure(level: int = logging.INFO, *, stream: TextIO | None = None) -> None:
    """Write what is logged from ``level`` on to ``stream`` (standard error), one line each, with its request; and each
    record of the audit as the JSON that it is, without anything before it. Where the root logger has handlers already,
    only what the audit writes is configured. May be called more than once."""
    stream = sys.stderr if stream is None else stream
    lines = logging.StreamHandler(stream)
    lines.setFormatter(LineFormatter(FORMAT))
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
    """A WSGI application of which each call runs within its request: with the ``X-Request-Id`` that came, or a new one,
    which the answer names. For the edge, where people call; `PeerAuth` of the adapters does the same by itself."""

    def __init__(self, app: "WSGIApplication") -> None:
        self._app = app

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """See PEP 3333."""
        with serving(environ.get(REQUEST_ID_KEY)) as request_id:

            def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
                return start_response(status, [*headers, ("X-Request-Id", request_id)], *error)

            return within_request(self._app(environ, start), environ)
