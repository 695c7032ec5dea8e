"""Natural numbers in texts from outside: one spelling each, and no more digits than anything holds."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import MAX_DIGITS, natural
from peerseal.protocol.tokens.claims import number_claim

ODD = ["", "-1", "+1", " 1", "1 ", "1\n", "1_0", "0x10", "1e3", "1.0", "00", "01", "١٢", "²", "½", "１", "inf", "nan"]


@pytest.mark.parametrize("text", [*ODD, "9" * (MAX_DIGITS + 1), "9" * 5000, "0" * 5000])
def test_what_is_no_natural_number(text: str) -> None:
    assert natural(text) is None


@given(st.integers(0, 10**MAX_DIGITS - 1))
def test_each_number_is_read_in_its_one_spelling(number: int) -> None:
    assert natural(str(number)) == number
    assert natural(f"0{number}") is None
    assert natural(f"-{number}") is None


@given(st.text() | st.text("0123456789", max_size=5000))
@example("9" * 5000)
def test_any_other_text_is_none_and_raises_nothing(text: str) -> None:
    found = natural(text)
    assert found is None or str(found) == text
    assert found is None or 0 <= found < 10**MAX_DIGITS


@given(st.text("0123456789", min_size=1, max_size=30), st.integers(1, 30))
def test_no_more_digits_than_asked_for(text: str, digits: int) -> None:
    found = natural(text, digits)
    assert (found is not None) == (len(text) <= digits and text == str(int(text)))


@given(st.integers() | st.booleans() | st.floats() | st.text() | st.none())
@example(10**MAX_DIGITS)
@example(-1)
@example(True)
def test_a_claim_is_one_or_is_refused(value: object) -> None:
    good = type(value) is int and 0 <= value < 10**MAX_DIGITS
    try:
        assert number_claim({"size": value}, "size") == value
        assert good
    except MalformedToken:
        assert not good
