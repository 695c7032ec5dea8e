"""Admits new keys, and keeps applicants: keys without a right to their service's name, which wait for an operator
(docs/protocol.md).

`KeyAdmission` admits keys. Applicants are off unless `registry.settings.Settings.applicants` is set. Everyone may
apply, so the number of applicants is bounded.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from peerseal.errors import MissingToken, PeersealError
from peerseal.protocol.documents.key_set import part_of
from peerseal.protocol.ledger.entries import KEY_ADMITTED
from peerseal.protocol.ledger.merkle import Frontier
from peerseal.protocol.names import make_kid, service_id
from peerseal.protocol.tokens.proof import Proof
from peerseal.runtime.log_lines import fields
from peerseal.runtime.tracing import Attributes, traced
from peerseal.verify.context import current_traceparent
from registry.domain import lifecycle
from registry.domain.admission import (
    Approved,
    Attested,
    FirstCome,
    Joined,
    Right,
    Vouched,
    already_registered,
    check_registrable,
    check_voucher,
)
from registry.domain.errors import NotFound, StorageUnavailable, TooManyApplicants
from registry.domain.key_quality import check_quality
from registry.domain.key_room import KeyRoom
from registry.domain.keys import Applicant, KeyRecord, KeyState
from registry.services.keys.rights import JoinTokens, WantedUse
from registry.services.use_case import Json, Node, UseCase
from registry.storage.group_commit import GroupCommit
from registry.storage.queries import applicants, audit, keys, ledger, services
from registry.storage.queries.ledger import Addition, Appended, Change

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The key's record, and the entry that was appended for it: None where the key was registered before."""

    record: KeyRecord
    appended: Appended | None = None

    @property
    def new(self) -> bool:
        """Whether the key is new."""
        return self.appended is not None


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """A key for the service with id ``owner`` that has passed all checks that need no lock. ``traceparent`` is the span
    of its request."""

    service: str
    owner: str
    proof: Proof
    right: Right
    traceparent: str | None = None

    @property
    def voucher(self) -> str | None:
        """The thumbprint of the key that vouched for it, if one did."""
        return self.right.thumbprint if isinstance(self.right, Vouched) else None

    def change(self, by: Mapping[str, str], start: int, end: int) -> Change:
        """The entry that admits it on the grounds ``by``, from ``start`` to ``end``."""
        key, evidence = self.proof.public_key, {"proof": self.proof.jws}
        if isinstance(self.right, Vouched):
            evidence["vouch"] = self.right.request_token
        data: dict[str, Any] = {"alg": key.alg, "jwk": dict(key.jwk), "active_from": start, "expires_at": end}
        return Change(KEY_ADMITTED, self.service, make_kid(self.owner, key.thumbprint), by, evidence, data)


def _of_admitted(admitted: Admitted) -> Attributes:
    ground = next(iter(admitted.record.admitted_by), "")
    return {"peerseal.service": admitted.record.service, "registry.ground": ground}


class KeyAdmission(UseCase):
    """Admits keys. ``joining`` groups concurrent registrations with join tokens into one transaction."""

    def __init__(self, node: Node, tokens: JoinTokens) -> None:
        super().__init__(node)
        self._tokens = tokens
        self.joining = GroupCommit(self._join)

    def prove(self, service: str, unverified_proof: str, at: float | None = None) -> tuple[str, Proof]:
        """The id of the service, and the proof of possession, which must be valid at that time, by default now.

        Raises InvalidName or TokenError.
        """
        check_registrable(service)
        authority = self._authority.current()
        owner, now = service_id(authority.domain, service), self._clock() if at is None else at
        return owner, Proof.read(unverified_proof, issuer=owner, audience=authority.id, now=now)

    @traced("registry.admit", describe=_of_admitted)
    def admit(
        self, service: str, unverified_proof: str, right: Right | None, *, proven_at: float | None = None
    ) -> Admitted:
        """Admits the key that made the proof of possession, for the service, by that right.

        An active key of the same service needs no right, spends none, and changes nothing: a caller that did not
        receive the answer can call again. ``proven_at`` is the time when the proof arrived, by default now.

        Raises InvalidName, TokenError for the proof, KeyRefused for the key, JoinRefused, MissingToken where there is
        no right, RevokedKey or CallerNotAllowed for a voucher.
        """
        owner, proof = self.prove(service, unverified_proof, proven_at)
        try:  # almost every key is new: a known one is looked for only after a failure
            return self._admit_new(service, owner, proof, right)
        except StorageUnavailable:
            raise  # the key may be written although the commit is not confirmed
        except (IntegrityError, PeersealError):
            known = self._find(proof)
            if known is None:
                raise
        return Admitted(already_registered(known, service, self._clock()))

    def _find(self, proof: Proof) -> KeyRecord | None:
        with self._store.look() as connection:
            return keys.find(connection, proof.public_key.thumbprint)

    def _admit_new(self, service: str, owner: str, proof: Proof, right: Right | None) -> Admitted:
        """The cheap checks come first, then the check for weak keys, and only then a lock."""
        if right is None:
            raise MissingToken("a join token or a voucher is needed, and the request has neither")
        if isinstance(right, Joined):
            self._tokens.check(service, right, proof.jws)
        check_quality(proof.public_key)
        newcomer = _Newcomer(service, owner, proof, right, current_traceparent())
        admitted = self.joining.do(newcomer) if isinstance(right, Joined) else self._write(newcomer)
        record = admitted.record
        by = " ".join(f"{ground}:{value}" for ground, value in record.admitted_by.items())
        kid = make_kid(owner, record.thumbprint)
        named = fields(kid=kid, seq=record.admitted_seq)
        log.info("key admitted kid=%s seq=%d by=%r", kid, record.admitted_seq, by, extra=named)
        return admitted

    def _write(self, newcomer: "_Newcomer") -> Admitted:
        with self._store.write(newcomer.service) as connection:
            now = self._now()
            self._check_again(connection, newcomer, now)
            [admitted] = self._add(connection, ledger.lock_frontier(connection), [newcomer], now)
            if isinstance(newcomer.right, Approved) and admitted.appended is not None:
                entry = admitted.appended.entry
                audit.record(connection, now, newcomer.right.by, KEY_ADMITTED, entry.kid or "", entry.seq)
        return admitted

    def _join(self, newcomers: "Sequence[_Newcomer]") -> Sequence[Admitted | Exception]:
        """Admits keys with join tokens in one transaction. One conditional statement spends a join token, so no lock on
        the service is needed."""
        traces = [one.traceparent for one in newcomers if one.traceparent and len(newcomers) > 1]
        with self._store.write(links=traces) as connection:
            now = self._now()
            wanted = [
                WantedUse(one.right.token_id, one.service, one.proof.public_key.thumbprint)
                for one in newcomers
                if isinstance(one.right, Joined)
            ]
            before, refusals = self._tokens.spend(connection, wanted, now)
            entitled = [one for one, refusal in zip(newcomers, refusals, strict=True) if refusal is None]
            admitted = iter(self._add(connection, before, entitled, now) if before is not None else ())
            return [next(admitted) if refusal is None else refusal for refusal in refusals]

    def _add(
        self, connection: Connection, before: Frontier, newcomers: "Sequence[_Newcomer]", now: int
    ) -> Sequence[Admitted]:
        """Writes keys and entries. ``before`` is the ledger's edge, which is locked."""
        admitted, additions = [], []
        for newcomer in newcomers:
            end, by = now + self._limits.key_lifetime, _grounds(newcomer.owner, newcomer.right)
            appended = ledger.grown(before, now, newcomer.change(by, now, end))
            seq, before = appended.entry.seq, appended.after
            record = lifecycle.admitted(newcomer.proof.public_key, newcomer.service, by, seq=seq, start=now, end=end)
            writes = keys.addition(record, newcomer.voucher), services.change(connection, newcomer.service, seq)
            additions.append(Addition(appended, writes))
            admitted.append(Admitted(record, appended))
        ledger.append_each(connection, additions)
        return admitted

    def _check_again(self, connection: Connection, newcomer: "_Newcomer", now: int) -> None:
        service = newcomer.service
        match newcomer.right:
            case Vouched(thumbprint, _):
                check_voucher(keys.find(connection, thumbprint), service, now)
            case Approved(_, thumbprint) if not applicants.remove(connection, service, thumbprint):
                raise NotFound("applicant_not_found", "it was rejected or approved a moment ago")
            case FirstCome() if keys.active_count(connection, service, now):
                raise MissingToken(f"first come first served: {service} has an active key")
        self._check_room(connection, newcomer, now)

    def _check_room(self, connection: Connection, newcomer: "_Newcomer", now: int) -> None:
        service, thumbprint = newcomer.service, newcomer.proof.public_key.thumbprint
        shown_after = now - self._limits.retired_shown
        counts = keys.counts(connection, service, [part_of(thumbprint)], shown_after, now)
        KeyRoom(service, counts, self._limits).take(thumbprint, vouched=newcomer.voucher is not None)


class Applicants(UseCase):
    """Stores applicants, lists them, and admits those that an operator approves. `registry.services.keys.records`
    rejects them."""

    def __init__(self, node: Node, admission: KeyAdmission) -> None:
        super().__init__(node)
        self._admission = admission

    def apply(self, service: str, unverified_proof: str) -> Applicant | Admitted:
        """Stores the key of the proof as an applicant. A key that is already registered for the service is returned as
        `KeyAdmission.admit` returns it. A repeated call changes nothing.

        Raises as `KeyAdmission.admit` does, and TooManyApplicants.
        """
        now, (owner, proof) = self._now(), self._admission.prove(service, unverified_proof)
        thumbprint = proof.public_key.thumbprint
        with self._store.look() as connection:
            known = keys.find(connection, thumbprint)
            waiting = applicants.find(connection, service, thumbprint, now)
            if known is None and waiting is None:
                self._check_room(connection, service, now)
        if known is not None:
            return Admitted(already_registered(known, service, self._clock()))
        if waiting is not None:
            return waiting
        check_quality(proof.public_key)
        return self._add(Applicant(thumbprint, service, proof.jws, now, now + self._limits.applicant_ttl), owner, proof)

    def _add(self, applicant: Applicant, owner: str, proof: Proof) -> Applicant:
        now, service = applicant.created_at, applicant.service
        with self._store.write(applicants.LOCK) as connection:
            waiting = applicants.find(connection, service, applicant.thumbprint, now)
            if waiting is not None:
                return waiting
            applicants.remove_past(connection, now)
            self._check_room(connection, service, now)
            applicants.add(connection, applicant)
        kid = make_kid(owner, proof.public_key.thumbprint)
        log.info("applicant waits kid=%s", kid, extra=fields(kid=kid))
        return applicant

    def _check_room(self, connection: Connection, service: str, now: int) -> None:
        of_all, of_service = applicants.counts(connection, service, now)
        if of_all >= self._limits.applicants_kept:
            raise TooManyApplicants(f"{of_all} applicants wait, {self._limits.applicants_kept} may")
        if of_service >= self._limits.applicants_of_service:
            raise TooManyApplicants(
                f"{of_service} applicants wait for {service}, {self._limits.applicants_of_service} may"
            )

    def approve(self, service: str, thumbprint: str, by: Mapping[str, str]) -> Admitted:
        """Admits an applicant in the operator's name. A key that was approved before is left as it is.

        Raises NotFound, KeyTaken, or KeyRefused.
        """
        now = self._now()
        with self._store.look() as connection:
            waiting = applicants.find(connection, service, thumbprint, now)
            known = keys.find(connection, thumbprint)
        if known is not None and known.service == service:
            return Admitted(already_registered(known, service, now))
        if waiting is None:
            raise NotFound("applicant_not_found")
        return self._admission.admit(service, waiting.proof, Approved(by, thumbprint), proven_at=waiting.created_at)

    def page(self, after: str = "", limit: int | None = None) -> Json:
        """``{"applicants": [{"kid", "service", "state", "alg", "jwk", "created_at", "expires_at"}], "next"}``: those
        that wait, by thumbprint, after the thumbprint ``after``."""

        def read(connection: Connection, size: int) -> list[tuple[object, Json]]:
            page = applicants.page(connection, after, size, self._now())
            return [(applicant.thumbprint, self._members(applicant)) for applicant in page]

        return self._page("applicants", limit, read)

    def answer(self, applicant: Applicant) -> Json:
        """``{"kid", "state", "expires_at"}``: the answer to an application."""
        kid = make_kid(service_id(self._authority.current().domain, applicant.service), applicant.thumbprint)
        return {"kid": kid, "state": KeyState.PENDING.value, "expires_at": applicant.expires_at}

    def _members(self, applicant: Applicant) -> Json:
        public = self._admission.prove(applicant.service, applicant.proof, applicant.created_at)[1].public_key
        times = {"created_at": applicant.created_at, "expires_at": applicant.expires_at}
        members = {"service": applicant.service, "alg": public.alg, "jwk": dict(public.jwk)}
        return {**self.answer(applicant), **members, **times}


def _grounds(owner: str, right: Right) -> dict[str, str]:
    """``by`` of the entry: the right by which the key was admitted."""
    match right:
        case Joined(token_id):
            return {"join_token": token_id}
        case Vouched(thumbprint, _):
            return {"kid": make_kid(owner, thumbprint)}
        case Attested(issuer, subject):
            return {"oidc": issuer, "subject": subject}
        case Approved(by, _):
            return dict(by)
        case FirstCome():
            return {"dev": "first come first served"}
