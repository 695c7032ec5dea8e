"""Plain values: exact ``str`` and ``bytes`` from input of any type.

Input is mostly text or bytes, but may be anything: None where a header is missing, a number from a broker's table, a
subclass with other methods. Readers take the plain value, or raise their own error.
"""

from types import MappingProxyType
from typing import Any


def plain_text(value: object) -> str | None:
    """The text as a plain ``str``. For a subclass of str (such as an enumeration's member or marked-up text), its
    characters as a plain ``str``. None for anything else."""
    if type(value) is str:
        return value
    return str.__str__(value) if issubclass(type(value), str) else None


_BYTES_LIKE = (bytes, bytearray, memoryview)


def plain_bytes(value: object) -> bytes | None:
    """The content of bytes, a bytearray or a memoryview, as exactly ``bytes``. None for anything else."""
    if type(value) is bytes:
        return value
    try:
        return bytes(memoryview(value)) if issubclass(type(value), _BYTES_LIKE) else None  # type: ignore[arg-type]
    except ValueError:  # a memoryview that was released
        return None


def is_json_object(value: object) -> bool:
    """Whether the value is a dict, or a read-only view of one."""
    return type(value) is dict or type(value) is MappingProxyType


def kind_of(value: object) -> str:
    """The type of a value, for an error that does not show the value."""
    return "None" if value is None else type(value).__name__


def text_like(value: Any) -> str:
    """A value for an error's detail: the ``repr`` of a text's first 120 characters, or the type of anything else."""
    text = plain_text(value)
    return f"a value of the type {kind_of(value)}" if text is None else repr(text[:120])
