"""gunicorn's own log lines as JSON, with those of the application: ``--logger-class peerseal.gunicorn.Logger``.

With ``PEERSEAL_LOG_FORMAT=text``, the default, gunicorn's lines are as ever. An access line in JSON names the path
without its query, which may hold a secret, and no header but the ids of request and trace.
"""

import os
from datetime import timedelta
from typing import Any, ClassVar

from gunicorn import glogging  # type: ignore[import-untyped]

from peerseal.protocol.trace_context import parse_traceparent
from peerseal.runtime.log_lines import JsonFormatter, fields, json_wanted
from peerseal.runtime.settings import SettingsReader
from peerseal.verify.context import REQUEST_ID, valid_request_id
from peerseal.wsgi_environ import REQUEST_ID_KEY, TRACEPARENT_KEY

_LONGEST = 400  # characters of a path or an address


class Logger(glogging.Logger):  # type: ignore[misc]
    """gunicorn's logger. Raises ConfigurationError for another value of the setting."""

    SETTING: ClassVar[str] = "PEERSEAL_LOG_FORMAT"
    """The variable that chooses the format."""

    def setup(self, cfg: Any) -> None:
        """See gunicorn."""
        super().setup(cfg)
        settings = SettingsReader(os.environ)
        self._json = json_wanted(settings, self.SETTING)
        if self._json:
            formatter = JsonFormatter(self.service(settings))
            for handler in (*self.error_log.handlers, *self.access_log.handlers):
                handler.setFormatter(formatter)

    def service(self, settings: SettingsReader) -> str | None:
        """The name of the service whose lines these are."""
        return settings.text("PEERSEAL_SERVICE")

    def access(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> None:
        """See gunicorn."""
        if not self._json:
            super().access(resp, req, environ, request_time)
        elif self.cfg.accesslog:
            line = _access(resp, environ, request_time)
            self.access_log.info("%(method)s %(path)s %(status)s", line, extra=fields(**line))


def _access(resp: Any, environ: Any, request_time: timedelta) -> dict[str, Any]:
    trace = parse_traceparent(environ.get(TRACEPARENT_KEY))
    answered = {str(name).lower(): str(value) for name, value in resp.headers}
    return {
        "method": str(environ.get("REQUEST_METHOD"))[:_LONGEST],
        "path": str(environ.get("RAW_URI") or environ.get("PATH_INFO")).partition("?")[0][:_LONGEST],
        "status": int(str(resp.status).split(maxsplit=1)[0]),
        "bytes": getattr(resp, "sent", 0),
        "seconds": round(request_time.total_seconds(), 6),
        "address": str(environ.get("REMOTE_ADDR"))[:_LONGEST],
        "request_id": answered.get(REQUEST_ID) or valid_request_id(environ.get(REQUEST_ID_KEY)),
        "trace_id": trace and trace.trace_id,
        "span_id": trace and trace.span_id,
    }
