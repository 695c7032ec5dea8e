"""Policies and the domain's settings, signed for everybody."""

import time
from collections.abc import Callable
from typing import Literal

from sqlalchemy import Connection

from peerseal.errors import DocumentRefused
from peerseal.protocol.documents.signed_documents import DOCUMENT_LIFETIME, DomainDocument, PolicyDocument
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.ledger.merkle import check_inclusion
from peerseal.protocol.names import REGISTRY
from registry.domain.errors import LedgerContradicted
from registry.domain.policy import readers_of
from registry.domain.publication import Frame
from registry.services.authority.authority import AuthoritySource
from registry.services.documents.answer_cache import JWT, AnswerCache, PublicAnswer
from registry.services.documents.ledger import LedgerView
from registry.services.documents.policies import read_policy, read_settings
from registry.settings import Limits
from registry.storage.queries import ledger, services
from registry.storage.revisions import Revisions
from registry.storage.unit import Store

Kind = Literal["policy.jwt", "domain.jwt"]
AnswerName = tuple[Kind, str]


class SettingDocuments:
    """Makes and keeps the signed documents: policies, and the domain's settings. They are served from memory as
    `registry.services.documents.answer_cache` says, and there is one for every service: an answer that says there is
    none could be a mirror's."""

    def __init__(
        self,
        store: Store,
        revisions: Revisions,
        authority: AuthoritySource,
        ledger: LedgerView,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._authority = authority
        self._ledger = ledger
        self._answers: AnswerCache[AnswerName] = AnswerCache(revisions, authority, limits, clock)

    def policy(self, service: str, at_least: int = 0) -> PublicAnswer:
        """The policy document of a service as of entry ``at_least`` or later. Raises InvalidName, Behind,
        LedgerContradicted, StorageUnavailable."""
        return self._answers.answer(("policy.jwt", service), at_least, self._make_policy, of_unknown=True)

    def domain(self, at_least: int = 0) -> PublicAnswer:
        """The domain document. Raises as `policy` does."""
        return self._answers.answer(("domain.jwt", REGISTRY), at_least, self._make_domain, of_unknown=True)

    def _make_policy(self, name: AnswerName, now: int) -> PublicAnswer:
        authority, service = self._authority.current(), name[1]
        with self._store.read() as connection:
            changed, read = services.seq_of(connection, service) or 0, read_policy(connection, service)
            frame = self._frame(connection, service, now, changed, read.entry)
        policy = read.setting.value
        document = PolicyDocument(*frame.members(), policy)
        return _rendered(authority.sign(document), frame, changed, readers_of(policy, frame.owner))

    def _make_domain(self, name: AnswerName, now: int) -> PublicAnswer:
        authority = self._authority.current()
        with self._store.read() as connection:
            changed, read = services.seq_of(connection, REGISTRY) or 0, read_settings(connection)
            frame = self._frame(connection, REGISTRY, now, read.setting.seq, read.entry)
        document = DomainDocument(
            issuer=authority.id,
            subject=authority.domain,
            issued_at=frame.issued_at,
            expires_at=frame.expires_at,
            seq=frame.seq,
            head=frame.head,
            checkpoint=frame.checkpoint,
            settings=read.setting.value,
        )
        return _rendered(authority.sign(document), frame, changed)

    def _frame(self, connection: Connection, service: str, now: int, seq: int, entry: Entry | None) -> Frame:
        """With the ledger's head, whose tree must hold the entry that the answer rests on. Raises
        LedgerContradicted."""
        authority, edge = self._authority.current(), ledger.frontier(connection)
        if entry is not None:
            [proof] = self._ledger.proofs(connection, [entry.index], edge.size)
            try:
                check_inclusion(entry.leaf, entry.index, edge.size, proof, edge.root)
            except DocumentRefused as error:
                raise LedgerContradicted(f"entry {entry.seq} is not the one in the tree") from error
        place = seq, edge.size, authority.checkpoint(edge)
        return Frame(authority.domain, service, now, now + DOCUMENT_LIFETIME, *place)


def _rendered(jws: str, frame: Frame, changed: int, readers: frozenset[str] | None = None) -> PublicAnswer:
    """``changed`` is the entry that last changed the service which the answer is kept for."""
    return PublicAnswer.of(jws.encode("ascii"), JWT, changed, frame.head, frame.issued_at, frame.expires_at, readers)
