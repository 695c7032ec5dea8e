"""Reading claims with their types checked: what `tokens` and `documents` share."""

from collections.abc import KeysView, Mapping
from typing import Any, TypeVar

from peerseal.errors import MalformedToken
from peerseal.protocol.numbers import MAX_DIGITS
from peerseal.protocol.plain import is_object, kind_of

T = TypeVar("T")

LATEST_TIME = 253_402_300_799
"""The end of the year 9999, in seconds since the epoch: no honest time lies behind it."""


def claim(claims: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """The claim of exactly that JSON type (True is no integer). Raises MalformedToken."""
    value = claims.get(name) if is_object(claims) else None
    if type(value) is not kind:
        raise MalformedToken(f"claim {name} is missing or of the wrong type")
    return value


def time_claim(claims: Mapping[str, Any], name: str) -> int:
    """A time as a JSON integer between the epoch and the year 9999. Raises MalformedToken."""
    value = claim(claims, name, int)
    if not 0 <= value <= LATEST_TIME:
        raise MalformedToken(f"claim {name} is no time")
    return value


def number_claim(claims: Mapping[str, Any], name: str) -> int:
    """A natural number that files and databases can hold: a position, a size, a version. Raises MalformedToken."""
    value = claim(claims, name, int)
    if not 0 <= value < 10**MAX_DIGITS:
        raise MalformedToken(f"claim {name} is no natural number of at most {MAX_DIGITS} digits")
    return value


def exactly(claims: Mapping[str, Any], members: frozenset[str], optional: frozenset[str] = frozenset()) -> None:
    """Refuses missing and unknown claims: a claim that this version does not check must not pass as if it did.
    Raises MalformedToken."""
    names = _names(claims)
    if not members <= names <= members | optional:
        raise MalformedToken("claims are missing or unknown")


def at_least(claims: Mapping[str, Any], members: frozenset[str] | set[str]) -> None:
    """Refuses missing claims, and lets unknown ones be. Raises MalformedToken."""
    if not _names(claims) >= members:
        raise MalformedToken("claims are missing")


def _names(claims: Mapping[str, Any]) -> KeysView[str]:
    if not is_object(claims):
        raise MalformedToken(f"not a JSON object: {kind_of(claims)}")
    return claims.keys()
