"""Where the registry's log lines go, and the ids of the trace of a request in each of them."""

import logging
from collections.abc import Mapping
from typing import Final

from flask import has_request_context, request

from peerseal.protocol.trace_context import TRACEPARENT, parse_traceparent
from peerseal.runtime.log_lines import formatter_of
from peerseal.runtime.settings import SettingsReader
from peerseal.runtime.terminal import log_to_stderr
from peerseal.verify.context import current_traceparent

LOG_FORMAT: Final = "REGISTRY_LOG_FORMAT"
"""The setting: ``text``, the default, or ``json``."""
_LINE = "%(asctime)s %(levelname)s %(name)s %(message)s"


class RequestTraceFilter(logging.Filter):
    """Adds ``trace_id`` and ``span_id`` to the records of a request that came with a ``traceparent``: the current span,
    if spans are made, or the caller's."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        given = request.headers.get(TRACEPARENT) if has_request_context() else None
        ids = parse_traceparent(current_traceparent() or given)
        record.trace_id, record.span_id = ids or ("-", "-")
        return True


def configure_logging(environ: Mapping[str, str]) -> None:
    """Logs admissions and refusals to standard error, one line each, without any token or secret. Raises
    ConfigurationError."""
    formatter = formatter_of(SettingsReader(environ), LOG_FORMAT, _LINE, "registry")
    log_to_stderr(logging.INFO, formatter, RequestTraceFilter())
    logging.getLogger("alembic").setLevel(logging.WARNING)  # ``serve --dev`` migrates: a line for each revision
