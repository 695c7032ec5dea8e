"""The parts of a request that a verifier is given, checked for their types.

Adapters give texts and bytes. An application that calls a verifier itself may give values of any type. A value of
another type cannot equal the signed one, so it is refused, and the error names its type.
"""

from collections.abc import Callable, Mapping

from peerseal.errors import WrongBinding
from peerseal.protocol.plain import kind_of, plain_bytes, plain_text
from peerseal.protocol.tokens.bearer import BLANKS


class RequestHeaders(Mapping[str, str]):
    """A server's view of a request's headers, looked up by one lower-case name at a time. An adapter derives from it to
    avoid a copy of all headers; any other mapping is copied, with its names in lower case."""


def text_of(value: object, name: str) -> str:
    """The value as exactly ``str``. Raises WrongBinding."""
    text = plain_text(value)
    if text is None:
        raise WrongBinding(f"{name} is of type {kind_of(value)}, expected text")
    return text


def content_of(body: bytes | Callable[[], bytes]) -> bytes:
    """The body's bytes; a function is called to read them. Raises WrongBinding for any other type (a text is not bytes
    before it is encoded, and None may mean that the body was not read), and what the function raises."""
    given = body() if callable(body) else body
    content = plain_bytes(given)
    if content is None:
        raise WrongBinding(f"the body is of type {kind_of(given)}, expected bytes")
    return content


def by_lower_name(headers: Mapping[str, str], bound: Mapping[str, str]) -> Mapping[str, str]:
    """The headers by lower-case names. Returns ``bound`` itself if the headers equal it, so that the caller can compare
    by ``is``. A `RequestHeaders` is returned as it is. Raises WrongBinding for anything but a mapping of texts to
    texts, and for two values of one name."""
    if RequestHeaders in type(headers).__mro__:  # faster than isinstance, which asks an abstract base class
        return headers
    try:
        for name, value in headers.items():
            if not (type(name) is type(value) is str):
                break
        else:
            if headers == bound:
                return bound
        pairs = [(name, value) for name, value in headers.items()]
    except Exception as error:  # also what a mapping of another library raises
        raise WrongBinding(f"the headers are of type {kind_of(headers)}, expected a mapping of texts") from error
    found: dict[str, str] = {}
    for name, value in pairs:
        lower, text = text_of(name, "a header's name").lower(), text_of(value, "a header's value").strip(BLANKS)
        if found.setdefault(lower, text) != text:
            raise WrongBinding(f"the header {lower} has two values")
    return found


def value_of(headers: Mapping[str, str], name: str) -> str | None:
    """The header's value without the blanks around it; None where the request has no such header. An empty content-type
    is the same as none, because WSGI cannot tell them apart (PEP 3333)."""
    value = headers.get(name)
    if value is None:
        return None
    if value[:1] in BLANKS or value[-1:] in BLANKS:
        value = value.strip(BLANKS)
    return None if value == "" and name == "content-type" else value
