"""Ledger entries: one spelling each, and back."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.ledger.entries import MAX_ENTRY, Entry
from peerseal.protocol.tokens.claims import LATEST_TIME

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.none() | st.booleans() | st.integers() | text | st.lists(text, max_size=3)
entries = st.builds(
    Entry,
    seq=st.integers(1, 2**40),
    time=st.integers(0, LATEST_TIME),
    type=text,
    service=st.none() | text,
    kid=st.none() | text,
    by=st.dictionaries(text, text, max_size=3),
    evidence=st.none() | text,
    data=st.dictionaries(text, json_values, max_size=3),
)

ENTRY = Entry(1, 2, "key_admitted", "billing", "a/b/c", {"join_token": "x"}, "a-digest", {"alg": "RS256"})


@given(entries)
@settings(deadline=None)
def test_an_entry_comes_back_from_its_bytes(entry: Entry) -> None:
    assert Entry.decode(entry.encode()) == entry
    assert Entry.decode(entry.encode()).encode() == entry.encode()


def test_an_entry_is_canonical_json() -> None:
    assert ENTRY.encode() == (
        b'{"by":{"join_token":"x"},"data":{"alg":"RS256"},"evidence":"a-digest","kid":"a/b/c",'
        b'"seq":1,"service":"billing","time":2,"type":"key_admitted"}'
    )


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b"{}", b"\xff", ENTRY.encode() + b"\n", b" " + ENTRY.encode(), ENTRY.encode()[:-1]),
        *(ENTRY.encode().replace(b":", b": ", 1), ENTRY.encode().replace(b"billing", b"b\\u0069lling")),
        *(
            ENTRY.encode()[:-1] + b',"type":"a"}',
            ENTRY.encode()[:-1] + b',"x":1}',
            ENTRY.encode().replace(b"2,", b"2.0,"),
        ),
    ],
)
def test_bytes_that_no_entry_encodes_to(body: bytes) -> None:
    with pytest.raises(MalformedToken):
        Entry.decode(body)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seq", "1"), ("seq", True), ("seq", 1.5), ("seq", None), ("time", None), ("time", "2"), ("type", None)),
        *(
            ("type", 1),
            ("service", 1),
            ("kid", []),
            ("by", None),
            ("by", []),
            ("by", "a"),
            ("evidence", {}),
            ("data", None),
        ),
        *(("data", []), ("data", "a")),
    ],
)
def test_members_of_another_type(name: str, value: Any) -> None:
    members = {member: getattr(ENTRY, member) for member in Entry.__slots__}
    with pytest.raises(MalformedToken):
        Entry.decode(canonical_json({**members, name: value}))


def test_an_entry_has_a_limit() -> None:
    empty = len(Entry(1, 2, "a", data={"a": ""}).encode())
    longest = Entry(1, 2, "a", data={"a": "x" * (MAX_ENTRY - empty)})
    assert len(longest.encode()) == MAX_ENTRY
    assert Entry.decode(longest.encode()) == longest
    with pytest.raises(ValueError, match="too long"):
        Entry(1, 2, "a", data={"a": "x" * (MAX_ENTRY - empty + 1)}).encode()
    with pytest.raises(MalformedToken):
        Entry.decode(longest.encode().replace(b"xx", b"xxx", 1))
