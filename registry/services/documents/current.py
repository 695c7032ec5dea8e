"""The signed answer to "what has not changed since?", block by block of the ledger (docs/protocol.md)."""

from operator import attrgetter

from peerseal.protocol.documents.current import BLOCK, CurrentServices, block_of
from peerseal.protocol.documents.frame import DOCUMENT_LIFETIME
from peerseal.protocol.names import service_id
from registry.domain.errors import LedgerForked, NotFound, StorageUnavailable
from registry.services.bounded_cache import BoundedCache
from registry.services.documents.answer_cache import JWT, PublicAnswer
from registry.services.use_case import Node, UseCase
from registry.storage.queries import ledger, services


class CurrentLists(UseCase):
    """Makes and keeps the lists. A list in memory answers for ``current_resign_after`` seconds, whatever changed
    meanwhile: its signed time says as of when it is true. While the database is down it answers until it expires."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._cache: BoundedCache[int, PublicAnswer] = BoundedCache(node.limits.changes_cached, attrgetter("size"))
        node.authority.when_changed(self._cache.clear)

    @property
    def held(self) -> int:
        """Bytes of the lists in memory."""
        return self._cache.held

    def block(self, number: int) -> PublicAnswer:
        """The services that the entries of that block changed last. Raises NotFound for a block after the newest entry,
        StorageUnavailable, LedgerForked."""
        kept, now = self._cache.get(number), self._clock()
        try:
            self._authority.require_sound()
            if kept is not None and 0 <= now - kept.issued_at < self._limits.current_resign_after:
                return kept
            return self._cache.put(number, self._make(number))
        except (StorageUnavailable, LedgerForked):
            if kept is not None and now < kept.expires_at:
                return kept
            raise

    def _make(self, number: int) -> PublicAnswer:
        authority, issued_at = self._authority.current(), self._now()  # not later than the reads
        with self._store.read() as connection:
            edge = ledger.frontier(connection)
            if number > max(0, block_of(edge.size)):
                raise NotFound("block_not_found")
            found = services.last_changed_in(connection, number * BLOCK + 1, (number + 1) * BLOCK)
        document = CurrentServices(
            issuer=authority.id,
            subject=authority.domain,
            issued_at=issued_at,
            expires_at=issued_at + DOCUMENT_LIFETIME,
            block=number,
            seq=edge.size,
            checkpoint=authority.checkpoint(edge),
            services={service_id(authority.domain, service.name): service.seq for service in found},
        )
        body = authority.sign(document).encode("ascii")
        return PublicAnswer.of(body, JWT, edge.size, edge.size, issued_at, document.expires_at)
