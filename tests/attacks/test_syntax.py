"""Attacks on syntax: base64url, JSON, size, the number of segments. Two spellings of one token are one too many."""

import json

import pytest

from peerseal.protocol.encoding import MAX_NESTING, b64url, canonical_json
from peerseal.protocol.jose import MAX_TOKEN
from peerseal.protocol.keys import KeyPair
from tests.attacks.forge import CALLER, JTI, Callee, claims, forge, header, honest_token

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def spellings(segment: str) -> list[str]:
    """Texts that a lenient decoder reads as the same bytes."""
    rest = len(segment) % 4
    padded = segment + "=" * (-len(segment) % 4)
    blanks = (" ", "\n", "\r\n", "\t", "\0", "=", "==", "*", "\N{NO-BREAK SPACE}")
    spaced = [f"{segment[:9]}{blank}{segment[9:]}" for blank in blanks]
    around = [text for blank in blanks for text in (f"{blank}{segment}", f"{segment}{blank}")]
    trailing = [segment[:-1] + ALPHABET[ALPHABET.index(segment[-1]) + 1]] if rest else []
    plain = segment.replace("-", "+").replace("_", "/")
    return [*spaced, *around, *trailing, *({padded, plain} - {segment}), f"{segment}A", segment[:-1]]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_non_canonical_base64(callee: Callee, key: KeyPair, place: int) -> None:
    """The signature is made over the odd spelling, as it stands in the token: the spelling is what is refused."""
    for size in range(3):
        honest = honest_token(key, ctx={"~": "~" * size + "?>" * 9}).split(".")
        for odd in spellings(honest[place]):
            segments = [*honest[:place], odd, *honest[place + 1 :]]
            if place < 2:
                segments[2] = b64url(key.sign(".".join(segments[:2]).encode("utf-8")))
            callee.refuses(".".join(segments), "malformed_token" if place < 2 else _code_of(odd))


def _code_of(signature: str) -> str:
    """An odd signature that happens to be canonical is another signature."""
    body = signature[:-1].replace("-", "").replace("_", "")
    canonical = body.isascii() and body.isalnum() and len(signature) % 4 != 1
    ends = {2: "AQgw", 3: "AEIMQUYcgkosw048", 0: ALPHABET}
    return "bad_signature" if canonical and signature[-1] in ends[len(signature) % 4] else "malformed_token"


@pytest.mark.parametrize("place", [0, 1])
def test_plain_base64_alphabet(callee: Callee, key: KeyPair, place: int) -> None:
    token = honest_token(key, ctx={"a": "???>>>~~~"}).split(".")
    assert "-" in token[1] or "_" in token[1]
    token[place] = token[place].replace("-", "+").replace("_", "/") + ("" if place else "/")
    token[2] = b64url(key.sign(".".join(token[:2]).encode()))
    callee.refuses(".".join(token), "malformed_token")


def test_other_numbers_of_segments(callee: Callee, key: KeyPair) -> None:
    token = honest_token(key)
    head, payload, signature = token.split(".")
    for text in (
        *("", ".", "..", "...", "a", "a.b", "....", f"{head}.{payload}", f"{head}.{payload}.", f"{head}..{signature}"),
        *(f".{payload}.{signature}", f"{token}.", f".{token}", f"{token}.{signature}", f"{token}{token}", head),
        *(f"{head}.AAAA.AAAA.{payload}.{signature}", token.replace(".", ","), token.replace(".", ". "), token[::-1]),
        token.replace(".", "。"),
    ):
        code = "bad_signature" if text == f"{head}.{payload}." else "malformed_token"
        callee.refuses(text, code)


def test_json_serialisations(callee: Callee, key: KeyPair) -> None:
    """RFC 7515 section 7.2: not a form that a token comes in, wherever the signature is right."""
    head, payload, signature = honest_token(key).split(".")
    flat = {"protected": head, "payload": payload, "signature": signature}
    general = {"payload": payload, "signatures": [{"protected": head, "signature": signature}]}
    for value in (flat, general, {**flat, "header": {"alg": "none"}}):
        callee.refuses(json.dumps(value), "malformed_token")
        callee.refuses(b64url(canonical_json(value)), "malformed_token")


def test_two_tokens_in_one_text(callee: Callee, key: KeyPair) -> None:
    one, two = honest_token(key), honest_token(key, jti=f"B{JTI[1:]}")
    for between in ("", " ", ",", ", ", "\n", "\0", ";", " Bearer ", ", Bearer ", "."):
        callee.refuses(f"{one}{between}{two}", "malformed_token")


def test_scheme_inside_the_token(callee: Callee, key: KeyPair) -> None:
    callee.refuses(f"Bearer {honest_token(key)}", "malformed_token")


def test_token_of_1_mb(callee: Callee, key: KeyPair) -> None:
    callee.refuses("A" * 1_000_000, "malformed_token")
    callee.refuses("." * 1_000_000, "malformed_token")
    callee.refuses(honest_token(key) + "A" * 1_000_000, "malformed_token")
    callee.refuses(honest_token(key, ctx={"a": "x" * 1_000_000}), "malformed_token")


def test_token_of_6_kib_and_one_character(callee: Callee, key: KeyPair) -> None:
    honest = honest_token(key)
    room = (MAX_TOKEN - len(honest)) * 3 // 4
    blank = canonical_json(claims()) + b" " * room
    longest = max(
        (forge(header(key), blank[: len(blank) - cut], key.sign) for cut in range(8)),
        key=lambda token: len(token) if len(token) <= MAX_TOKEN else 0,
    )
    assert MAX_TOKEN - 4 < len(longest) <= MAX_TOKEN
    callee.refuses(forge(header(key), blank + b"    ", key.sign), "malformed_token")
    assert callee.accepts(longest).id == CALLER


@pytest.mark.parametrize("text", ["é", "\ud800", "\0", "\N{CYRILLIC SMALL LETTER A}", "Ａ"])
def test_token_that_is_not_ascii(callee: Callee, key: KeyPair, text: str) -> None:
    token = honest_token(key)
    for place in (0, 5, token.index(".") + 3, len(token)):
        callee.refuses(token[:place] + text + token[place:], "malformed_token")


@pytest.mark.parametrize("bad", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xe2\x82"])
def test_json_that_is_not_utf_8(callee: Callee, key: KeyPair, bad: bytes) -> None:
    """Among them an overlong slash, half a surrogate pair, and a code point after the last."""
    for where in (header(key, kid="PLACE"), claims(iss="PLACE"), claims(ctx={"PLACE": 1})):
        raw = canonical_json(where).replace(b"PLACE", bad)
        parts = (raw, claims()) if "kid" in where else (header(key), raw)
        callee.refuses(forge(*parts, key.sign), "malformed_token")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_json_in_another_encoding(callee: Callee, key: KeyPair, encoding: str) -> None:
    """``json.loads`` guesses the encoding of bytes, and takes a byte order mark."""
    payload = json.dumps(claims(ctx={"a": "ü"}), ensure_ascii=False).encode(encoding)
    head = json.dumps(header(key)).encode(encoding)
    callee.refuses(forge(header(key), payload, key.sign), "malformed_token")
    callee.refuses(forge(head, claims(), key.sign), "malformed_token")


@pytest.mark.parametrize("escape", [rb"\ud800", rb"\udfff", rb"\udc00\ud800", rb"\ud83d", rb"\uD800\u0041"])
def test_half_a_surrogate_pair(callee: Callee, key: KeyPair, escape: bytes) -> None:
    """It comes in through an escape, and no encoder can write it again: a log or an answer would fall over it."""
    places: list[dict[str, object]] = [{"method": "PLACE"}, {"ctx": {"a": ["PLACE"]}}, {"ctx": {"PLACE": 1}}]
    for place in (*places, {"headers": {"a": "PLACE"}}):
        payload = canonical_json(claims(**place)).replace(b"PLACE", escape)
        callee.refuses(forge(header(key), payload, key.sign), "malformed_token")


def json_that_is_none(honest: bytes) -> dict[str, bytes]:
    return {
        "comma at the end": honest[:-1] + b",}",
        "comment": honest[:-1] + b"/* */}",
        "line comment": honest[:-1] + b"//\n}",
        "hash comment": b"#\n" + honest,
        "single quotes": honest.replace(b'"', b"'"),
        "no quotes": honest.replace(b'"iss"', b"iss"),
        "raw newline in a string": honest.replace(b"POST", b"PO\nST"),
        "raw NUL in a string": honest.replace(b"POST", b"PO\0ST"),
        "raw tab in a string": honest.replace(b"POST", b"PO\tST"),
        "unknown escape": honest.replace(b"POST", rb"\POST"),
        "hexadecimal escape": honest.replace(b"POST", rb"\x50OST"),
        "half an escape": honest.replace(b"POST", rb"\u00"),
        "escape in other digits": honest.replace(b"POST", rb"\u +50OST"),
        "something behind": honest + b"{}",
        "NUL behind": honest + b"\0",
        "form feed behind": honest + b"\f",
        "no-break space in front": b"\xc2\xa0" + honest,
        "vertical tab in front": b"\v" + honest,
        "unit separator behind": honest + b"\x1f",
        "not closed": honest[:-1],
        "closed twice": honest + b"}",
        "NaN further down": honest[:-1] + b',"ctx":{"a":NaN}}',
        "Infinity further down": honest[:-1] + b',"ctx":{"a":[-Infinity]}}',
        "1e400 further down": honest[:-1] + b',"ctx":{"a":1e400}}',
        "a number without end": honest[:-1] + b',"ctx":{"a":' + b"9" * 4301 + b"}}",
        "lone minus": honest[:-1] + b',"ctx":{"a":-}}',
        "point without digits": honest[:-1] + b',"ctx":{"a":1.}}',
        "True": honest[:-1] + b',"ctx":{"a":True}}',
        "undefined": honest[:-1] + b',"ctx":{"a":undefined}}',
        "key that is no string": honest[:-1] + b',"ctx":{1:2}}',
    }


@pytest.mark.parametrize("name", json_that_is_none(b"{}"))
def test_payload_that_is_not_json(callee: Callee, key: KeyPair, name: str) -> None:
    payload = json_that_is_none(canonical_json(claims()))[name]
    callee.refuses(forge(header(key), payload, key.sign), "malformed_token")


def test_nul_written_as_an_escape_is_compared_like_any_character(callee: Callee, key: KeyPair) -> None:
    payload = canonical_json(claims()).replace(b"POST", rb"POST\u0000")
    callee.refuses(forge(header(key), payload, key.sign), "wrong_binding")


def nested(levels: int, brackets: str) -> bytes:
    opened, closed = ("[", "]") if brackets == "[]" else ('{"a":', "}")
    return (opened * levels + "0" + closed * levels).encode()


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_deep_nesting(callee: Callee, key: KeyPair, brackets: str) -> None:
    """Every depth up to what a token has room for, so also the few levels that can be read and not written again."""
    honest = canonical_json(claims())[:-1]
    most = (4000 - len(honest)) // (2 if brackets == "[]" else 6)
    for levels in [*range(MAX_NESTING - 1, 1010), most]:
        if levels <= most:
            payload = honest + b',"ctx":{"a":' + nested(levels, brackets) + b"}}"
            callee.refuses(forge(header(key), payload, b""), "malformed_token")
    deepest = honest + b',"ctx":{"a":' + nested(MAX_NESTING - 2, brackets) + b"}}"
    assert callee.accepts(forge(header(key), deepest, key.sign)).id == CALLER


def test_deep_nesting_in_header_and_in_place_of_everything(callee: Callee, key: KeyPair) -> None:
    for levels in (33, 500, 990, 1500):
        callee.refuses(forge(nested(levels, "[]"), claims(), key.sign), "malformed_token")
        callee.refuses(forge(header(key), nested(levels, "[]"), key.sign), "malformed_token")
        kid = canonical_json(header(key, kid="PLACE")).replace(b'"PLACE"', nested(levels, "[]"))
        callee.refuses(forge(kid, claims(), key.sign), "malformed_token")


def test_brackets_in_strings_nest_nothing(callee: Callee, key: KeyPair) -> None:
    assert callee.accepts(honest_token(key, ctx={"a": "[{" * 200})).id == CALLER
    flat = {"a": [[] for _ in range(100)]}
    assert callee.accepts(honest_token(key, jti=f"B{JTI[1:]}", ctx=flat)).claims["ctx"] == flat
