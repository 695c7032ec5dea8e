"""Signed answers about services and keys, from memory as long as nothing changed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection

from peerseal.protocol.documents import DOCUMENT_LIFETIME
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.names import check_service, make_kid
from registry.domain import publication
from registry.domain.errors import Behind, NotFound, StorageUnavailable
from registry.domain.keys import KeyRecord
from registry.domain.publication import Frame
from registry.services.authority import Authority, AuthoritySource
from registry.services.rendered import JWK_SET, JWT, Rendered, RenderedCache
from registry.settings import Limits
from registry.storage import keys, services
from registry.storage.ledger import head
from registry.storage.revisions import Revisions
from registry.storage.unit import Store

Kind = Literal["jwks.jwt", "jwks.json", "statement"]
Slot = tuple[Kind, str, str]


@dataclass(frozen=True, slots=True)
class _View:
    """What an answer is made from, all of it as of one moment."""

    frame: Frame
    records: list[KeyRecord]


class Publisher:
    """Makes and keeps the answers about one service: its signed JWK Set, the plain one, its key statements.

    An answer is served from memory while the service has not changed on any node and it is younger than
    ``resign_after``. With the database down, what is in memory is served until it expires: its signed time says how
    old it is.
    """

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
        self._cache: RenderedCache[Slot] = RenderedCache(limits.documents_cached)

    def signed_key_set(self, service: str, at_least: int = 0) -> Rendered:
        """The signed JWK Set as of entry ``at_least`` or later.

        Raises InvalidName, NotFound for a service that never had a key, Behind where the ledger does not reach that
        far, StorageUnavailable.
        """
        return self._answer(("jwks.jwt", service, ""), at_least, self._make_signed_set)

    def plain_key_set(self, service: str, at_least: int = 0) -> Rendered:
        """The current keys as a plain JWK Set. Raises as signed_key_set does."""
        return self._answer(("jwks.json", service, ""), at_least, self._make_plain_set)

    def statement(self, service: str, thumbprint: str, at_least: int = 0) -> Rendered:
        """The key statement about one key. Raises as signed_key_set does, and NotFound for an unknown key."""
        return self._answer(("statement", service, thumbprint), at_least, self._make_statement)

    def new_statement(self, record: KeyRecord) -> Rendered:
        """The key statement about a key as of the entry that admitted it, when nothing else had changed yet."""
        authority, now, seq = self._authority.current(), int(self._clock()), record.admitted_seq
        frame = Frame(authority.domain, record.service, now, now + DOCUMENT_LIFETIME, seq, seq)
        return _signed(authority.sign(publication.statement(frame, record)), frame)

    def _answer(self, slot: Slot, at_least: int, make: Callable[[Slot, int], Rendered]) -> Rendered:
        kept, now = self._cache.get(slot), self._clock()
        if kept is None:
            check_service(slot[1])
        try:
            seq = self._revisions.service(slot[1])
            if at_least and (kept is None or at_least > kept.head) and self._revisions.head() < at_least:
                raise Behind(f"entry {at_least} is not here")
        except StorageUnavailable:
            if kept is not None and kept.head >= at_least and now < kept.expires_at:
                return kept
            raise
        if seq is None:
            raise NotFound("service_not_found")
        if (
            kept is not None
            and kept.seq == seq
            and kept.head >= at_least
            and 0 <= now - kept.issued_at < self._limits.resign_after
        ):
            return kept
        return self._cache.put(slot, make(slot, int(now)))

    def _make_signed_set(self, slot: Slot, now: int) -> Rendered:
        authority, view = self._view(slot[1], now, self._listed)
        return _signed(authority.sign(publication.key_set(view.frame, view.records)), view.frame)

    def _make_plain_set(self, slot: Slot, now: int) -> Rendered:
        _, view = self._view(slot[1], now, self._listed)
        body = canonical_json(publication.plain_key_set(view.frame, view.records))
        return _rendered(body, JWK_SET, view.frame)

    def _make_statement(self, slot: Slot, now: int) -> Rendered:
        _, service, thumbprint = slot
        authority, view = self._view(service, now, lambda connection, _, __: _found(connection, service, thumbprint))
        return _signed(authority.sign(publication.statement(view.frame, view.records[0])), view.frame)

    def _listed(self, connection: Connection, service: str, now: int) -> list[KeyRecord]:
        return keys.listed(connection, service, now - self._limits.retired_shown, now)

    def _view(
        self, service: str, now: int, read: Callable[[Connection, str, int], list[KeyRecord]]
    ) -> tuple[Authority, _View]:
        authority = self._authority.current()
        with self._store.read() as connection:
            seq = services.seq_of(connection, service)
            if seq is None:
                raise NotFound("service_not_found")
            frame = Frame(authority.domain, service, now, now + DOCUMENT_LIFETIME, seq, head(connection))
            return authority, _View(frame, read(connection, service, now))


def _found(connection: Connection, service: str, thumbprint: str) -> list[KeyRecord]:
    record = keys.find(connection, thumbprint)
    if record is None or record.service != service:
        raise NotFound("key_not_found")
    return [record]


def _signed(jws: str, frame: Frame) -> Rendered:
    return _rendered(jws.encode("ascii"), JWT, frame)


def _rendered(body: bytes, content_type: str, frame: Frame) -> Rendered:
    return Rendered.of(body, content_type, frame.seq, frame.head, frame.issued_at, frame.expires_at)


def registry_jwks(authority: Authority) -> bytes:
    """The registry's own signing keys as a plain JWK Set: not the services', because a stock library that tries every
    key of a set would let any service speak for any other."""
    signing = authority.keys.signing_keys
    jwks = [{**key.jwk, "kid": make_kid(authority.id, key.thumbprint), "alg": key.alg, "use": "sig"} for key in signing]
    return canonical_json({"keys": jwks})
