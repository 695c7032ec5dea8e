"""A bounded load on loopback: so many calls, so many at a time, each answer kept."""

import http.client
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit


def get(url: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of one GET on a connection of its own."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.request("GET", parts.path, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def at_a_time(width: int, times: int, call: Callable[[], object]) -> Counter[object]:
    """What ``times`` calls gave, ``width`` of them under way at any moment."""
    with ThreadPoolExecutor(width) as pool:
        return Counter(future.result() for future in [pool.submit(call) for _ in range(times)])
