"""A new key gets in (docs/protocol.md)."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from peerseal.errors import MissingToken, PeersealError
from peerseal.protocol.ledger.entries import KEY_ADMITTED
from peerseal.protocol.ledger.merkle import Frontier
from peerseal.protocol.names import make_kid, service_id
from peerseal.protocol.tokens.request import Proof
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
from registry.domain.errors import KeyTaken, NotFound, StorageUnavailable
from registry.domain.key_quality import check_quality
from registry.domain.keys import KeyRecord
from registry.services.authority.authority import AuthoritySource
from registry.services.group_commit import GroupCommit
from registry.services.keys.join_tokens import JoinTokens
from registry.settings import Limits
from registry.storage.queries import applicants, audit, keys, ledger, services
from registry.storage.queries.ledger import Addition, Appended, Change
from registry.storage.unit import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The key's record, and what was appended for it: None where the same key was registered before."""

    record: KeyRecord
    appended: Appended | None = None

    @property
    def new(self) -> bool:
        """Whether the key is new."""
        return self.appended is not None


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """A key that may be admitted to the service with id ``owner``, as far as could be told without a lock."""

    service: str
    owner: str
    proof: Proof
    right: Right

    @property
    def voucher(self) -> str | None:
        """The thumbprint of the key that vouched for it, if any did."""
        return self.right.thumbprint if isinstance(self.right, Vouched) else None

    def change(self, by: Mapping[str, str], start: int, end: int) -> Change:
        """The entry that admits it on the grounds ``by``, from ``start`` to ``end``."""
        key, evidence = self.proof.public_key, {"proof": self.proof.jws}
        if isinstance(self.right, Vouched):
            evidence["vouch"] = self.right.request_token
        data: dict[str, Any] = {"alg": key.alg, "jwk": dict(key.jwk), "active_from": start, "expires_at": end}
        return Change(KEY_ADMITTED, self.service, make_kid(self.owner, key.thumbprint), by, evidence, data)


class KeyAdmission:
    """Admits keys."""

    def __init__(
        self,
        store: Store,
        authority: AuthoritySource,
        tokens: JoinTokens,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._authority = authority
        self._tokens = tokens
        self._limits = limits
        self._clock = clock
        self.joining = GroupCommit(self._join)

    def prove(self, service: str, unverified_proof: str, at: float | None = None) -> tuple[str, Proof]:
        """The id of the service, and the proof of possession, which was good at that time: now, where none is given.

        Raises InvalidName or TokenError.
        """
        check_registrable(service)
        authority = self._authority.current()
        owner, now = service_id(authority.domain, service), self._clock() if at is None else at
        return owner, Proof.read(unverified_proof, issuer=owner, audience=authority.id, now=now)

    def admit(
        self, service: str, unverified_proof: str, right: Right | None, *, proven_at: float | None = None
    ) -> Admitted:
        """Admits the key that the proof of possession is made with, for the service, on that right.

        An active key of the same service is admitted already: it needs no right, spends none, and changes nothing, so
        that a caller who never got the answer may ask again. Raises InvalidName, TokenError for the proof, KeyRefused
        for the key, JoinRefused, MissingToken where there is no right, RevokedKey or CallerNotAllowed for a voucher.
        ``proven_at`` is when the proof came, where that is not now.
        """
        owner, proof = self.prove(service, unverified_proof, proven_at)
        try:  # almost every key is new: only where something stands in the way is the known one looked for
            return self._admit_new(service, owner, proof, right)
        except StorageUnavailable:
            raise  # it may be written and yet not be confirmed
        except (IntegrityError, PeersealError):
            known = self._find(proof)
            if known is None:
                raise
        return Admitted(already_registered(known, service, self._clock()))

    def _find(self, proof: Proof) -> KeyRecord | None:
        with self._store.look() as connection:
            return keys.find(connection, proof.public_key.thumbprint)

    def _admit_new(self, service: str, owner: str, proof: Proof, right: Right | None) -> Admitted:
        """What can be refused cheaply is refused first, then a weak key, and only then a lock is taken."""
        if right is None:
            raise MissingToken("neither a join token nor a voucher")
        if isinstance(right, Joined):
            self._tokens.check(service, right, proof.jws)
        check_quality(proof.public_key)
        newcomer = _Newcomer(service, owner, proof, right)
        admitted = self.joining.do(newcomer) if isinstance(right, Joined) else self._write(newcomer)
        record = admitted.record
        by = " ".join(f"{ground}:{value}" for ground, value in record.admitted_by.items())
        log.info("key admitted kid=%s seq=%d by=%r", make_kid(owner, record.thumbprint), record.admitted_seq, by)
        return admitted

    def _write(self, newcomer: "_Newcomer") -> Admitted:
        with self._store.write(newcomer.service) as connection:
            now = int(self._clock())
            self._check_again(connection, newcomer.service, newcomer.right, now)
            [admitted] = self._add(connection, ledger.lock_frontier(connection), [newcomer], now)
            if isinstance(newcomer.right, Approved) and admitted.appended is not None:
                entry = admitted.appended.entry
                audit.record(connection, now, newcomer.right.by, KEY_ADMITTED, entry.kid or "", entry.seq)
        return admitted

    def _join(self, newcomers: "Sequence[_Newcomer]") -> Sequence[Admitted | Exception]:
        """Those who bring join tokens, in one transaction. A join token is spent by one conditional statement, which
        needs no lock on the service."""
        with self._store.write() as connection:
            now = int(self._clock())
            wanted = [(one.right.token_id, one.service) for one in newcomers if isinstance(one.right, Joined)]
            before, taken = self._tokens.spend(connection, wanted, now)
            let_in = [one for one, good in zip(newcomers, taken, strict=True) if good]
            admitted = iter(self._add(connection, before, let_in, now) if before is not None else ())
            return [
                next(admitted) if good else self._tokens.why_not(connection, *place, now)
                for place, good in zip(wanted, taken, strict=True)
            ]

    def _add(
        self, connection: Connection, before: Frontier, newcomers: "Sequence[_Newcomer]", now: int
    ) -> Sequence[Admitted]:
        """Writes their keys and entries. ``before`` is the ledger's edge, locked."""
        admitted, additions = [], []
        for newcomer in newcomers:
            end, by = now + self._limits.key_lifetime, _grounds(newcomer.owner, newcomer.right)
            appended = ledger.grown(before, now, newcomer.change(by, now, end))
            seq, before = appended.entry.seq, appended.after
            record = lifecycle.admitted(newcomer.proof.public_key, newcomer.service, by, seq=seq, start=now, end=end)
            beside = keys.addition(record, newcomer.voucher), services.change_beside(connection, newcomer.service, seq)
            additions.append(Addition(appended, beside))
            admitted.append(Admitted(record, appended))
        ledger.append_each(connection, additions)
        return admitted

    def _check_again(self, connection: Connection, service: str, right: Right, now: int) -> None:
        match right:
            case Vouched(thumbprint, _):
                check_voucher(keys.find(connection, thumbprint), service, now)
                listed_from = now - self._limits.retired_shown
                if keys.vouched_count(connection, service, listed_from) >= self._limits.vouched_keys:
                    raise KeyTaken("too_many_keys", f"{service} has {self._limits.vouched_keys} keys by vouchers")
            case Approved(_, thumbprint):
                self._check_cap(service, keys.joined_count(connection, service, now))
                if not applicants.remove(connection, service, thumbprint):
                    raise NotFound("applicant_not_found", "rejected, or approved, a moment ago")
            case Attested():
                self._check_cap(service, keys.joined_count(connection, service, now))
            case FirstCome():
                if keys.active_count(connection, service, now):
                    raise MissingToken(f"first come first served: {service} has an active key")

    def _check_cap(self, service: str, joined: int) -> None:
        if joined >= self._limits.joined_keys:
            raise KeyTaken("too_many_keys", f"{service} has {joined} active keys that no other key vouched for")


def _grounds(owner: str, right: Right) -> dict[str, str]:
    """How the entry names what the key was admitted on."""
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
