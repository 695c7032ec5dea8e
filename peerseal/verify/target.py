"""The request-target that the caller signed (step 8), as this server received it.

It is taken from the request line (RFC 9112 section 3.2), not from a rebuilt URL: many spellings of a path decode to the
same route, and each is another target. The target must also decode to exactly the path that was routed, because a raw
target alone does not prove which view runs.
"""

import re
from urllib.parse import unquote_to_bytes

from peerseal.errors import ConfigurationError, WrongBinding
from peerseal.protocol.plain import plain_text, text_like
from peerseal.runtime.options import check_is

# Origin form: a slash, then printable ASCII without a fragment. Characters that RFC 3986 does not allow ("<", "|", …)
# pass, as they do in servers: the digest binds the exact bytes.
_ORIGIN_FORM = re.compile(r"/[!\"$-~]*")
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+")  # without dot segments, which clients resolve


def is_origin_form(target: str) -> bool:
    """Whether a request line may have this path and query, without a fragment."""
    text = plain_text(target)
    return text is not None and _ORIGIN_FORM.fullmatch(text) is not None


def routed_target(raw_uri: str, script_name: str, path_info: str, external_prefix: str = "") -> str:
    """The origin-form target that the caller signed: ``external_prefix`` and ``raw_uri``, the target in the request
    line (gunicorn's ``RAW_URI``).

    ``script_name`` and ``path_info`` are WSGI's: bytes as latin-1 (PEP 3333). The path of ``raw_uri``, percent-decoded
    once, must be those two in a row, byte for byte. Raises WrongBinding for anything else: absolute-form, ``*`` or
    authority-form, a fragment, a character that no target has, a path that a proxy or middleware rewrote.
    """
    if not is_origin_form(raw_uri):
        raise WrongBinding("the request-target is not in origin form (RFC 9112 section 3.2.1)")
    path = raw_uri.partition("?")[0]
    routed = (plain_text(script_name) or "") + (plain_text(path_info) or "")
    same = path == routed if "%" not in path else unquote_to_bytes(path) == _wsgi_bytes(routed)
    if not same:
        raise WrongBinding("the request-target is another path than the one that was routed")
    return external_prefix + raw_uri


def check_external_prefix(prefix: str) -> str:
    """The prefix itself: empty, or a path such as ``/api`` in unreserved characters, without a slash at its end.

    The targets that callers sign begin with it; the targets that this service receives do not. Raises
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
        raise WrongBinding("PATH_INFO of the server has characters beyond latin-1 (PEP 3333)") from error
