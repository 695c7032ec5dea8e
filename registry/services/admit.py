"""A new key gets in (SPEC section 5, registration)."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from peerseal.errors import MissingToken
from peerseal.protocol.ledger import KEY_ADMITTED
from peerseal.protocol.names import make_kid, service_id
from peerseal.protocol.tokens import Proof
from registry.domain.admission import (
    FirstCome,
    Joined,
    Right,
    Vouched,
    already_registered,
    check_registrable,
    check_voucher,
)
from registry.domain.errors import JoinRefused, KeyTaken
from registry.domain.key_quality import check_quality
from registry.domain.keys import KeyRecord
from registry.services.authority import AuthoritySource
from registry.services.join_tokens import JoinTokens
from registry.settings import Limits
from registry.storage import join_tokens, keys, services
from registry.storage.ledger import Change, append
from registry.storage.unit import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The key's record, and whether it is new: False where the same key was registered before."""

    record: KeyRecord
    new: bool


class Admission:
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

    def admit(self, service: str, unverified_proof: str, right: Right | None) -> Admitted:
        """Admits the key that the proof of possession is made with, for the service, on that right.

        An active key of the same service is admitted already: it needs no right, spends none, and changes nothing, so
        that a caller who never got the answer may ask again. Raises InvalidName, TokenError for the proof, KeyRefused
        for the key, JoinRefused, MissingToken where there is no right, RevokedKey or CallerNotAllowed for a voucher.
        """
        check_registrable(service)
        authority = self._authority.current()
        owner = service_id(authority.domain, service)
        proof = Proof.read(unverified_proof, issuer=owner, audience=authority.id, now=self._clock())
        known = self._find(proof)
        if known is None:
            try:
                return self._admit_new(service, owner, proof, right)
            except (IntegrityError, JoinRefused):
                known = self._find(proof)
                if known is None:  # else this very key was registered a moment ago, and the token spent on it
                    raise
        return Admitted(already_registered(known, service, self._clock()), new=False)

    def _find(self, proof: Proof) -> KeyRecord | None:
        with self._store.look() as connection:
            return keys.find(connection, proof.public_key.thumbprint)

    def _admit_new(self, service: str, owner: str, proof: Proof, right: Right | None) -> Admitted:
        """What can be refused cheaply is refused first, then a weak key, and only then a lock is taken."""
        if right is None:
            raise MissingToken("neither a join token nor a voucher")
        with self._store.look() as connection:
            if isinstance(right, Joined):
                self._tokens.check(connection, service, right, proof.jws)
                if keys.joined_count(connection, service, int(self._clock())) >= self._limits.joined_keys:
                    raise KeyTaken("too_many_keys", f"{service} has {self._limits.joined_keys} active joined keys")
        check_quality(proof.public_key)
        return self._write(service, owner, proof, right)

    def _write(self, service: str, owner: str, proof: Proof, right: Right) -> Admitted:
        # A join token is spent by one conditional statement, which needs no lock on the service.
        with self._store.write(None if isinstance(right, Joined) else service) as connection:
            record = self._add(connection, service, owner, proof, right)
        by = " ".join(f"{ground}:{value}" for ground, value in record.admitted_by.items())
        log.info("key admitted kid=%s seq=%d by=%r", make_kid(owner, record.thumbprint), record.admitted_seq, by)
        return Admitted(record, new=True)

    def _add(self, connection: Connection, service: str, owner: str, proof: Proof, right: Right) -> KeyRecord:
        now, key = int(self._clock()), proof.public_key
        self._use(connection, service, right, now)
        end, by = now + self._limits.key_lifetime, _grounds(owner, right)
        data: dict[str, Any] = {"alg": key.alg, "jwk": dict(key.jwk), "active_from": now, "expires_at": end}
        if isinstance(right, Vouched):
            data["vouch"] = right.request_token
        kid = make_kid(owner, key.thumbprint)
        [entry] = append(connection, now, Change(KEY_ADMITTED, service, kid, by, proof.jws, data))
        record = KeyRecord(key.thumbprint, service, key.spki, entry.seq, by, now, end, end)
        keys.add(connection, record, right.thumbprint if isinstance(right, Vouched) else None)
        services.changed(connection, service, entry.seq)
        return record

    def _use(self, connection: Connection, service: str, right: Right, now: int) -> None:
        """Uses up the right, or checks it again: a moment ago the lock was not held yet."""
        match right:
            case Joined(token_id):
                if not join_tokens.spend(connection, token_id, service, now):
                    raise JoinRefused(f"join token {token_id} was spent or withdrawn a moment ago")
            case Vouched(thumbprint, _):
                check_voucher(keys.find(connection, thumbprint), service, now)
                if keys.vouched_count(connection, service, now) >= self._limits.vouched_keys:
                    raise KeyTaken("too_many_keys", f"{service} has {self._limits.vouched_keys} keys by vouchers")
            case FirstCome():
                if keys.active_count(connection, service, now):
                    raise MissingToken(f"first come first served: {service} has an active key")


def _grounds(owner: str, right: Right) -> dict[str, str]:
    """How the entry names what the key was admitted on."""
    match right:
        case Joined(token_id):
            return {"join_token": token_id}
        case Vouched(thumbprint, _):
            return {"kid": make_kid(owner, thumbprint)}
        case FirstCome():
            return {"dev": "first come first served"}
