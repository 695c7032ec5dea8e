"""The one reader of bearer tokens in an Authorization header."""

import pytest

from peerseal.errors import MalformedToken, MissingToken
from peerseal.protocol.tokens.bearer import bearer_token


@pytest.mark.parametrize("header", ["Bearer a.b.c", "bearer a.b.c", " \tBEARER   a.b.c\t "])
def test_the_token_is_read_whatever_the_case_of_the_scheme_and_the_blanks_around(header: str) -> None:
    assert bearer_token(header) == "a.b.c"


@pytest.mark.parametrize("header", [None, "", " ", b"Bearer a", 7, "Basic YTpi", "Bearers a", "Token a.b.c"])
def test_no_header_and_another_scheme_are_a_missing_token(header: object) -> None:
    with pytest.raises(MissingToken):
        bearer_token(header)


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer a b",
        "Bearer a, Bearer b",
        "Bearer a,",
        "Basic a, Bearer b",
        "Bearer é",
        "Bearer =a",
    ],
)
def test_two_tokens_and_what_is_none_are_malformed(header: str) -> None:
    with pytest.raises(MalformedToken):
        bearer_token(header)
