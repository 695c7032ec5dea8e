"""Times for people."""

import pytest

from peerseal.runtime.times import rfc3339, utc


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01 00:00:00Z"),
        (1_795_953_812.9, "2026-11-29 12:03:32Z"),
        (-62_135_596_800, "0001-01-01 00:00:00Z"),
        (253_402_300_799, "9999-12-31 23:59:59Z"),
    ],
)
def test_a_time_is_shown_in_utc_to_the_second(seconds: float, text: str) -> None:
    assert utc(seconds) == text
    assert rfc3339(seconds) == text.replace(" ", "T")


@pytest.mark.parametrize("seconds", [253_402_300_800, 10**17, -(10**17), float("nan"), float("inf")])
def test_a_time_that_no_calendar_has_is_refused(seconds: float) -> None:
    with pytest.raises((ValueError, OverflowError, OSError)):
        utc(seconds)
