"""Times for people, in UTC, and distances in time."""

from datetime import UTC, datetime

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def utc(seconds: float) -> str:
    """A time, in seconds since the epoch, such as ``2026-11-29 12:03:32Z``. Raises as `rfc3339`."""
    return rfc3339(seconds).replace("T", " ")


def rfc3339(seconds: float) -> str:
    """The same in one word, for tables and programs: ``2026-11-29T12:03:32Z``. Raises ValueError, OverflowError or
    OSError for a time that no calendar has."""
    return f"{datetime.fromtimestamp(int(seconds), UTC).isoformat()[:19]}Z"


def in_words(seconds: float) -> str:
    """A distance in time from now: ``in 57 seconds``, ``3 minutes ago``, ``now``. It is rounded down to one unit."""
    distance = abs(int(seconds))
    for size, unit in _UNITS:
        count = distance // size
        if count:
            words = f"{count} {unit}{'' if count == 1 else 's'}"
            return f"in {words}" if seconds > 0 else f"{words} ago"
    return "now"
