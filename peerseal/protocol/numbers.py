"""Natural numbers in texts that come from outside.

`int` takes blanks, signs, underscores and digits of every script, raises ValueError for more than 4,300 of them, and
gives numbers that no clock, file or database can hold.
"""

from typing import Final

MAX_DIGITS: Final = 18
"""Digits of the longest number: with these it fits into 64 bits."""


def natural(text: str, digits: int = MAX_DIGITS) -> int | None:
    """The natural number that stands in the text, in ASCII digits without zeros before them, ``digits`` at most; None
    for any other text."""
    if not (len(text) <= digits and text.isascii() and text.isdigit()):
        return None
    return None if len(text) > 1 and text.startswith("0") else int(text)
