"""What nobody needs any more goes: applicants that waited in vain, and tokens long past.

Entries stay for ever, and keys with them: the ledger is what may grow. Everything else is bounded by what is in use.
"""

import logging
import time
from collections.abc import Callable

from registry.domain.errors import StorageUnavailable
from registry.settings import Limits
from registry.storage.queries import applicants, join_tokens, operator_tokens, used_tokens
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
        """Removes what is past, and says how many rows of each kind that were. Raises StorageUnavailable."""
        now = int(self._clock())
        spent = now - self._limits.spent_kept
        with self._store.write() as connection:
            return {
                "applicants": applicants.remove_past(connection, now),
                "join_tokens": join_tokens.remove_past(connection, spent),
                "operator_tokens": operator_tokens.remove_past(connection, spent),
                "used_tokens": used_tokens.remove_past(connection, now),
            }

    def now_and_then(self) -> None:
        """The same, once in a while, after a change that succeeded: what fails here is none of its business."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + EVERY
        try:
            log.info("tidied up: %s", self.tidy())
        except StorageUnavailable as error:
            log.warning("could not tidy up: %s", error)
