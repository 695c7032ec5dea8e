"""Reading and checking claims: what all kinds of `tokens` and `documents` share."""

import re
import secrets
from collections.abc import Container, KeysView, Mapping
from typing import Any, Final, TypeVar

from peerseal.errors import (
    Expired,
    InvalidName,
    LifetimeTooLong,
    MalformedToken,
    NotYetValid,
    WrongAudience,
    WrongIssuer,
    WrongType,
)
from peerseal.protocol.encoding import MAX_DIGITS, b64url
from peerseal.protocol.jose import ALGORITHMS, Header
from peerseal.protocol.names import split_kid
from peerseal.protocol.plain import is_json_object, kind_of, plain_text, text_like

T = TypeVar("T")

_SHOWN = 5  # unknown claims in a message

LATEST_TIME = 253_402_300_799
"""The end of the year 9999, in seconds since the epoch: no honest time is later."""
LEEWAY = 30
"""Seconds by which two honest clocks may differ."""

_JTI = re.compile(r"[A-Za-z0-9_-]{21}[AQgw]")  # 128 bits in canonical base64url

_PLAIN = r"[ !#-\[\]-~]*"  # printable ASCII, which canonical JSON writes without an escape
_MEMBER = re.compile(f'"({_PLAIN})":"({_PLAIN})"')

TEXT: Final = f'"({_PLAIN})"'
"""For `canonical_object`: a text of printable ASCII without quotation mark and backslash."""
TEXTS: Final = rf'\{{((?:"{_PLAIN}":"{_PLAIN}"(?:,(?=")|(?=\}})))*)\}}'
"""For `canonical_object`: an object whose values are such texts. `texts` reads the group."""
JTI: Final = f'"({_JTI.pattern})"'
"""For `canonical_object`: a ``jti`` that `check_jti` accepts."""
SECONDS: Final = "(0|[1-9][0-9]{0,10})"
"""For `canonical_object`: a time before the year 5138, so before `LATEST_TIME`."""


def claim(claims: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """The claim ``name``, which must be exactly of the type ``kind`` (True is no integer). Raises MalformedToken."""
    value = claims.get(name) if is_json_object(claims) else None
    if type(value) is not kind:
        raise MalformedToken(f"claim {name} is {kind_of(value)}, expected {kind.__name__}")
    return value


def time_claim(claims: Mapping[str, Any], name: str) -> int:
    """A time as a JSON integer between the epoch and the year 9999. Raises MalformedToken."""
    value = claim(claims, name, int)
    if not 0 <= value <= LATEST_TIME:
        raise MalformedToken(f"claim {name} is not a time of 0 to {LATEST_TIME}")
    return value


def number_claim(claims: Mapping[str, Any], name: str) -> int:
    """A natural number that files and databases can hold: a position, a size, a version. Raises MalformedToken."""
    value = claim(claims, name, int)
    if not 0 <= value < 10**MAX_DIGITS:
        raise MalformedToken(f"claim {name} is no natural number of at most {MAX_DIGITS} digits")
    return value


def wrong_type_error(claims: Mapping[str, Any], times: Container[str], objects: Container[str]) -> MalformedToken:
    """The error that names the first claim of the wrong type. The claims ``times`` must be integers, the claims
    ``objects`` objects, and all others texts."""
    for name, value in claims.items():
        kind = int if name in times else dict if name in objects else str
        if type(value) is not kind:
            return MalformedToken(f"claim {text_like(name)} is {kind_of(value)}, expected {kind.__name__}")
    return MalformedToken("a claim is of the wrong type")


def exactly(claims: Mapping[str, Any], members: frozenset[str], optional: frozenset[str] = frozenset()) -> None:
    """Refuses missing and unknown claims: an unchecked claim must not look as if it was checked.
    Raises MalformedToken."""
    names = _names(claims)
    if not members <= names <= members | optional:
        missing, unknown = sorted(members - names), list(names - members - optional)[:_SHOWN]
        shown = ", ".join(map(text_like, unknown))
        raise MalformedToken(f"missing claims: {', '.join(missing) or 'none'}; unknown claims: {shown or 'none'}")


def at_least(claims: Mapping[str, Any], members: frozenset[str] | set[str]) -> None:
    """Refuses missing claims and accepts unknown ones. Raises MalformedToken."""
    missing = members - _names(claims)
    if missing:
        raise MalformedToken(f"claims are missing: {', '.join(sorted(missing))}")


def _names(claims: Mapping[str, Any]) -> KeysView[str]:
    if not is_json_object(claims):
        raise MalformedToken(f"not a JSON object: {kind_of(claims)}")
    return claims.keys()


def new_jti() -> str:
    """128 random bits, unpadded base64url."""
    return b64url(secrets.token_bytes(16))


def check_jti(jti: str) -> str:
    """The jti itself if it is 128 bits in canonical base64url. Raises MalformedToken."""
    text = plain_text(jti)
    if text is None or not _JTI.fullmatch(text):
        raise MalformedToken(f"jti is {text_like(jti)}, expected 128 bits in base64url")
    return text


def canonical_object(members: Mapping[str, str]) -> re.Pattern[str]:
    """Matches a JSON object with exactly these members in the spelling of `canonical_json`; each value is a pattern
    with one group. A payload that matches has no repeated member, no unknown one, and no value of another type."""
    each = (f'"{name}":{members[name]}' for name in sorted(members))
    return re.compile(rf"\{{{','.join(each)}\}}")


def texts(members: str) -> dict[str, str] | None:
    """The object in the group of `TEXTS`; None where a name is repeated."""
    if not members:
        return {}
    pairs = _MEMBER.findall(members)
    found = dict(pairs)
    return found if len(found) == len(pairs) else None


def owner_in(header: Header, *types: str) -> str:
    """Step 2 of verification (`peerseal.verify.request`) for a header: the service that owns the kid, if ``typ`` is one
    of ``types`` and ``alg`` one that services use. Raises WrongType or MalformedToken."""
    if header.typ not in types:
        raise WrongType(f"token is of typ {text_like(header.typ)}, expected {' or '.join(types)}")
    if header.alg not in ALGORITHMS:
        wrong_alg = f"token has alg {text_like(header.alg)}, expected one of {', '.join(ALGORITHMS)}"
        raise MalformedToken(wrong_alg).at_step(2)
    try:
        return split_kid(header.kid)[0]
    except InvalidName as error:
        raise MalformedToken(f"token has an invalid kid: {error}").at_step(2) from error


def check_parties(issuer: str, owner: str, audience: str, expected: str, *, subject: str | None = None) -> None:
    """Steps 5 and 6 of verification (`peerseal.verify.request`): ``iss`` (and ``sub`` of a token without a user) is the
    owner of the key that signed, and ``aud`` is the service that received the token. Raises WrongIssuer or
    WrongAudience."""
    if issuer != owner or (subject is not None and subject != owner):
        raise WrongIssuer(f"iss is {text_like(issuer)}, sub {text_like(subject)}, the key belongs to {owner}")
    if audience != expected:
        raise WrongAudience(f"the token is for audience {text_like(audience)}, expected {expected}")


def check_times(issued_at: int, not_before: int, expires_at: int, *, now: float, leeway: float, cap: float) -> None:
    """Step 7 of verification (`peerseal.verify.request`). Raises NotYetValid, Expired or LifetimeTooLong.

    A token is valid while ``max(iat, nbf) - leeway <= now < exp + leeway``.
    """
    if expires_at <= issued_at:
        raise Expired("exp is not after iat")
    if expires_at - issued_at > cap:
        raise LifetimeTooLong(f"its lifetime is {expires_at - issued_at} s, the limit is {cap} s")
    if issued_at > now + leeway:
        raise NotYetValid(f"issued {issued_at - now:.0f} s in the future; is a clock wrong?")
    if not_before > now + leeway:
        raise NotYetValid(f"becomes valid in {not_before - now:.0f} s; is a clock wrong?")
    if now >= expires_at + leeway:
        raise Expired(f"expired {now - expires_at:.0f} s ago; is a clock wrong?")
