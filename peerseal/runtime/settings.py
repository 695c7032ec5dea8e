"""The one reader of settings: environment variables, and the files that they name.

Text may stand in quotation marks and with white space around it, as env-files leave it; a file may begin with a byte
order mark. An empty variable is one that is not set. What cannot be read is a ConfigurationError that names the
variable, the value and what was expected; a secret's value is never named.
"""

import difflib
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from peerseal.errors import ConfigurationError

log = logging.getLogger("peerseal.settings")

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_QUOTES = ("'", '"')
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([smhd]?)", re.IGNORECASE)
_COUNT = re.compile(r"[0-9]{1,18}")
_LONGEST_SHOWN = 60
_INJECTED = re.compile(
    r"[A-Z0-9_]+_(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:ADDR|PORT|PROTO))?)?)"
)
"""What Kubernetes sets in every container for each Service, such as ``PEERSEAL_REGISTRY_PORT=tcp://10.0.0.1:80``."""
_warned: set[str] = set()


class SettingsReader:
    """Reads the variables in ``environ``. Raises ConfigurationError from each of its methods."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str, default: str | None = None) -> str | None:
        """The text, without quotation marks and white space around it; ``default`` where it is not set."""
        return _plain(self._environ.get(name, "")) or default

    def required(self, name: str) -> str:
        """The text of a variable that must be set."""
        text = self.text(name)
        if text is None:
            raise ConfigurationError(f"{name} is not set")
        return text

    def secret(self, name: str) -> str | None:
        """The text of the variable, or of the file that the same name with ``_FILE`` gives. Not both."""
        file = self.path(f"{name}_FILE")
        given = self.text(name)
        if given is not None and file is not None:
            raise ConfigurationError(f"{name} and {name}_FILE are both set; set one of them")
        return given if file is None else read_text(file, f"{name}_FILE")

    def flag(self, name: str, default: bool) -> bool:
        """A boolean: 1, true, yes, on; 0, false, no, off; in any case."""
        optional = self.optional_flag(name)
        return default if optional is None else optional

    def optional_flag(self, name: str) -> bool | None:
        """As `flag`; None where it is not set."""
        text = self.text(name)
        if text is None:
            return None
        lower = text.lower()
        if lower not in _TRUE + _FALSE:
            raise ConfigurationError(f"{name}={_shown(text)}: expected one of {', '.join(_TRUE + _FALSE)}")
        return lower in _TRUE

    def seconds(self, name: str, default: float, *, at_least: float = 0.0, at_most: float = math.inf) -> float:
        """A number of seconds, or a duration such as 90s, 10m, 24h or 7d."""
        text = self.text(name)
        if text is None:
            return default
        match = _DURATION.fullmatch(text)
        value = float(match[1]) * _UNITS[match[2].lower()] if match else math.nan
        if not at_least <= value <= at_most:
            bounds = f"{at_least:g}" + (" or more" if at_most == math.inf else f" to {at_most:g}")
            raise ConfigurationError(f"{name}={_shown(text)}: expected {bounds} seconds, or a duration such as 10m")
        return value

    def count(self, name: str, default: int, *, at_least: int = 0, at_most: int) -> int:
        """A natural number."""
        text = self.text(name)
        if text is None:
            return default
        value = int(text) if _COUNT.fullmatch(text) else -1
        if not at_least <= value <= at_most:
            raise ConfigurationError(f"{name}={_shown(text)}: expected a whole number from {at_least} to {at_most}")
        return value

    def path(self, name: str) -> Path | None:
        """A path, ``~`` replaced by the home folder; None where it is not set."""
        text = self.text(name)
        if text is None:
            return None
        try:
            return Path(text).expanduser()
        except RuntimeError as error:
            raise ConfigurationError(f"{name}={_shown(text)}: no home folder is known for that user") from error

    def several(self, name: str) -> tuple[str, ...]:
        """Texts that are separated by commas."""
        return tuple(filter(None, (part.strip() for part in (self.text(name) or "").split(","))))


def read_text(file: Path, name: str) -> str | None:
    """The text in a file that the variable ``name`` gives, read as a variable's is; None where it is empty. Raises
    ConfigurationError."""
    try:
        return _plain(file.read_bytes().decode("utf-8-sig")) or None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{name}={file}: not UTF-8 text") from error
    except OSError as error:
        raise ConfigurationError(f"{name}={file}: cannot be read: {error.strerror}") from error


def warn_of_unknown(environ: Mapping[str, str], prefix: str, known: Iterable[str]) -> None:
    """Log, once a process, each variable with that prefix that nothing reads, with the nearest name that is known."""
    names = sorted(known)
    for name in sorted(environ):
        if not name.startswith(prefix) or name in names or name in _warned or _is_injected(name, environ[name]):
            continue
        _warned.add(name)
        near = difflib.get_close_matches(name, names, 1, 0.7)
        log.warning("%s is no setting, and is ignored%s", _printable(name), f"; is {near[0]} meant?" if near else "")


def _is_injected(name: str, value: str) -> bool:
    """Whether Kubernetes set it. Of a Service's bare ``…_PORT`` the value says so: anybody may mean a port by it."""
    if not _INJECTED.fullmatch(name):
        return False
    return not name.endswith("_PORT") or name.endswith("_SERVICE_PORT") or "://" in value or "_TCP_" in name


def _plain(text: str) -> str:
    """Without a byte order mark, white space and one pair of quotation marks around it."""
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in _QUOTES:
        text = text[1:-1].strip()
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)
