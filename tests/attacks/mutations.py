"""Ways to spoil a token, each with one random source, so that a run can be repeated."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from peerseal.protocol.encoding import b64url, b64url_decode

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
ODD = ["=", "+", "/", ".", " ", "\n", "\0", ",", "%", "é", "А", "\ud800", "Bearer ", "..", "==", "A" * 100, "A" * 7000]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 1.5, 2**31, 2**63, 2**64, 253_402_300_800, 10**400, 1e308, "", "a", "*", "\0", "\n"),
    *([], {}, [[]], {"a": {}}, ["a"], "none", "HS256", "ES256", "RS256", "../..", "\N{FULLWIDTH SOLIDUS}", "a" * 3000),
]
RAW = [
    *(
        b"NaN",
        b"1e400",
        b"-0",
        b"1E3",
        b"[",
        b"{",
        b'"',
        b"\xff",
        b"\xef\xbb\xbf",
        b'"\\ud800"',
        b"[" * 990 + b"]" * 990,
    ),
    *(b'{"a":1,"a":1}', b"9" * 4301, b"/**/", b"'", b"\0", b"\\", b",", b"\xc0\xaf", b"\t", b"Infinity", b"truE"),
]


# ---- of the text


def other_character(random: Random, token: str) -> str:
    place = random.randrange(len(token))
    return token[:place] + random.choice(ALPHABET) + token[place + 1 :]


def other_bit(random: Random, token: str) -> str:
    place = random.randrange(len(token))
    return token[:place] + chr(ord(token[place]) ^ 1 << random.randrange(8)) + token[place + 1 :]


def inserted(random: Random, token: str) -> str:
    place = random.randrange(len(token) + 1)
    return token[:place] + random.choice([*ALPHABET, *ODD]) + token[place:]


def removed(random: Random, token: str) -> str:
    start = random.randrange(len(token))
    return token[:start] + token[start + random.choice((1, 1, 2, 4, 40)) :]


def doubled(random: Random, token: str) -> str:
    start, size = random.randrange(len(token)), random.choice((1, 2, 4, 40, 400))
    return token[:start] + token[start : start + size] + token[start:]


def swapped_characters(random: Random, token: str) -> str:
    if len(token) < 2:
        return token * 2
    one, two = sorted(random.sample(range(len(token)), 2))
    return token[:one] + token[two] + token[one + 1 : two] + token[one] + token[two + 1 :]


def cut_off(random: Random, token: str) -> str:
    place = random.randrange(len(token))
    return token[:place] if random.random() < 0.5 else token[place:]


def swapped_segments(random: Random, token: str) -> str:
    segments = token.split(".")
    random.shuffle(segments)
    return ".".join(segments[: random.choice((1, 2, 3, 3, 3))])


def other_case(random: Random, token: str) -> str:
    start = random.randrange(len(token))
    return token[:start] + token[start : start + random.choice((1, 4, 40))].swapcase() + token[start + 40 :]


# ---- of the bytes in a segment, and of the JSON in it


def other_bytes(random: Random, data: bytes) -> bytes:
    place = random.randrange(len(data))
    kind = random.randrange(4)
    if kind == 0:
        return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
    if kind == 1:
        return data[:place] + data[place + random.choice((1, 2, 8)) :]
    if kind == 2:
        return data[:place] + random.choice(RAW) + data[place + random.choice((0, 0, 1, 5)) :]
    return data[:place] + data[place : place + random.choice((1, 8, 64))] + data[place:]


def other_json(random: Random, data: bytes) -> bytes:
    members: dict[str, Any] = json.loads(data)
    name = random.choice([*members, "crit", "jku", "jwk", "b64", "ctx", "tth", "cnf"])
    kind = random.randrange(4)
    if kind == 0:
        members.pop(name, None)
    elif kind == 1:
        members[name] = random.choice(VALUES)
    elif kind == 2 and type(members.get(name)) is str:
        members[name] = other_case(random, members[name] or "a")
    elif kind == 2 and type(members.get(name)) is int:
        members[name] += random.choice((-(2**40), -3600, -1, 1, 3600, 2**40))
    else:
        members[random.choice([*members])] = members.get(name)
    return json.dumps(members, ensure_ascii=random.random() < 0.5, indent=random.choice((None, None, 1))).encode()


TEXT: list[Callable[[Random, str], str]] = [
    *(other_character, other_bit, inserted, removed, doubled, swapped_characters, cut_off, swapped_segments, other_case)
]
JSON: list[Callable[[Random, bytes], bytes]] = [other_bytes, other_json, other_json]


def misspelled(random: Random, text: str) -> str:
    """A text spoilt in one place or in some, as if it were no more than text."""
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        text = random.choice(TEXT)(random, text) or "A"
    return text


def respelled(random: Random, token: str, others: list[str]) -> str:
    """A token that was misspelled, or put together of several, or spoilt in what a segment says, without any key."""
    kind = random.randrange(10)
    if kind < 7:
        return misspelled(random, token)
    segments = token.split(".")
    place = random.randrange(3)
    if kind == 7:
        segments[place] = random.choice(others).split(".")[place]
    else:
        spoil = other_bytes if kind == 8 or place == 2 else random.choice(JSON)
        segments[place] = b64url(spoil(random, b64url_decode(segments[place])))
    return ".".join(segments)


def resigned(random: Random, token: str, sign: Callable[[bytes], bytes], places: tuple[int, ...] = (0, 1)) -> str:
    """A token whose header or payload was spoilt, signed again with a key that is at hand."""
    segments = token.split(".")
    for place in places:
        if random.random() < 0.7:
            segments[place] = b64url(random.choice(JSON)(random, b64url_decode(segments[place])))
    signing_input = ".".join(segments[:2])
    return f"{signing_input}.{b64url(sign(signing_input.encode()))}"
