"""Generated input: texts, bytes, JSON values and Python objects, from one random source each.

A run takes a new seed, unless ``FUZZ_SEED`` names one, and lasts ``FUZZ_SECONDS`` seconds. Each failure names its seed.
"""

import os
import secrets
import time
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.attacks.mutations import ODD, RAW, VALUES, misspelled, other_bytes, other_json, resigned, respelled

__all__ = ["arbitrary", "bytes_like", "json_like", "object_like", "resigned", "rounds", "text_like"]

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
TEXTS = [*ODD, "\r\n", "\x1b[2J", "\u202e", "%00", "%2f", "%ud800", "a" * 9000, "9" * 5000, "-1", "1e9", "0x10", "١٢"]
"""Texts that some parser reads otherwise than another one; the last is a number in Arabic digits."""


class Wilful(str):
    """A text whose methods lie."""

    def __len__(self) -> int:
        return 3

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1

    def encode(self, *_: Any, **__: Any) -> bytes:
        raise RuntimeError("a text that cannot be encoded")

    def partition(self, *_: Any) -> Any:
        return None


OBJECTS: list[Any] = [
    *VALUES,
    *TEXTS,
    *RAW,
    Wilful("a.b.c"),
    bytearray(b"a.b.c"),
    memoryview(b"a.b.c"),
    float("nan"),
    float("inf"),
    -0.0,
    10**5000,
    1j,
    object(),
    str,
    (),
    ("a",),
    {"a"},
    {1: 2},
    {b"authorization": b"Bearer a.b.c"},
    [("authorization", "Bearer a.b.c"), ("Authorization", None)],
    [("authorization", 7)],
    [1, 2],
    range(3),
]
"""Values of all sorts, for functions that must answer for each of them."""


def rounds(share: float = 1.0) -> Iterator[Random]:
    """Random sources for that share of the run's time. ``random.seed_text`` is the seed of the current one."""
    named = os.environ.get("FUZZ_SEED")
    if named is not None:
        yield _source(named)
        return
    ends = time.monotonic() + SECONDS * share
    while time.monotonic() < ends:
        yield _source(secrets.token_hex(8))


def _source(seed: str) -> Random:
    source = Random(seed)
    source.seed_text = seed  # type: ignore[attr-defined]
    return source


def arbitrary(random: Random, _: object = None) -> Any:
    """Any Python object."""
    return random.choice(OBJECTS)


def text_like(random: Random, original: str) -> str:
    """A text: the original, spoilt in some places, or another one."""
    kind = random.random()
    if kind < 0.1:
        return random.choice(TEXTS) * random.choice((1, 1, 3))
    if kind < 0.2:
        return "".join(chr(random.choice((random.randrange(128), random.randrange(0x11000)))) for _ in range(40))
    if kind < 0.6 and original.startswith("ey"):
        return respelled(random, original, [original])
    return misspelled(random, original or "a")


def bytes_like(random: Random, original: bytes) -> bytes:
    """Bytes: the original, spoilt in some places, or others."""
    kind = random.random()
    if kind < 0.1:
        return random.choice(RAW)
    if kind < 0.2:
        return random.randbytes(random.choice((0, 1, 8, 64, 500)))
    if kind < 0.6 and original.startswith(b"{"):
        return other_json(random, original)
    return other_bytes(random, original or b"a")


def json_like(random: Random, original: Any) -> Any:
    """A JSON value of the original's shape, with other values at some places, or another one."""
    kind = random.random()
    if kind < 0.1:
        return random.choice(VALUES)
    if isinstance(original, dict) and original:
        members = dict(original)
        name = random.choice([*members])
        if kind < 0.3:
            del members[name]
        elif kind < 0.4:
            members[random.choice(["a", "", "x5u", name.upper()])] = random.choice(VALUES)
        else:
            members[name] = json_like(random, members[name])
        return members
    if isinstance(original, list) and original:
        values = list(original)
        place = random.randrange(len(values))
        return values * 2 if kind < 0.3 else [*values[:place], json_like(random, values[place]), *values[place + 1 :]]
    if isinstance(original, str) and kind < 0.7:
        return misspelled(random, original or "a")
    return random.choice(VALUES)


def object_like(random: Random, original: dict[str, Any]) -> dict[str, Any]:
    """A JSON object of the original's members, some of them spoilt."""
    while not isinstance(spoilt := json_like(random, original), dict):
        pass
    return spoilt
