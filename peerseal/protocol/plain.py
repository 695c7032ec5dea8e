"""Values of unknown types, made plain before anything is read from them.

What comes in is mostly text or bytes, and yet may be anything: None where a header is missing, a number out of a
broker's table, a subclass whose methods answer otherwise. Readers take the plain value, or raise an error of their own.
"""

from types import MappingProxyType
from typing import Any


def plain_text(value: object) -> str | None:
    """The text as exactly ``str``: what a subclass (an enumeration's member, marked-up text) holds, whatever its
    methods say. None for anything else."""
    if type(value) is str:
        return value
    return str.__str__(value) if issubclass(type(value), str) else None


def plain_bytes(value: object) -> bytes | None:
    """The content of bytes, a bytearray or a memoryview, as exactly ``bytes``. None for anything else."""
    if type(value) is bytes:
        return value
    try:
        return bytes(memoryview(value)) if issubclass(type(value), bytes | bytearray | memoryview) else None  # type: ignore[arg-type]
    except ValueError:  # a memoryview that was released
        return None


def is_object(value: object) -> bool:
    """Whether that is a mapping as readers of JSON make them."""
    return type(value) is dict or type(value) is MappingProxyType


def kind_of(value: object) -> str:
    """How an error names the type of a value that it does not show."""
    return "None" if value is None else type(value).__name__


def text_like(value: Any) -> str:
    """A value for an error's detail: a text as it stands there, of others the type."""
    text = plain_text(value)
    return f"a value of the type {kind_of(value)}" if text is None else repr(text[:120])
