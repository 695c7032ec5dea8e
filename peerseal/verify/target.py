"""Step 8's target: the request-target that the caller signed, as this server received it.

What is checked is the request line itself (RFC 9112 section 3.2), never a URL that was put together again: a path can
be spelt in many ways that all decode to the same route, and each spelling is another target. But a raw target proves
nothing about the view that ran, so it must also decode to exactly what was routed.
"""

import re
from urllib.parse import unquote_to_bytes

from peerseal.errors import ConfigurationError, WrongBinding
from peerseal.protocol.plain import plain_text, text_like
from peerseal.runtime.options import check_is

# Origin form: a slash, then printable ASCII without a fragment. What RFC 3986 leaves out beside ("<", "|", …) is let
# pass: servers do, and the digest over the exact bytes is what binds it.
_ORIGIN_FORM = re.compile(r"/[!\"$-~]*")
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+")  # without dot segments, which clients resolve


def is_origin_form(target: str) -> bool:
    """Whether that can stand in a request line as a path and a query, without a fragment."""
    text = plain_text(target)
    return text is not None and _ORIGIN_FORM.fullmatch(text) is not None


def routed_target(raw_uri: str, script_name: str, path_info: str, external_prefix: str = "") -> str:
    """The origin-form target that the caller signed: ``external_prefix`` and ``raw_uri``, the target in the request
    line (gunicorn's ``RAW_URI``).

    ``script_name`` and ``path_info`` are WSGI's: bytes as latin-1 (PEP 3333). The path of ``raw_uri``, percent-decoded
    once, must be those two in a row, byte for byte. Raises WrongBinding for anything else: absolute-form, ``*`` or
    authority-form, a fragment, a character that no target holds, a path that something in between rewrote.
    """
    if not is_origin_form(raw_uri):
        raise WrongBinding("the request-target is not in origin form (RFC 9112 section 3.2.1)")
    path = raw_uri.partition("?")[0]
    routed = (plain_text(script_name) or "") + (plain_text(path_info) or "")
    same = path == routed if "%" not in path else unquote_to_bytes(path) == _wsgi_bytes(routed)
    if not same:
        raise WrongBinding("the request-target is not what was routed")
    return external_prefix + raw_uri


def check_external_prefix(prefix: str) -> str:
    """The prefix itself: empty, or a path such as ``/api`` in unreserved characters, without a slash at its end.

    It stands before every target that this service receives, in the targets that its callers sign. Raises
    ConfigurationError.
    """
    check_is("external_prefix", prefix, str, "a text such as /api, or an empty one")
    text = plain_text(prefix)
    if text is None or (text and not _PREFIX.fullmatch(text)):
        raise ConfigurationError(f"not an external prefix (such as /api): {text_like(prefix)}")
    return text


def _wsgi_bytes(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise WrongBinding("the server's PATH_INFO is not what PEP 3333 says") from error
