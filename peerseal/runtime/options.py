"""Checks of the arguments with which an application makes our objects: a mistake is an error at the start.

Each check raises ConfigurationError, which names the option, the value and what was expected.
"""

import math
import os
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any, cast

from peerseal.errors import ConfigurationError, InvalidName
from peerseal.protocol.names import check_thumbprint
from peerseal.protocol.plain import plain_text

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")


def check_flag(name: str, value: object) -> None:
    """A text such as ``"false"`` is true for Python."""
    if not isinstance(value, bool):
        raise _mistake(name, value, "True or False")


def check_number(name: str, value: object, *, at_least: float = 0.0, at_most: float = math.inf) -> None:
    """A number within its bounds, which may be infinite: no boolean, no text, and no integer that is too large for a
    float."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and at_least <= value <= at_most
    if not known or (isinstance(value, int) and value.bit_length() > sys.float_info.max_exp - 1):
        bounds = f"{at_least:.12g} or more" if at_most == math.inf else f"{at_least:.12g} to {at_most:.12g}"
        raise _mistake(name, value, f"a number, {bounds}")


def check_whole(name: str, value: object, *, at_least: int = 0) -> None:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise _mistake(name, value, f"a whole number, {at_least} or more")


def check_callable(name: str, value: object) -> None:
    """A callable."""
    if not callable(value):
        raise _mistake(name, value, "a function")


def check_is(name: str, value: object, kind: type, expected: str) -> None:
    """A value whose real type is that type or a subclass."""
    if not issubclass(type(value), kind):
        raise _mistake(name, value, expected)


def check_unicode(name: str, value: object) -> None:
    """A text that can be encoded as UTF-8. The error does not show it: it may be a secret."""
    text = plain_text(value)
    if not text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ConfigurationError(f"{name}: expected a text that is not empty and can be encoded as UTF-8")


def check_path(name: str, value: object) -> None:
    """A path in text, or a Path."""
    try:
        path = os.fspath(value) if isinstance(value, str | os.PathLike) else b""
        if isinstance(path, str) and path and b"\0" not in os.fsencode(path):
            return
    except UnicodeEncodeError:  # half a surrogate pair, which no path holds
        pass
    raise _mistake(name, value, "a path")


def check_texts(name: str, value: object) -> None:
    """A list of one text or more. A plain text is refused: it would be read character by character."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise _mistake(name, value, "a list of one text or more")
    for text in value:
        if not isinstance(text, str) or not text:
            raise _mistake(name, text, "a text in each place")


def check_text_or_texts(name: str, value: object) -> None:
    """A text, or a list of one or more."""
    if not issubclass(type(value), str):
        check_texts(name, value)


def check_header_name(name: str, value: object) -> None:
    """The name of a header (RFC 9110 section 5.1)."""
    text = plain_text(value)
    if text is None or not _HEADER_NAME.fullmatch(text):
        raise _mistake(name, value, "the name of a request header")


def check_header_names(name: str, value: Any) -> None:
    """Raises ConfigurationError for anything but a collection of names of HTTP headers."""
    if isinstance(value, str):
        raise ConfigurationError(f"{name} is one string; give a tuple of names")
    check_is(name, value, Collection, "a tuple of names")
    for header in value:
        check_header_name(name, header)


def check_pin(pin: object) -> str:
    """The pin itself if it is the thumbprint of a key: a mistyped pin would never match."""
    try:
        return check_thumbprint(cast("str", pin))
    except (InvalidName, TypeError) as error:
        raise ConfigurationError(
            f"the registry's pin reads {shortened(pin)}; it must be the thumbprint of its root key, 43 characters of"
            " base64url, as `peerseal-registry init` prints it"
        ) from error


def check_pinned(pin: str | None, *, loopback_only: bool) -> None:
    """A pin, which may be missing for a registry on loopback only: elsewhere a root key is never believed on first
    use."""
    if pin is None and not loopback_only:
        raise ConfigurationError("the registry's root pin is needed: --pin or PEERSEAL_REGISTRY_PIN")
    if pin is not None:
        check_pin(pin)


def _mistake(name: str, value: object, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{name}={shortened(value)}: expected {expected}")


def shortened(value: object) -> str:
    """A value for an error: the beginning of a text or a number, the type of anything else."""
    if isinstance(value, str | float | bool) or value is None:
        shown = repr(value)
        return shown if len(shown) <= 60 else f"{shown[:60]}…"
    return f"a value of type {type(value).__name__}"
