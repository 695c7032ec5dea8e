"""Log records as JSON, one object in a line, and the setting that chooses it.

The message stays as it is. Members of their own come from ``extra=fields(code=…)``, where a log call has data that
programs select by, and from attributes that a filter adds (`CONTEXT`). What looks like a token, a password in a URL or
a private key is replaced: the log calls of ours contain none, those of other libraries may.
"""

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from peerseal.errors import ConfigurationError
from peerseal.runtime.settings import SettingsReader
from peerseal.runtime.terminal import LineFormatter

FORMATS: Final = ("text", "json")
"""The values of the setting."""
CONTEXT: Final = ("request_id", "transaction_id", "trace_id", "span_id")
"""Attributes of records that become members, if they have a value. ``-`` counts as none."""

_FIELDS: Final = "peerseal_fields"
_SECRETS = re.compile(
    # A compact JWS or JWE. It is looked for once in each run of these characters that a dot follows.
    r"(?<![\w-])(?=[\w-]++\.)(?P<before>[\w-]*?)eyJ[\w-]{8,}+(?:\.[\w-]*+){1,4}"
    r"|\bps[jo]1\.[\w.-]+"  # join tokens, operator tokens
    r"|(?<=://)[^/\s:@]*+:[^/\s]*(?=@)"  # user and password in a URL
    r"|(?i:\bpassword=)[^\s&]+"  # in its query, or in a connection string
    r"|(?i:\b(?:bearer|basic) )[\w.~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_REMOVED: Final = "[removed]"


def fields(**members: object) -> dict[str, Any]:
    """The ``extra`` of a log call with these members. The text of the line does not contain them by itself."""
    return {_FIELDS: members}


def json_wanted(settings: SettingsReader, name: str) -> bool:
    """Whether the variable ``name`` chooses JSON; by default text. Raises ConfigurationError."""
    value = (settings.text(name) or FORMATS[0]).lower()
    if value not in FORMATS:
        raise ConfigurationError(f"{name}={value!r:.60}: expected one of {', '.join(FORMATS)}")
    return value == "json"


def formatter_of(settings: SettingsReader, name: str, form: str, service: str | None) -> logging.Formatter:
    """The formatter that the variable ``name`` chooses: lines in the form of logging.Formatter, or JSON with the name
    of this ``service``. Raises ConfigurationError."""
    return JsonFormatter(service) if json_wanted(settings, name) else LineFormatter(form)


class JsonFormatter(logging.Formatter):
    """Formats each record as one line of JSON in ASCII, with ``time`` in UTC as in RFC 3339, ``level``, ``logger``,
    ``service``, ``message``, the members of `CONTEXT` and `fields`, and ``exception`` with a traceback."""

    def __init__(self, service: str | None) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
            "service": self._service,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name, None) for name in CONTEXT}
        line |= self._members(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: _plain(value) for name, value in line.items() if value not in (None, "-")})

    def _members(self, record: logging.LogRecord) -> Mapping[str, Any]:
        found = getattr(record, _FIELDS, None)
        return found if isinstance(found, Mapping) else {}


def without_secrets(text: str) -> str:
    """The text, with what looks like a secret replaced. Its time grows with the length alone, whatever the text is:
    lines of a server quote its callers."""
    return _SECRETS.sub(_removed, text)


def _removed(found: re.Match[str]) -> str:
    return f"{found['before'] or ''}{_REMOVED}"


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float) else without_secrets(str(value))
