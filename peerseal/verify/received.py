"""What a verifier is told of a request, made plain, whatever its types.

Adapters tell texts and bytes. An application that calls a verifier itself may tell anything: a request that is
described in another type is not the one that was signed, and the error says which type it was.
"""

from collections.abc import Callable, Mapping

from peerseal.errors import WrongBinding
from peerseal.protocol.plain import kind_of, plain_bytes, plain_text
from peerseal.protocol.tokens.request import BLANKS


class RequestHeaders(Mapping[str, str]):
    """A server's view of a request's headers, which is asked for lower-case names only, one at a time. An adapter that
    need not copy all headers derives from it; any other mapping is copied, its names in whatever case."""


def text_of(value: object, name: str) -> str:
    """The value as exactly ``str``. Raises WrongBinding."""
    text = plain_text(value)
    if text is None:
        raise WrongBinding(f"{name} is no text, but {kind_of(value)}")
    return text


def content_of(body: bytes | Callable[[], bytes]) -> bytes:
    """The body's bytes, read now if that is left to a function. Raises WrongBinding for what is no bytes (a text has
    none before it is encoded, and None may be a body that was not read), and what the function raises."""
    content = plain_bytes(body)
    if content is None and callable(body):
        content = plain_bytes(body := body())
    if content is None:
        raise WrongBinding(f"the body is no bytes, but {kind_of(body)}")
    return content


def by_lower_name(headers: Mapping[str, str], bound: Mapping[str, str]) -> Mapping[str, str]:
    """The headers by lower-case names: ``bound`` itself where they are the same. A server's view is looked up as it is,
    and never compared as a whole: it would be read from end to end. Raises WrongBinding for what is no mapping of texts
    to texts, and for a name that stands there twice."""
    if type(headers) is not dict and isinstance(headers, RequestHeaders):
        return headers
    try:
        pairs = [(name, value) for name, value in headers.items()]  # pairs, or an error at once
    except Exception as error:  # another mapping's own, or that it is none
        raise WrongBinding(f"the headers are no mapping of texts, but {kind_of(headers)}") from error
    if all(type(name) is type(value) is str for name, value in pairs) and headers == bound:
        return bound
    found: dict[str, str] = {}
    for name, value in pairs:
        lower, text = text_of(name, "a header's name").lower(), text_of(value, "a header's value").strip(BLANKS)
        if found.setdefault(lower, text) != text:
            raise WrongBinding("a header came twice")
    return found


def value_of(headers: Mapping[str, str], name: str) -> str | None:
    """The header's value without the blanks around it, None where it has none. An empty content-type is as good as
    none: WSGI cannot tell one from the other (PEP 3333)."""
    value = headers.get(name)
    if value is None:
        return None
    if value[:1] in BLANKS or value[-1:] in BLANKS:
        value = value.strip(BLANKS)
    return None if value == "" and name == "content-type" else value
