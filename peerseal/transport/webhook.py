"""Posts alerts to a URL: of ``peerseal monitor``, and of a service that found a split view."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from peerseal.errors import ConfigurationError, FetchError
from peerseal.protocol.encoding import canonical_json
from peerseal.runtime.limits import FetchLimits
from peerseal.transport.fetch import Fetcher, HttpFetcher

log = logging.getLogger("peerseal.webhook")

PAUSES = (0.5, 2.0)
"""Seconds before the second and the third attempt to post an alert. The next alert waits for them."""
WEBHOOK_LIMITS = FetchLimits(connect_timeout=2.0, read_timeout=3.0, total_timeout=5.0, max_bytes=64 * 1024)
"""Of the calls to a webhook."""


class Webhook:
    """A URL that takes alerts, as JSON by POST, with three attempts each."""

    def __init__(
        self, url: str, *, fetcher: Fetcher | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Raises ConfigurationError for an invalid URL."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigurationError("a webhook's URL that cannot be read") from error
        if parts.fragment:
            raise ConfigurationError("a webhook's URL has no fragment")
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._fetcher = fetcher or HttpFetcher([f"{parts.scheme}://{parts.netloc}"], WEBHOOK_LIMITS)
        self._sleep = sleep

    def post(self, members: Mapping[str, Any]) -> bool:
        """Whether the receiver accepted the alert (any 2xx). The log of a failure omits the URL, which may be a
        secret."""
        body, headers = canonical_json(dict(members)), {"Content-Type": "application/json"}
        status: int | None = None
        for pause in (*PAUSES, None):
            try:
                status = self._fetcher.call("POST", self._target, body=body, headers=headers).status
            except FetchError as error:
                status = error.http_status
            if status is not None and 200 <= status < 300:
                return True
            if pause is not None:
                self._sleep(pause)
        log.error("the webhook did not take %s: status %s", members.get("event"), status)
        return False
