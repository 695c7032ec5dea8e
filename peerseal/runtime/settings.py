"""The one reader of settings: environment variables, and the files that they name.

Text may have quotation marks and white space around it, as env-files leave them; a file may begin with a byte order
mark. An empty variable counts as not set. A value that cannot be read is a ConfigurationError that names the variable,
the value and what was expected; it never names a secret's value.
"""

import difflib
import logging
import math
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from peerseal.errors import ConfigurationError, PeersealError
from peerseal.runtime.trusted_path import warn_once

T = TypeVar("T")

log = logging.getLogger("peerseal.settings")

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_QUOTES = ("'", '"')
_BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([smhdSMHD]?)")
_SIZE = re.compile(r"([0-9]{1,15})(|KiB|MiB|GiB)", re.I)
_SIZE_UNITS = {"": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_COUNT = re.compile(r"[0-9]{1,18}")
_LONGEST_SHOWN = 60
_LARGEST_FILE = 64 * 1024
"""Bytes of a file that a variable names: the longest secret, a platform's token, has 16 KiB."""
_INJECTED = re.compile(
    r"[A-Z0-9_]+_(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:ADDR|PORT|PROTO))?)?)"
)
"""What Kubernetes sets in every container for each Service, such as ``PEERSEAL_REGISTRY_PORT=tcp://10.0.0.1:80``."""


class SettingsReader:
    """Reads the variables in ``environ``. Raises ConfigurationError from each of its methods."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str, default: str | None = None) -> str | None:
        """The text, without quotation marks and white space around it; ``default`` where it is not set."""
        text = _plain(self._environ.get(name, ""))
        if not _is_unicode(text):  # bytes that Python could not decode; only a path may hold some
            raise ConfigurationError(f"{name}: not UTF-8 text")
        return text or default

    def required(self, name: str) -> str:
        """The text of a variable that must be set."""
        text = self.text(name)
        if text is None:
            raise ConfigurationError(f"{name} is not set")
        return text

    def checked(self, name: str, check: Callable[[str], str]) -> str | None:
        """The result of ``check`` for the text; None where it is not set. An error of ``check`` gets the variable's
        name."""
        text = self.text(name)
        return None if text is None else named(name, check, text)

    def secret(self, name: str, *, may_be_empty: bool = False) -> str | None:
        """The text of the variable, or of the file that the same name with ``_FILE`` gives. Not both. An empty file is
        an error unless it ``may_be_empty``: a default would silently replace the intended value."""
        file = self.path(f"{name}_FILE")
        given = self.text(name)
        if given is not None and file is not None:
            raise ConfigurationError(f"{name} and {name}_FILE are both set; set one of them")
        if file is None:
            return given
        text = read_text(file, f"{name}_FILE")
        if text is None and not may_be_empty:
            raise ConfigurationError(f"{name}_FILE={file}: empty; it must hold the value of {name}")
        return text

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
        value = duration(text)
        if not at_least <= value <= at_most:
            bounds = f"{at_least:.12g}" + (" or more" if at_most == math.inf else f" to {at_most:.12g}")
            raise ConfigurationError(f"{name}={_shown(text)}: expected {bounds} seconds, or a duration such as 10m")
        return value

    def whole_seconds(self, name: str, default: int, *, at_least: int = 0, at_most: int) -> int:
        """As `seconds`, without a fraction."""
        value = self.seconds(name, default, at_least=at_least, at_most=at_most)
        if value != int(value):
            raise ConfigurationError(f"{name}={_shown(str(value))}: expected whole seconds")
        return int(value)

    def count(self, name: str, default: int, *, at_least: int = 0, at_most: int) -> int:
        """A natural number."""
        text = self.text(name)
        if text is None:
            return default
        value = whole_number(text)
        if value is None or not at_least <= value <= at_most:
            raise ConfigurationError(f"{name}={_shown(text)}: expected a whole number from {at_least} to {at_most}")
        return value

    def size(self, name: str, default: int, *, at_least: int = 0, at_most: int) -> int:
        """A number of bytes, or a size such as 64KiB, 16MiB or 1GiB."""
        text = self.text(name)
        if text is None:
            return default
        match = _SIZE.fullmatch(text)
        value = int(match[1]) * _SIZE_UNITS[match[2].lower()] if match else -1
        if not at_least <= value <= at_most:
            bounds = f"{at_least} to {at_most} bytes, or a size such as 64KiB or 16MiB"
            raise ConfigurationError(f"{name}={_shown(text)}: expected {bounds}")
        return value

    def path(self, name: str) -> Path | None:
        """A path, ``~`` replaced by the home folder; None where it is not set."""
        text = _plain(self._environ.get(name, ""))
        if not text:
            return None
        try:
            return Path(text).expanduser()
        except (RuntimeError, ValueError) as error:  # ValueError: a NUL in the user's name
            raise ConfigurationError(f"{name}={_shown(text)}: no home folder is known for that user") from error

    def absent(self, name: str) -> str | None:
        """The message about a file that the variable names and that is missing or empty; None for any other file, and
        without a name. A file that cannot be looked up is not absent: reading it says why. Raises as `secret`."""
        file = self.path(name)
        if file is None:
            return None
        try:
            regular = stat.S_ISREG(file.stat().st_mode)  # of anything else, such as a pipe, what is read is gone
        except FileNotFoundError:
            return f"{name}={file}: no such file"
        except (OSError, ValueError):
            return None
        return f"{name}={file}: empty" if regular and read_text(file, name) is None else None

    def several(self, name: str) -> tuple[str, ...]:
        """Texts that are separated by commas."""
        return tuple(filter(None, (part.strip() for part in (self.text(name) or "").split(","))))


def duration(text: str) -> float:
    """Seconds, of a number of them or a text such as ``10m``; not a number (NaN) for anything else."""
    match = _DURATION.fullmatch(text)
    return float(match[1]) * _UNITS[match[2].lower()] if match else math.nan


def whole_number(text: str) -> int | None:
    """A natural number in ASCII digits, 18 at most; None for anything else. Python's ``int`` takes more."""
    return int(text) if _COUNT.fullmatch(text) else None


def named(name: str, check: Callable[[str], T], text: str) -> T:
    """The result of ``check`` for the text. Raises ConfigurationError that begins with the name of the variable or
    option. The message of ``check`` must quote nothing of a secret."""
    try:
        return check(text)
    except PeersealError as error:
        raise ConfigurationError(f"{name}: {error}") from error


def read_bytes(file: Path, what: str, largest: int) -> bytes:
    """The content of a file, ``largest`` bytes at most: a device may never end. Raises ConfigurationError, which begins
    with ``what``."""
    try:
        with file.open("rb") as opened:
            content = opened.read(largest + 1)
    except OSError as error:
        raise ConfigurationError(f"{what}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path, or half a surrogate pair
        raise ConfigurationError(f"{what!r}: no path of a file") from error
    if len(content) > largest:
        raise ConfigurationError(f"{what}: larger than {largest} bytes")
    return content


def read_text(file: Path, name: str) -> str | None:
    """The text in a file that the variable ``name`` gives, read as a variable's is; None where it is empty. Raises
    ConfigurationError."""
    try:
        return _plain(read_bytes(file, f"{name}={file}", _LARGEST_FILE).decode("utf-8-sig")) or None
    except UnicodeDecodeError:
        # without the cause, which quotes the content
        raise ConfigurationError(f"{name}={file}: not UTF-8 text") from None


def unknown_names(environ: Mapping[str, str], prefix: str, known: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Each variable with that prefix that nothing reads, ready to be shown, and the nearest name that is known."""
    names = sorted(known)
    for name in sorted(environ):
        if name.startswith(prefix) and name not in names and not _is_injected(name, environ[name]):
            yield _printable(name), next(iter(difflib.get_close_matches(name, names, 1, 0.7)), None)


def warn_of_unknown(environ: Mapping[str, str], prefix: str, known: Iterable[str]) -> None:
    """Log, once a process, each variable with that prefix that nothing reads, with the nearest name that is known."""
    for name, near in unknown_names(environ, prefix, known):
        warn_once(f"{name} is no setting, and is ignored{f'; is {near} meant?' if near else ''}", log)


def _is_injected(name: str, value: str) -> bool:
    """Whether Kubernetes set the variable. For a Service's bare ``…_PORT`` the value decides: users may mean a port by
    it."""
    if not _INJECTED.fullmatch(name):
        return False
    return not name.endswith("_PORT") or name.endswith("_SERVICE_PORT") or "://" in value or "_TCP_" in name


def _plain(text: str) -> str:
    """Without byte order marks, white space and one pair of quotation marks around it."""
    text = _bare(text)
    if len(text) >= 2 and text[0] == text[-1] and text[0] in _QUOTES:
        text = _bare(text[1:-1])
    return text


def _bare(text: str) -> str:
    return text.strip().strip(_BYTE_ORDER_MARK).strip()


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")


def _printable(name: str) -> str:
    return name if name.isprintable() and len(name) <= _LONGEST_SHOWN else _shown(name)
