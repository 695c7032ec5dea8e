"""The signed answer to "what changed since?" (SPEC section 5)."""

import time
from collections.abc import Callable

from peerseal.protocol.documents import CHANGES_LIFETIME, Changes
from peerseal.protocol.names import service_id
from registry.services.authority import AuthoritySource
from registry.services.rendered import JWT, Rendered, RenderedCache
from registry.settings import Limits
from registry.storage import ledger, services
from registry.storage.revisions import Revisions
from registry.storage.unit import Store

_KEPT = 256
"""Lists in memory: watchers that keep up all ask for the same one."""


class ChangesFeed:
    """Makes and keeps the lists of changed services."""

    def __init__(
        self,
        store: Store,
        revisions: Revisions,
        authority: AuthoritySource,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._revisions = revisions
        self._authority = authority
        self._limits = limits
        self._clock = clock
        self._cache: RenderedCache[int] = RenderedCache(_KEPT)
        authority.when_changed(self._cache.clear)

    def since(self, seq: int) -> Rendered:
        """The services that an entry behind ``seq`` changed; ``reset`` where they are too many to list, or where the
        ledger has not so many entries. Raises StorageUnavailable."""
        kept, now = self._cache.get(seq), self._clock()
        fresh = kept is not None and 0 <= now - kept.issued_at < self._limits.changes_resign_after
        if kept is not None and fresh and kept.head == self._revisions.head():
            return kept
        authority, issued_at = self._authority.current(), int(now)
        with self._store.read() as connection:
            edge = ledger.frontier(connection)
            newest = edge.size
            names = services.changed_since(connection, seq, self._limits.changes_listed + 1) if seq < newest else []
        reset = seq > newest or len(names) > self._limits.changes_listed
        ids = () if reset else tuple(service_id(authority.domain, name) for name in names)
        expires_at = issued_at + CHANGES_LIFETIME
        frame, checkpoint = (authority.id, authority.domain, issued_at, expires_at), authority.checkpoint(edge)
        changes = Changes(*frame, seq, newest, checkpoint, ids, reset)
        body = authority.sign(changes).encode("ascii")
        return self._cache.put(seq, Rendered.of(body, JWT, newest, newest, issued_at, expires_at))
