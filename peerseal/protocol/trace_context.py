"""The header ``traceparent`` of W3C Trace Context (section 3.2): the trace that a request belongs to.

Any client chooses it: it connects spans and log lines, and proves nothing.
"""

import re
from typing import Final, NamedTuple

TRACEPARENT: Final = "traceparent"
"""The header of requests and messages, in lower case."""

_FORM = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]{0,256})?")


class TraceParent(NamedTuple):
    """The ids of a trace and of the span that made the request, in 32 and 16 hexadecimal digits."""

    trace_id: str
    span_id: str


def parse_traceparent(text: str | None) -> TraceParent | None:
    """The ids in the header's value; None for a missing or malformed one. A later version may have more members."""
    found = _FORM.fullmatch(text) if type(text) is str else None
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    return TraceParent(found[2], found[3])
