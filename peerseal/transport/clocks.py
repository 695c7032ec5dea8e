"""How far this host's clock is from the clock of a server, by the ``Date`` of an answer (RFC 9110 section 6.6.1)."""

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from peerseal.errors import DocumentRefused
from peerseal.protocol.tokens.claims import LEEWAY
from peerseal.runtime.settings import whole_number
from peerseal.transport.fetch import Answer

MOST_OFFSET: Final = LEEWAY
"""Seconds by which two clocks may differ: tokens and documents that are further in the future are refused."""
_ABOUT_TIME: Final = ("document_from_future", "document_expired")


def clock_offset(answer: Answer, now: float) -> float | None:
    """Seconds by which the clock that says ``now`` is ahead of the server's; negative where the server's is ahead, None
    where the answer has no ``Date`` that can be read. The time that the answer took is part of it; the ``Age`` that a
    cache tells (RFC 9111 section 5.1) is not."""
    try:
        sent = parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        return None
    age = whole_number(answer.headers.get("age", "")) or 0
    return now - (sent if sent.tzinfo else sent.replace(tzinfo=UTC)).timestamp() - age


def offset_in_words(offset: float) -> str:
    """Says the difference in words, such as ``this host's clock is 121 s behind the registry's``."""
    seconds = round(abs(offset))
    if not seconds:
        return "this host's clock agrees with the registry's"
    return f"this host's clock is {seconds} s {'ahead of' if offset > 0 else 'behind'} the registry's"


def difference_in_words(offset: float | None) -> str | None:
    """The offset and what to do, where it is more than `MOST_OFFSET`; else None."""
    if offset is None or abs(offset) <= MOST_OFFSET:
        return None
    return f"{offset_in_words(offset)}: synchronise both (NTP)"


def with_clocks(error: DocumentRefused, answer: Answer, now: float) -> DocumentRefused:
    """The refusal of a document in ``answer``, with the difference of the clocks where its time is what is refused."""
    words = difference_in_words(clock_offset(answer, now)) if error.code in _ABOUT_TIME else None
    return error if words is None else DocumentRefused(error.code, f"{error.detail}; {words}")
