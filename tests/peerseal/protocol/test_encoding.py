"""Base64url and JSON, read strictly: one spelling for one thing, and nothing that two readers understand otherwise."""

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import (
    MAX_NESTING,
    b64url,
    b64url_decode,
    canonical_json,
    digest_header,
    strict_json,
    strict_json_object,
)

without_deadline = settings(deadline=None)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | text
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=20
)


def reads(data: bytes | str) -> bool:
    try:
        strict_json(data)
    except MalformedToken:
        return False
    return True


# ---- base64url


@given(st.binary(max_size=100))
@without_deadline
def test_bytes_come_back_from_base64url(data: bytes) -> None:
    encoded = b64url(data)
    assert encoded == base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    assert b64url_decode(encoded) == b64url_decode(encoded.encode()) == data


@given(st.text(st.sampled_from("AQgwEIMUYckos048Bb-_+/= \n.é"), max_size=12) | st.text(max_size=12))
@without_deadline
def test_only_the_canonical_spelling_is_read(encoded: str) -> None:
    try:
        data = b64url_decode(encoded)
    except MalformedToken:
        return
    assert b64url(data) == encoded


@given(st.binary(max_size=12))
@without_deadline
def test_only_the_canonical_spelling_is_read_of_bytes(encoded: bytes) -> None:
    try:
        data = b64url_decode(encoded)
    except MalformedToken:
        return
    assert b64url(data).encode() == encoded


def test_every_text_of_up_to_three_characters_is_read_as_the_rfc_says() -> None:
    """All 250,000 of them: exactly the encodings of one and two bytes are read, and three characters say two bytes."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    good = {b64url(bytes([one])) for one in range(256)}
    pairs = {one + two for one in alphabet for two in alphabet}
    assert {pair for pair in pairs if _is_base64url(pair)} == good
    good = {b64url(number.to_bytes(2, "big")) for number in range(1 << 16)}
    threes = {pair + three for pair in pairs for three in alphabet}
    assert {three for three in threes if _is_base64url(three)} == good
    assert not [one for one in alphabet if _is_base64url(one)]


def _is_base64url(encoded: str) -> bool:
    try:
        b64url_decode(encoded)
    except MalformedToken:
        return False
    return True


@pytest.mark.parametrize(
    "encoded",
    [
        *(
            "A",
            "AAAAA",
            "AA=",
            "AA==",
            "AAA=",
            "AAAA=",
            "=",
            "====",
            "AB",
            "AAB",
            "AA==AA",
            "A A",
            "AAA A",
            " AAAA",
            "AAAA ",
        ),
        *(
            "AAAA\n",
            "\nAAAA",
            "AA\nAA",
            "AA\r\nAA",
            "AAAA\0",
            "AA+A",
            "AA/A",
            "AA.A",
            "AA!A",
            "AA%3D",
            "ÀAAA",
            "ＡAAA",
            "\ud800AAA",
        ),
    ],
)
def test_other_spellings_are_refused(encoded: str) -> None:
    with pytest.raises(MalformedToken):
        b64url_decode(encoded)


def test_nothing_is_the_encoding_of_nothing() -> None:
    assert b64url_decode("") == b""
    assert b64url(b"") == ""


# ---- JSON


@given(values)
@without_deadline
def test_valid_json_is_read_as_json_reads_it(value: Any) -> None:
    for spelling in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=2)):
        assert strict_json(spelling) == strict_json(f" \t\r\n{spelling}\n".encode()) == json.loads(spelling)


@given(values)
@without_deadline
def test_types_are_kept(value: Any) -> None:
    assert repr(strict_json(json.dumps(value))) == repr(json.loads(json.dumps(value)))


@given(st.text(max_size=30) | st.text(st.sampled_from('{}[]":,\\u0123e-+.tfn aNI'), max_size=12))
@without_deadline
def test_whatever_is_read_is_what_json_reads(text: str) -> None:
    """No text is read here that ``json`` refuses, and none with another meaning."""
    try:
        value = strict_json(text)
    except MalformedToken:
        return
    assert repr(json.loads(text)) == repr(value)


@given(st.binary(max_size=30))
@without_deadline
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    if reads(data):
        json.loads(data.decode("utf-8"))


@given(st.lists(st.tuples(text, values), min_size=1, max_size=5), st.data())
@without_deadline
def test_repeated_members_are_refused_at_any_level(pairs: list[tuple[str, Any]], data: st.DataObject) -> None:
    again = data.draw(st.sampled_from(pairs))[0]
    members = [*pairs, (again, 1)]
    spelled = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in members)
    for whole in (f"{{{spelled}}}", f'{{"~outer":{{{spelled}}}}}', f"[0,{{{spelled}}}]"):
        assert not reads(whole)


@pytest.mark.parametrize(
    "repeated",
    ['{"a":1,"a":1}', '{"a":1,"\\u0061":2}', '{"\\u0061":1,"\\u0061":1}', '{"":1,"":1}', '{"é":1,"\\u00e9":1}'],
)
def test_a_member_written_otherwise_is_the_same_member(repeated: str) -> None:
    assert not reads(repeated)


def test_members_that_only_look_alike_are_two() -> None:
    assert strict_json('{"a":1,"A":2,"а":3,"a ":4}') == {"a": 1, "A": 2, "\N{CYRILLIC SMALL LETTER A}": 3, "a ": 4}


@pytest.mark.parametrize(
    "no_json",
    [
        *(
            "",
            " ",
            "NaN",
            "Infinity",
            "-Infinity",
            "[NaN]",
            '{"a":Infinity}',
            "1e400",
            "-1e400",
            "[1e309]",
            "nan",
            "undefined",
        ),
        *(
            "01",
            "+1",
            "1.",
            ".1",
            "0x1",
            "1_0",
            "١",
            "--1",
            "1e",
            "True",
            "'a'",
            "{a:1}",
            "[1,]",
            '{"a":1,}',
            "// a\n1",
            "1 /**/",
        ),
        *(
            '"\n"',
            '"\t"',
            '"\0"',
            '"\\x41"',
            '"\\u12"',
            '"\\u 123"',
            '"a',
            "[",
            "{",
            "]",
            "1 2",
            "{}{}",
            "null null",
            "\ufeff1",
        ),
        *(
            "\u00a01",
            "1\f",
            "\v1",
            "1\x1f",
            "1\0",
            "\x851",
            "\u20281",
            '"\\ud800"',
            '"\\udfff\\ud800"',
            '["\\uDBFF"]',
            '{"\\udc00":1}',
        ),
        *("\ud800", '"\ud800"', '{"a":"\udfff"}', "9" * 4301, "-" + "9" * 4301, "[" * 100_000, '{"a":' * 100_000),
    ],
)
def test_what_is_not_json_is_refused(no_json: str) -> None:
    assert not reads(no_json)
    assert not reads(no_json.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "data", [b"\xff", b'"\xc0\xaf"', b'"\xed\xa0\x80"', b"\xef\xbb\xbf1", b'"\x80"', b"1\x00", "1".encode("utf-16")]
)
def test_bytes_that_are_not_utf_8_are_refused(data: bytes) -> None:
    assert not reads(data)


def test_a_surrogate_pair_is_one_character() -> None:
    assert strict_json('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_nesting_has_a_limit_of_its_own(opening: str, closing: str) -> None:
    """However deep the stack is on which the reader is called."""
    step = opening.count("[") + opening.count("{")
    for levels in range(1, 600):
        assert reads(opening * levels + "0" + closing * levels) == (levels * step <= MAX_NESTING)


def test_wide_is_not_deep() -> None:
    wide = [[[], {}] for _ in range(1000)]
    assert strict_json(json.dumps(wide)) == wide
    assert strict_json(json.dumps("[{" * 1000)) == "[{" * 1000


@pytest.mark.parametrize("value", ["[]", '"a"', "1", "null", "true", '[{"a":1}]'])
def test_an_object_is_asked_for_and_nothing_else_given(value: str) -> None:
    assert strict_json_object('{"a":1}') == {"a": 1}
    with pytest.raises(MalformedToken):
        strict_json_object(value)


# ---- canonical JSON


@given(values)
@without_deadline
def test_canonical_json_has_one_spelling(value: Any) -> None:
    spelled = canonical_json(value)
    assert canonical_json(strict_json(spelled)) == spelled
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == spelled


def test_canonical_json_is_sorted_utf_8_without_blanks() -> None:
    assert canonical_json({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": -float("inf")}, "\ud800"])
def test_what_json_cannot_say_is_not_written(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the standard library's own
        canonical_json(value)


# ---- digests


@given(st.binary(max_size=100))
@without_deadline
def test_digest_is_as_rfc_9530_writes_it(data: bytes) -> None:
    assert digest_header(data) == f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def test_digest_of_an_empty_body() -> None:
    assert digest_header(b"") == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
