"""What a verifier is told of a request, made plain, whatever its types.

Adapters tell texts and bytes. An application that calls a verifier itself may tell anything, and learns what is wrong
with it: a ConfigurationError names the argument, what it is, and what belongs there.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from peerseal.errors import ConfigurationError
from peerseal.protocol.plain import kind_of, plain_bytes, plain_text

BLANKS: Final = " \t"
"""What surrounds a header's value and is no part of it (RFC 9110 section 5.5)."""


class RequestHeaders(Mapping[str, str]):
    """A server's view of a request's headers, which is asked for lower-case names only, one at a time. An adapter that
    need not copy all headers derives from it; any other mapping is copied, its names in whatever case."""


def text_argument(value: object, name: str) -> str:
    """The argument as exactly ``str``. Raises ConfigurationError."""
    text = plain_text(value)
    if text is None:
        raise ConfigurationError(f"{name} is a text, and this is {kind_of(value)}")
    return text


def content_of(body: bytes | Callable[[], bytes]) -> bytes:
    """The body, read now if that is left to a function. Raises ConfigurationError, and what the function raises."""
    content = plain_bytes(body)
    if content is None and callable(body):
        content = plain_bytes(body := body())
    if content is None:
        raise ConfigurationError(f"the body is bytes, or a function that gives them, and this is {kind_of(body)}")
    return content


def by_lower_name(headers: Mapping[str, str], bound: Mapping[str, str]) -> Mapping[str, str]:
    """The headers by lower-case names: ``bound`` itself where they are the same. A server's view is looked up as it is,
    and never compared as a whole: it would be read from end to end. Of several spellings of one name, the values with
    commas, as servers join them. Raises ConfigurationError."""
    if type(headers) is dict:
        same = headers == bound and all(type(name) is type(value) is str for name, value in headers.items())
        return bound if same else _joined(headers.items())
    if isinstance(headers, RequestHeaders):
        return headers
    try:
        return _joined([(name, value) for name, value in headers.items()])  # pairs, or an error at once
    except ConfigurationError:
        raise
    except Exception as error:  # another mapping's own, or that it is none
        raise ConfigurationError(f"headers are a mapping of texts, and this is {kind_of(headers)}") from error


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        if not (type(name) is type(value) is str):
            name = text_argument(name, "a header's name")
            value = text_argument(value, f"the value of the header {name[:60]!r}")
        lower = name.lower()
        found[lower] = f"{found[lower]},{value}" if lower in found else value
    return found


def value_of(headers: Mapping[str, str], name: str) -> str | None:
    """The header's value without the blanks around it, None where it has none. An empty content-type is as good as
    none: WSGI cannot tell one from the other (PEP 3333)."""
    value = headers.get(name)
    if value is None:
        return None
    if value[:1] in (" ", "\t") or value[-1:] in (" ", "\t"):
        value = value.strip(BLANKS)
    return None if value == "" and name == "content-type" else value
