"""Strict encodings: canonical base64url, JSON without surprises, natural numbers, digests as RFC 9530 writes them.

python-jose and ``json`` read leniently: they accept padding, foreign characters, trailing bits, repeated members and
``NaN``. With such a reader one token has several spellings, and a log or a cache that compares texts takes them for
several tokens. Two lenient parsers can also read different values from one text. So this module reads all input first.
"""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from json.scanner import make_scanner
from typing import Any, Final, cast

import pybase64

from peerseal.errors import MalformedToken
from peerseal.protocol.plain import kind_of, plain_bytes, plain_text

MAX_DIGITS: Final = 18
"""Digits of the longest number: with these it fits into 64 bits."""
HTTP_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""A method or a header's name, as a regular expression (RFC 9110 section 5.6.2)."""
MAX_NESTING = 32
"""Levels of arrays and objects in a JSON text, at most. Tokens and documents need fewer than 8. The interpreter can
read several hundred levels, but not write or print them."""

_PLUS, _SLASH, _EQUALS = b"+/="  # of plain base64 only
_URLSAFE = b"-_"
# A length of 4n + 1 is invalid: `_LAST_OF` has no character for it, and the decoder would refuse the "!".
_PADDING = (b"", b"!", b"==", b"=")
_SHORT = 256  # characters of the longest target whose digest is cached
# The last of 2 characters carries only 2 bits, the last of 3 only 4 bits. Its other bits must be zero.
_LAST_OF = (b"", b"", b"AQgw", b"AEIMQUYcgkosw048")


def b64url(data: bytes) -> str:
    """Unpadded base64url (RFC 7515 section 2)."""
    return pybase64.b64encode(data, _URLSAFE).rstrip(b"=").decode("ascii")


def b64url_decode(text: str | bytes) -> bytes:
    """The bytes of a canonical unpadded base64url text. Raises MalformedToken for any other spelling or type."""
    try:
        encoded = text if type(text) is bytes else _octets(text, "ascii")
        tail = len(encoded) % 4
        if tail and encoded[-1] not in _LAST_OF[tail]:
            raise MalformedToken("base64url with trailing bits")
        if _PLUS in encoded or _SLASH in encoded or _EQUALS in encoded:
            raise MalformedToken("plain base64, or padding")
        return pybase64.b64decode(encoded + _PADDING[tail], _URLSAFE, validate=True)
    except ValueError as error:
        raise MalformedToken("not unpadded base64url") from error


def _octets(value: object, encoding: str) -> bytes:
    """The bytes of a text or of bytes. Raises MalformedToken, or ValueError for a text that cannot be encoded."""
    text = plain_text(value)
    octets = plain_bytes(value) if text is None else text.encode(encoding)
    if octets is None:
        raise MalformedToken(f"neither a text nor bytes: {kind_of(value)}")
    return octets


def _text_from(value: object) -> str:
    """The text itself, or the text of bytes in UTF-8. Raises MalformedToken or ValueError."""
    text = plain_text(value)
    return _octets(value, "utf-8").decode("utf-8") if text is None else text


def _members_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is repeated")
    return members


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number out of range")
    return number


_JSON_SPACE = " \t\r\n"  # RFC 8259 section 2; str.strip alone would take more
_decoder = json.JSONDecoder(object_pairs_hook=_members_once, parse_constant=_refuse_constant, parse_float=_finite)
# The scanner of `decode`, without its regular expressions for white space.
_scan: Callable[[str, int], tuple[Any, int]] = make_scanner(cast(Any, _decoder))
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


_REASONS: dict[type, str] = {
    StopIteration: "no value where one is expected",
    RecursionError: "nested too deeply",
    UnicodeDecodeError: "not UTF-8",
    UnicodeEncodeError: "half a surrogate pair",
}


def strict_json(data: bytes | str) -> Any:
    """The value of the JSON text (RFC 8259). Raises MalformedToken for repeated members at any level, NaN and
    infinities, numbers out of range, invalid UTF-8, unpaired surrogates and more than MAX_NESTING levels."""
    try:
        text = (data.decode("utf-8") if type(data) is bytes else _text_from(data)).strip(_JSON_SPACE)
        value, end = _scan(text, 0)
        if end != len(text):
            raise ValueError("something follows the value")
        if "[" in text or text.count("{") > MAX_NESTING:
            _check_nesting(value)
        # An escape, or input of type str, may hold half a surrogate pair, which UTF-8 cannot encode.
        if "\\" in text or type(data) is not bytes:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError, StopIteration) as error:
        raise MalformedToken(f"not strict JSON: {_REASONS.get(type(error), str(error))}") from error
    return value


def _check_nesting(value: Any) -> None:
    """Goes level by level, without recursion. Raises ValueError for more than MAX_NESTING levels."""
    level: list[Any] = [[value]]
    for _ in range(MAX_NESTING + 1):
        children = (child for node in level for child in (node.values() if type(node) is dict else node))
        level = [child for child in children if type(child) in (dict, list)]
        if not level:
            return
    raise ValueError("nested too deeply")


def strict_json_object(data: bytes | str) -> dict[str, Any]:
    """As strict_json, for a JSON object. Raises MalformedToken for any other value."""
    value = strict_json(data)
    if type(value) is not dict:
        raise MalformedToken("not a JSON object")
    return value


def canonical_json(value: Any) -> bytes:
    """One spelling per value: sorted members, no white space, UTF-8. Raises ValueError for values that JSON lacks."""
    return _canonical.encode(value).encode("utf-8")


def natural(text: str, digits: int = MAX_DIGITS) -> int | None:
    """The natural number that the text spells in ASCII digits, without leading zeros and with at most ``digits``
    digits. None for any other text.

    `int` is too lenient: it accepts white space, signs, underscores and the digits of every script. It also returns
    numbers that no clock, file or database can hold, and raises ValueError for more than 4,300 digits.
    """
    if not (len(text) <= digits and text.isascii() and text.isdigit()):
        return None
    return None if len(text) > 1 and text.startswith("0") else int(text)


def digest_header(data: bytes) -> str:
    """The SHA-256 of ``data`` as RFC 9530 section 2 writes it: ``sha-256=:<base64>:``."""
    return f"sha-256=:{pybase64.b64encode_as_string(hashlib.sha256(data).digest())}:"


DIGEST_OF_NOTHING = digest_header(b"")
"""The digest of an empty body: most requests have none."""


def target_digest(target: str) -> str:
    """`digest_header` of a request-target. Raises ValueError for one that is not ASCII.

    Services call the same targets again and again, so the digests of short ones are cached.
    """
    short = type(target) is str and len(target) <= _SHORT
    return _digest_of_short(target) if short else digest_header(_octets(target, "ascii"))


@lru_cache(maxsize=2048)
def _digest_of_short(target: str) -> str:
    return digest_header(target.encode("ascii"))
