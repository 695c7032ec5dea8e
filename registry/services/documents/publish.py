"""Answers about services and keys, policies, the domain's settings and the federation: signed documents, and a plain
JWK Set and PEM, which are not signed. They are served from memory as long as
`registry.services.documents.answer_cache` allows."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal, NamedTuple

from sqlalchemy import Connection

from peerseal.errors import DocumentRefused
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.federation import FederationDocument, FederationEntry
from peerseal.protocol.documents.frame import DOCUMENT_LIFETIME
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.ledger.entries import Admission, Entry
from peerseal.protocol.ledger.merkle import Frontier, Proof, check_inclusion
from peerseal.protocol.names import REGISTRY, make_kid, service_id
from registry.domain import publication
from registry.domain.errors import LedgerContradicted, NotFound
from registry.domain.keys import KeyRecord, KeyState
from registry.domain.policy import readers_of
from registry.domain.publication import AnswerFrame, ProvenKey
from registry.services.authority.authority import Authority
from registry.services.documents.answer_cache import JWK_SET, JWT, PEM, AnswerCache, AsOf, PublicAnswer
from registry.services.documents.federation import read_federation
from registry.services.documents.key_set_parts import (
    KeySetParts,
    PartNames,
    ReadNames,
    admissions,
    check_revoked,
    divided,
)
from registry.services.documents.policies import read_policy, read_settings
from registry.services.use_case import Node, UseCase
from registry.storage.queries import keys, ledger, services
from registry.storage.queries.ledger import Appended

Kind = Literal["jwks.jwt", "part", "jwks.json", "statement", "pem", "policy.jwt", "domain.jwt", "federation.jwt"]
AnswerName = tuple[Kind, str, str]
"""The kind of an answer, the service, and for an answer about one key its thumbprint, for a part its number."""

SETTING_KINDS = frozenset[Kind]({"policy.jwt", "domain.jwt", "federation.jwt"})
"""The kinds that `SettingDocuments` makes."""
_LASTING = frozenset[Kind]({"jwks.jwt", "part", "statement"}) | SETTING_KINDS
"""The signed kinds. The others have no end in them, so they must not outlast the end of a key."""
_IN_TURN = frozenset[Kind]({"jwks.jwt", "part", "jwks.json"})
"""The kinds that take long to make for a service with many keys."""


class _Documents(UseCase):
    """The base of both: the cache of answers, and the frame of the signed documents."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._ledger = node.ledger
        self._answers: AnswerCache[AnswerName] = AnswerCache(
            node.revisions, node.authority, node.limits, node.clock, lasting=_LASTING, in_turn=_IN_TURN
        )

    def kept(self, name: AnswerName, at_least: int = 0) -> PublicAnswer | None:
        """The answer with that name, if it is in memory and in force, and everyone may read it."""
        kept = self._answers.kept(name, at_least)
        return None if kept is None or kept.readers is not None else kept

    @property
    def held(self) -> int:
        """Bytes of the answers in memory."""
        return self._answers.held

    def _place(self, connection: Connection, service: str, changed: int, as_of: AsOf) -> tuple[int, Frontier]:
        """The signed time of an answer, and the right edge of the tree that it covers. Entry ``changed`` is the last
        that changed the service. Raises LedgerContradicted where it is missing."""
        if not as_of.lasting:
            return as_of.now, ledger.frontier(connection)
        entry = next(iter(ledger.read_some(connection, [changed])), None)
        if entry is None:
            raise LedgerContradicted(f"entry {changed}, which last changed {service}, is missing")
        signed_again = publication.period_start(service, as_of.now, self._limits.signing_period)
        return max(entry.time, signed_again), self._ledger.edge_at(connection, changed)

    @staticmethod
    def _frame(authority: Authority, service: str, issued_at: int, seq: int, edge: Frontier) -> AnswerFrame:
        position = seq, edge.size, authority.checkpoint(edge)
        return AnswerFrame(authority.domain, service, issued_at, issued_at + DOCUMENT_LIFETIME, *position)


class _Moment(NamedTuple):
    """What an answer about a service is as of: the entry that last changed the service, the signed time, and the right
    edge of the tree that the answer covers."""

    seq: int
    issued_at: int
    edge: Frontier


class Publisher(_Documents):
    """Makes and keeps the answers about one service: its signed JWK Set and the parts of a large one, the plain one,
    its key statements, and its active keys as PEM."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._parts = KeySetParts(node.limits.retired_shown)
        node.authority.when_changed(self._parts.forget)

    def signed_key_set(self, service: str, at_least: int = 0) -> PublicAnswer:
        """The signed JWK Set as of entry ``at_least`` or later.

        Raises InvalidName, NotFound for a service that never had a key, Lagging where the ledger is shorter than
        ``at_least``, StorageUnavailable.
        """
        return self._answers.answer(("jwks.jwt", service, ""), at_least, self._make_signed_set)

    def part(self, service: str, number: int, at_least: int = 0) -> PublicAnswer:
        """The part of the large set of a service with that number, from 0 to 63. Raises as signed_key_set does, and
        NotFound where the set is not large, or the part has no keys."""
        return self._answers.answer(("part", service, str(number)), at_least, self._make_part)

    def plain_key_set(self, service: str, at_least: int = 0) -> PublicAnswer:
        """The current keys as a plain JWK Set. Raises as signed_key_set does."""
        return self._answers.answer(("jwks.json", service, ""), at_least, self._make_plain_set)

    def statement(self, service: str, thumbprint: str, at_least: int = 0) -> PublicAnswer:
        """The key statement about one key. Raises as signed_key_set does, and NotFound for an unknown key."""
        return self._answers.answer(("statement", service, thumbprint), at_least, self._make_statement)

    def active_key(self, domain: str, service: str, thumbprint: str) -> PublicAnswer:
        """An active key as PEM (RFC 7468), for ASAP. Raises as signed_key_set does, and NotFound for any other key and
        for another trust domain."""
        if domain != self._authority.current().domain:
            raise NotFound("key_not_found")
        answer = self._answers.answer(("pem", service, thumbprint), 0, self._make_pem)
        if answer.expires_at <= self._now():
            raise NotFound("key_not_found")
        return answer

    def new_statement(self, record: KeyRecord, appended: Appended) -> PublicAnswer:
        """The key statement about a key as of the entry that admitted it. It needs nothing but the appended entry."""
        authority, seq = self._authority.current(), record.admitted_seq
        frame = self._frame(authority, record.service, appended.entry.time, seq, appended.after)
        key = ProvenKey(record, Admission.of(appended.entry), appended.before.proof_of_next)
        return _answer(authority.sign(publication.statement(frame, key)), frame, seq)

    def _make_signed_set(self, name: AnswerName, as_of: AsOf) -> PublicAnswer:
        return self._parts.reading(lambda read_names: self._signed_set(name, as_of, read_names))

    def _signed_set(self, name: AnswerName, as_of: AsOf, read_names: ReadNames) -> PublicAnswer:
        authority, service = self._authority.current(), name[1]
        with self._store.read() as connection:
            moment = self._moment(connection, service, as_of)
            parts = self._parts_of(connection, authority, service, moment, read_names)
            if parts is None:
                frame, records = self._frame_at(connection, authority, service, as_of, moment, self._listed)
                document = publication.key_set(frame, *self._divided(connection, frame, records))
                true_until = _next_end(frame, records)
            else:
                frame = self._frame(authority, service, moment.issued_at, moment.seq, moment.edge)
                document, true_until = publication.large_key_set(frame, parts), math.inf
        return _answer(authority.sign(document), frame, frame.seq, true_until=true_until)

    def _parts_of(
        self, connection: Connection, authority: Authority, service: str, moment: _Moment, read_names: ReadNames
    ) -> PartNames | None:
        """The parts of a large set; None where the set lists its keys itself."""
        shown = moment.issued_at - self._limits.retired_shown
        listed = keys.listed_range(connection, service, shown, moment.issued_at)
        if listed.number <= self._limits.keys_in_set:
            return None
        return read_names(connection, service_id(authority.domain, service), moment.seq, listed.first)

    def _make_part(self, name: AnswerName, as_of: AsOf) -> PublicAnswer:
        return self._parts.reading(lambda read_names: self._part(name, as_of, read_names))

    def _part(self, name: AnswerName, as_of: AsOf, read_names: ReadNames) -> PublicAnswer:
        """It is signed again where one of its own keys changed, and in the next signing period. The answer counts for
        the entry that last changed its service."""
        authority, service, number = self._authority.current(), name[1], int(name[2])
        with self._store.read() as connection:
            moment = self._moment(connection, service, as_of)
            parts = self._parts_of(connection, authority, service, moment, read_names)
            part = None if parts is None else parts[number]
            if part is None:
                raise NotFound("part_not_found")
            place = _Moment(part.seq, *self._place(connection, service, part.seq, as_of))
            made = as_of.outdated
            if made is None or not part.seq <= made.seq <= moment.seq or made.issued_at != place.issued_at:
                made = self._sign_part(connection, authority, service, number, place)
        return replace(made, seq=moment.seq, head=max(moment.seq, place.edge.size))

    def _sign_part(
        self, connection: Connection, authority: Authority, service: str, number: int, place: _Moment
    ) -> PublicAnswer:
        frame = self._frame(authority, service, place.issued_at, place.seq, place.edge)
        records = self._parts.records(connection, service, {number: place.seq})[number]
        document = publication.key_set_part(frame, number, *self._divided(connection, frame, records))
        return _answer(authority.sign(document), frame, place.seq)

    def _make_plain_set(self, name: AnswerName, as_of: AsOf) -> PublicAnswer:
        _, frame, proven = self._read(name[1], as_of, self._active)
        body = canonical_json(publication.plain_key_set(frame, proven))
        return PublicAnswer.of(body, JWK_SET, frame.seq, frame.head, frame.issued_at, frame.expires_at)

    def _make_statement(self, name: AnswerName, as_of: AsOf) -> PublicAnswer:
        authority, frame, key = self._read_one(name, as_of)
        signed = authority.sign(publication.statement(frame, key))
        return _answer(signed, frame, frame.seq, true_until=_next_end(frame, [key.record]))

    def _make_pem(self, name: AnswerName, as_of: AsOf) -> PublicAnswer:
        _, frame, key = self._read_one(name, as_of)
        if key.record.state(as_of.now) is not KeyState.ACTIVE:
            raise NotFound("key_not_found")
        body, until = key.record.public.pem().encode("ascii"), min(frame.expires_at, key.record.active_until)
        return PublicAnswer.of(body, PEM, frame.seq, frame.head, frame.issued_at, until)

    def _read_one(self, name: AnswerName, as_of: AsOf) -> tuple[Authority, AnswerFrame, ProvenKey]:
        """The frame of an answer, and the one key that it is about. Raises NotFound."""

        def find(connection: Connection, service: str, _now: int) -> list[KeyRecord]:
            return [keys.of_service(connection, service, name[2])]

        authority, frame, (key,) = self._read(name[1], as_of, find)
        return authority, frame, key

    def _listed(self, connection: Connection, service: str, now: int) -> list[KeyRecord]:
        return keys.listed(connection, service, now - self._limits.retired_shown, now)

    def _active(self, connection: Connection, service: str, now: int) -> list[KeyRecord]:
        return [key for key in self._listed(connection, service, now) if key.state(now) is KeyState.ACTIVE]

    def _read(
        self, service: str, as_of: AsOf, read: Callable[[Connection, str, int], list[KeyRecord]]
    ) -> tuple[Authority, AnswerFrame, list[ProvenKey]]:
        """The frame of an answer, and the keys that it is about, as of one moment."""
        authority = self._authority.current()
        with self._store.read() as connection:
            moment = self._moment(connection, service, as_of)
            frame, records = self._frame_at(connection, authority, service, as_of, moment, read)
            return authority, frame, self._proven(connection, service, records, frame.head)

    def _moment(self, connection: Connection, service: str, as_of: AsOf) -> _Moment:
        """Raises NotFound."""
        seq = services.seq_of(connection, service)
        if seq is None:
            raise NotFound("service_not_found")
        return _Moment(seq, *self._place(connection, service, seq, as_of))

    def _frame_at(
        self,
        connection: Connection,
        authority: Authority,
        service: str,
        as_of: AsOf,
        moment: _Moment,
        read: Callable[[Connection, str, int], list[KeyRecord]],
    ) -> tuple[AnswerFrame, list[KeyRecord]]:
        """The frame, and the keys."""
        issued_at = moment.issued_at
        records = read(connection, service, issued_at)
        ends = [record.active_until for record in records if issued_at < record.active_until <= as_of.now]
        if ends:  # a key has ended by itself: as of then the answer is another
            issued_at = max(ends)
            records = read(connection, service, issued_at)
        return self._frame(authority, service, issued_at, moment.seq, moment.edge), records

    def _divided(
        self, connection: Connection, frame: AnswerFrame, records: list[KeyRecord]
    ) -> tuple[list[ProvenKey], list[KeyRecord]]:
        """The keys that a set lists in full, with their proofs, and those that it lists as revoked, checked. Raises
        LedgerContradicted."""
        listed, revoked = divided(records)
        check_revoked(connection, frame.owner, revoked)
        return self._proven(connection, frame.service, listed, frame.head), revoked

    def _proven(self, connection: Connection, service: str, records: list[KeyRecord], size: int) -> list[ProvenKey]:
        """The records with their inclusion proofs. Raises LedgerContradicted."""
        entries = admissions(connection, service, records)
        proofs = self._ledger.proofs(connection, [record.index for record in records], size)
        return [
            ProvenKey(record, Admission.of(entries[record.admitted_seq]), proof)
            for record, proof in zip(records, proofs, strict=True)
        ]


class SettingDocuments(_Documents):
    """Makes and keeps the signed policies, domain settings and federation. Every service has a signed policy,
    also one without rules: an unsigned answer that there is none could be a mirror's."""

    def policy(self, service: str, at_least: int = 0) -> PublicAnswer:
        """The policy document of a service as of entry ``at_least`` or later. Raises InvalidName, Lagging,
        LedgerContradicted, StorageUnavailable."""
        return self._answers.answer(("policy.jwt", service, ""), at_least, self._make_policy, of_unknown=True)

    def domain(self, at_least: int = 0) -> PublicAnswer:
        """The domain document. Raises as `policy` does."""
        return self._answers.answer(("domain.jwt", REGISTRY, ""), at_least, self._make_domain, of_unknown=True)

    def federation(self, at_least: int = 0) -> PublicAnswer:
        """The federation document: also where no foreign domain is believed, for the same reason. Raises as `policy`
        does."""
        return self._answers.answer(("federation.jwt", REGISTRY, ""), at_least, self._make_federation, of_unknown=True)

    def _make_policy(self, name: AnswerName, as_of: AsOf) -> PublicAnswer:
        authority, service = self._authority.current(), name[1]
        with self._store.read() as connection:
            changed, read = services.seq_of(connection, service) or 0, read_policy(connection, service)
            issued_at, edge = self._place(connection, service, changed, as_of)
            frame = self._frame(authority, service, issued_at, changed, edge)
            self._check_in_tree(connection, read.entry, edge)
        policy = read.setting.value
        document = PolicyDocument(**frame.members(), policy=policy)
        return _answer(authority.sign(document), frame, changed, readers_of(policy, frame.owner))

    def _make_domain(self, name: AnswerName, as_of: AsOf) -> PublicAnswer:
        authority = self._authority.current()
        with self._store.read() as connection:
            read = read_settings(connection)
            frame, _ = self._frame_of_domain(connection, authority, read.entry, as_of)
        members = {**frame.members(), "subject": authority.domain}
        document = DomainDocument(**members, settings=read.setting.value)
        return _answer(authority.sign(document), frame, frame.seq)

    def _make_federation(self, name: AnswerName, as_of: AsOf) -> PublicAnswer:
        authority = self._authority.current()
        with self._store.read() as connection:
            read = read_federation(connection, authority.domain)
            frame, proof = self._frame_of_domain(connection, authority, read.entry, as_of)
        members = {**frame.members(), "subject": authority.domain}
        entry = None if read.entry is None else FederationEntry.of(read.entry, proof)
        document = FederationDocument(**members, federation=read.setting.value, entry=entry)
        return _answer(authority.sign(document), frame, frame.seq)

    def _frame_of_domain(
        self, connection: Connection, authority: Authority, entry: Entry | None, as_of: AsOf
    ) -> tuple[AnswerFrame, Proof]:
        """The frame of a document about the whole domain, which rests on that entry, and the entry's inclusion proof.
        Raises LedgerContradicted."""
        changed = services.seq_of(connection, REGISTRY) or 0
        issued_at, edge = self._place(connection, REGISTRY, changed, as_of)
        proof = self._check_in_tree(connection, entry, edge)
        return self._frame(authority, REGISTRY, issued_at, changed, edge), proof

    def _check_in_tree(self, connection: Connection, entry: Entry | None, edge: Frontier) -> Proof:
        """The inclusion proof of the entry, on which a document rests. Raises LedgerContradicted where it is not in the
        tree."""
        if entry is None:
            return ()
        [proof] = self._ledger.proofs(connection, [entry.index], edge.size)
        try:
            check_inclusion(entry.leaf, entry.index, edge.size, proof, edge.root)
        except DocumentRefused as error:
            raise LedgerContradicted(f"entry {entry.seq} is not the one in the tree") from error
        return proof


def _answer(
    jws: str,
    frame: AnswerFrame,
    changed: int,
    readers: frozenset[str] | None = None,
    true_until: float = math.inf,
) -> PublicAnswer:
    """``changed`` is the entry that last changed the service of the cached answer."""
    body, times = jws.encode("ascii"), (frame.issued_at, frame.expires_at)
    return PublicAnswer.of(body, JWT, changed, frame.head, *times, readers=readers, true_until=true_until)


def _next_end(frame: AnswerFrame, keys: Iterable[KeyRecord]) -> float:
    """When the first of the keys ends that are active in an answer; infinity for none."""
    ends = (key.active_until for key in keys)
    return min((end for end in ends if end > frame.issued_at), default=math.inf)


def registry_jwks(authority: Authority) -> bytes:
    """The registry's own signing keys as a plain JWK Set. The services' keys are not in it: a stock library tries every
    key of a set, so any service could sign as any other."""
    signing = authority.keys.signing_keys
    jwks = [{**key.jwk, "kid": make_kid(authority.id, key.thumbprint), "alg": key.alg, "use": "sig"} for key in signing]
    return canonical_json({"keys": jwks})
