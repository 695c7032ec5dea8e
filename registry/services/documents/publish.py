"""Signed answers about services and keys, from memory as long as nothing changed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection

from peerseal.protocol.documents.signed_documents import DOCUMENT_LIFETIME
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.ledger.entries import Admission
from peerseal.protocol.names import make_kid
from registry.domain import publication
from registry.domain.errors import LedgerContradicted, NotFound
from registry.domain.keys import KeyRecord
from registry.domain.publication import Frame, ProvenKey
from registry.domain.rebuild import keys_of
from registry.services.authority.authority import Authority, AuthoritySource
from registry.services.documents.answer_cache import JWK_SET, JWT, AnswerCache, PublicAnswer
from registry.services.documents.ledger import LedgerView
from registry.settings import Limits
from registry.storage.queries import keys, ledger, services
from registry.storage.queries.ledger import Appended
from registry.storage.revisions import Revisions
from registry.storage.unit import Store

Kind = Literal["jwks.jwt", "jwks.json", "statement"]
AnswerName = tuple[Kind, str, str]


@dataclass(frozen=True, slots=True)
class _View:
    """What an answer is made from, all of it as of one moment."""

    frame: Frame
    keys: list[ProvenKey]


class Publisher:
    """Makes and keeps the answers about one service: its signed JWK Set, the plain one, its key statements. They are
    served from memory as `registry.services.documents.answer_cache` says."""

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
        self._limits = limits
        self._clock = clock
        self._answers: AnswerCache[AnswerName] = AnswerCache(revisions, authority, limits, clock)

    def signed_key_set(self, service: str, at_least: int = 0) -> PublicAnswer:
        """The signed JWK Set as of entry ``at_least`` or later.

        Raises InvalidName, NotFound for a service that never had a key, Behind where the ledger does not reach that
        far, StorageUnavailable.
        """
        return self._answers.answer(("jwks.jwt", service, ""), at_least, self._make_signed_set)

    def plain_key_set(self, service: str, at_least: int = 0) -> PublicAnswer:
        """The current keys as a plain JWK Set. Raises as signed_key_set does."""
        return self._answers.answer(("jwks.json", service, ""), at_least, self._make_plain_set)

    def statement(self, service: str, thumbprint: str, at_least: int = 0) -> PublicAnswer:
        """The key statement about one key. Raises as signed_key_set does, and NotFound for an unknown key."""
        return self._answers.answer(("statement", service, thumbprint), at_least, self._make_statement)

    def new_statement(self, record: KeyRecord, appended: Appended) -> PublicAnswer:
        """The key statement about a key as of the entry that admitted it, when nothing else had changed yet. What was
        appended is all that it needs."""
        authority, now, seq = self._authority.current(), int(self._clock()), record.admitted_seq
        checkpoint = authority.checkpoint(appended.after)
        frame = Frame(authority.domain, record.service, now, now + DOCUMENT_LIFETIME, seq, seq, checkpoint)
        key = ProvenKey(record, Admission.of(appended.entry), appended.before.proof_of_next)
        return _signed(authority.sign(publication.statement(frame, key)), frame)

    def _make_signed_set(self, name: AnswerName, now: int) -> PublicAnswer:
        authority, view = self._view(name[1], now, self._listed)
        return _signed(authority.sign(publication.key_set(view.frame, view.keys)), view.frame)

    def _make_plain_set(self, name: AnswerName, now: int) -> PublicAnswer:
        _, view = self._view(name[1], now, self._listed)
        body = canonical_json(publication.plain_key_set(view.frame, view.keys))
        return _rendered(body, JWK_SET, view.frame)

    def _make_statement(self, name: AnswerName, now: int) -> PublicAnswer:
        _, service, thumbprint = name
        authority, view = self._view(service, now, lambda connection, _, __: _found(connection, service, thumbprint))
        return _signed(authority.sign(publication.statement(view.frame, view.keys[0])), view.frame)

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
            edge = ledger.frontier(connection)
            place = seq, edge.size, authority.checkpoint(edge)
            frame = Frame(authority.domain, service, now, now + DOCUMENT_LIFETIME, *place)
            records = read(connection, service, now)
            return authority, _View(frame, self._proven(connection, service, records, edge.size))

    def _proven(self, connection: Connection, service: str, records: list[KeyRecord], size: int) -> list[ProvenKey]:
        """The records with their inclusion proofs. Raises LedgerContradicted where a record says other than the
        entries do: an altered row gets no signature."""
        admitted = ledger.read_some(connection, [record.admitted_seq for record in records])
        kids = {entry.kid for entry in admitted}
        ended = [entry for entry in ledger.endings(connection, service) if entry.kid in kids]
        if keys_of([*admitted, *ended]) != {record.thumbprint: record for record in records}:
            raise LedgerContradicted(f"the keys of {service} are not what the ledger says")
        entries = {entry.seq: entry for entry in admitted}
        proofs = self._ledger.proofs(connection, [record.index for record in records], size)
        return [
            ProvenKey(record, Admission.of(entries[record.admitted_seq]), proof)
            for record, proof in zip(records, proofs, strict=True)
        ]


def _found(connection: Connection, service: str, thumbprint: str) -> list[KeyRecord]:
    record = keys.find(connection, thumbprint)
    if record is None or record.service != service:
        raise NotFound("key_not_found")
    return [record]


def _signed(jws: str, frame: Frame) -> PublicAnswer:
    return _rendered(jws.encode("ascii"), JWT, frame)


def _rendered(body: bytes, content_type: str, frame: Frame) -> PublicAnswer:
    return PublicAnswer.of(body, content_type, frame.seq, frame.head, frame.issued_at, frame.expires_at)


def registry_jwks(authority: Authority) -> bytes:
    """The registry's own signing keys as a plain JWK Set: not the services', because a stock library that tries every
    key of a set would let any service speak for any other."""
    signing = authority.keys.signing_keys
    jwks = [{**key.jwk, "kid": make_kid(authority.id, key.thumbprint), "alg": key.alg, "use": "sig"} for key in signing]
    return canonical_json({"keys": jwks})
