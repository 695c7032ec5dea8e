"""How many further keys a service may have: in all, and in each part of a large key set (docs/reference/limits.md)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from peerseal.protocol.documents.key_set import part_of
from registry.domain.errors import KeyTaken
from registry.limits import Limits

_IN_FULL: Final = 4
"""Of the keys in a part, one in so many may be listed with the key itself, and not by kid alone."""


class PartCounts(NamedTuple):
    """Numbers of keys of one part, in any state: each is listed in the part, or may be. ``in_full`` are those of them
    that the part lists with the key itself."""

    all: int
    in_full: int


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """Numbers of a service's keys: ``joined`` are active and have no voucher, ``vouched`` have one and are in any
    state. ``parts`` are the counts of some parts; a part without keys may be missing."""

    joined: int
    vouched: int
    parts: Mapping[int, PartCounts]


class KeyRoom:
    """The room for keys of one service that had these counts. It counts the keys that it lets in.

    Keys by vouchers leave a quarter of each part free: a thief of one key that fills all parts cannot keep the owner
    from joining again.
    """

    def __init__(self, service: str, counts: KeyCounts, limits: Limits) -> None:
        self._service = service
        self._limits = limits
        self._joined, self._vouched = counts.joined, counts.vouched
        self._in_part = Counter({part: each.all for part, each in counts.parts.items()})
        self._in_full = Counter({part: each.in_full for part, each in counts.parts.items()})

    @staticmethod
    def ample(limits: Limits) -> int:
        """As many keys of any kind as a service may have with a join token, whatever parts they belong to."""
        return min(limits.joined_keys, limits.keys_in_part // _IN_FULL)

    def take(self, thumbprint: str, *, vouched: bool) -> None:
        """Counts a new key. Raises KeyTaken where there is no room for it."""
        self._check(vouched=vouched)
        self._check_part(part := part_of(thumbprint), vouched=vouched)
        self._in_part[part] += 1
        self._in_full[part] += 1
        self._vouched += vouched
        self._joined += not vouched

    def _check(self, *, vouched: bool) -> None:
        if vouched and self._vouched >= (most := self._limits.vouched_keys):
            raise KeyTaken(
                "too_many_keys", f"{self._service} has {self._vouched} keys by vouchers, and may have {most}"
            )
        if not vouched and self._joined >= (most := self._limits.joined_keys):
            keys = f"{self._joined} active keys without a voucher"
            raise KeyTaken("too_many_keys", f"{self._service} has {keys}, and may have {most}")

    def _check_part(self, part: int, *, vouched: bool) -> None:
        most, in_full = self._limits.keys_in_part, self._limits.keys_in_part // _IN_FULL
        if vouched:
            most, in_full = most * 3 // 4, in_full * 3 // 4
        if self._in_part[part] >= most or self._in_full[part] >= in_full:
            keys = f"{self._in_part[part]} keys in part {part} of its set, {self._in_full[part]} of them in full"
            raise KeyTaken(
                "too_many_keys", f"{self._service} has {keys}, and may have {most} and {in_full}: make another key"
            )
