"""Removes rows that are no longer needed: expired applicants and tokens.

Entries and keys stay for ever: only the ledger grows without bound. All other tables are bounded by what is in use.
"""

import logging
import time
from collections.abc import Callable

from registry.domain.errors import StorageUnavailable
from registry.limits import Limits
from registry.storage.queries import applicants, console_sessions, used_tokens
from registry.storage.queries.tokens import JOIN_TOKENS, OPERATOR_TOKENS
from registry.storage.unit import Store

log = logging.getLogger(__name__)

EVERY = 3600
"""Seconds between two rounds of one process."""


class Housekeeping:
    """Tidies the tables up."""

    def __init__(self, store: Store, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock
        self._next = 0.0

    def tidy(self) -> dict[str, int]:
        """Removes expired rows, and returns their number by table. Raises StorageUnavailable."""
        now = int(self._clock())
        spent = now - self._limits.spent_kept
        with self._store.write() as connection:
            removed = {
                "applicants": applicants.remove_past(connection, now),
                "join_tokens": JOIN_TOKENS.remove_past(connection, spent),
                "operator_tokens": OPERATOR_TOKENS.remove_past(connection, spent),
                "used_tokens": used_tokens.remove_past(connection, now),
            }
        with self._store.write() as connection:  # apart: roles that were granted before 0007 have no right to it
            return {**removed, "console_sessions": console_sessions.remove_past(connection, now)}

    def now_and_then(self) -> None:
        """Tidies up if the last round was an hour ago. It runs after a change that succeeded: a failure here is only
        logged."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + EVERY
        try:
            log.info("tidied up: %s", self.tidy())
        except StorageUnavailable as error:
            log.warning("could not tidy up: %s", error)
