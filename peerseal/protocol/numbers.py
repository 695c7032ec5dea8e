"""Natural numbers and dates as texts from outside: strict, and no longer than agreed.

``int`` takes white space, signs, underscores and other scripts' digits, and raises for more than 4,300 digits; dates
of far years raise what their library happens to raise.
"""

from email.utils import mktime_tz, parsedate_tz

LONGEST_DATE = 64
"""Characters of a date as HTTP writes it (RFC 9110 section 5.6.7), at most: the usual form has 29."""


def natural(text: str | bytes, digits: int = 18) -> int | None:
    """The number that a text of one to ``digits`` ASCII digits says; None for any other text. What has 18 digits fits
    into the integers of every database."""
    if not (0 < len(text) <= digits and text.isascii() and text.isdigit()):
        return None
    return int(text)


def retry_after(text: str, now: float) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110 section 10.2.3), none for a date that is over; None for
    a text that is neither seconds nor a date."""
    text = text.strip(" \t")
    seconds = natural(text)
    if seconds is not None:
        return float(seconds)
    try:
        parsed = parsedate_tz(text) if len(text) <= LONGEST_DATE else None
        return None if parsed is None else max(0.0, mktime_tz(parsed) - now)
    except (ValueError, OverflowError, IndexError):  # years, hours and zones without end
        return None
