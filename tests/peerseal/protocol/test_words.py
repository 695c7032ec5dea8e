"""Thumbprints in words."""

import hashlib

import pytest

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import b64url
from peerseal.protocol.words import EVEN, ODD, words_of

# The example of the list's page in Wikipedia: a fingerprint of 20 bytes.
_EXAMPLE = bytes.fromhex("E58294F2E9A227486E8B061B31CC528FD7FA3F19")
_DIGEST = "e9b7b0052233a74aa56724ed3f79c272036aed68d8f4c0856e833c8043b9ac62"
"""Of both columns, which independent copies of the list agree on."""
_SPOKEN = (
    "topmost Istanbul Pluto vagabond treadmill Pacific brackish dictator goldfish Medusa "
    "afflict bravado chatter revolver Dupont midsummer stopwatch whimsical cowbell bottomless"
)


@pytest.mark.parametrize("words", [EVEN, ODD], ids=["even", "odd"])
def test_each_column_has_a_word_of_its_own_for_each_value_of_a_byte(words: tuple[str, ...]) -> None:
    assert len(words) == 256
    assert len({word.casefold() for word in words}) == 256
    assert all(word.isascii() and word.isalpha() for word in words)


def test_no_word_is_in_both_columns() -> None:
    assert not {word.casefold() for word in EVEN} & {word.casefold() for word in ODD}


def test_the_words_are_those_of_the_published_example() -> None:
    assert " ".join(words_of(b64url(_EXAMPLE))) == _SPOKEN


def test_the_list_is_the_published_one_word_for_word() -> None:
    text = "\n".join((*EVEN, *ODD))
    assert hashlib.sha256(text.encode()).hexdigest() == _DIGEST


def test_a_thumbprint_has_32_words_and_each_bit_of_it_counts() -> None:
    first, second = bytes(32), bytes(31) + b"\x01"
    assert len(words_of(b64url(first))) == 32
    assert words_of(b64url(first))[:-1] == words_of(b64url(second))[:-1]
    assert words_of(b64url(first))[-1] != words_of(b64url(second))[-1]


def test_text_that_is_no_base64url_has_no_words() -> None:
    with pytest.raises(MalformedToken):
        words_of("not base64url!")
