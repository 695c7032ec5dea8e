"""Ends keys: a key is retired when it is no longer used, and revoked when it may be in other hands."""

import logging
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import Connection

from peerseal.protocol.ledger.entries import KEY_RETIRED, KEY_REVOKED, Entry
from peerseal.protocol.names import make_kid, service_id, split_kid
from registry.domain import lifecycle
from registry.domain.errors import NotFound
from registry.domain.keys import KeyRecord
from registry.services.use_case import UseCase
from registry.storage.queries import applicants, audit, keys, services
from registry.storage.queries.ledger import Change, append

log = logging.getLogger(__name__)


class Reason(StrEnum):
    """Why a key ends."""

    RETIRED = "retired"
    COMPROMISED = "compromised"
    REJECTED = "rejected"
    """For pending keys only."""


class _Grounds(NamedTuple):
    """Who ends a key, with which evidence, and when, as the entry records it."""

    by: Mapping[str, str]
    evidence: Mapping[str, str] | None
    now: int

    @property
    def of_operator(self) -> bool:
        """Whether an operator ends the key. A service would send its request token."""
        return self.evidence is None


class KeyEnding(UseCase):
    """Retires and revokes keys, and rejects pending ones."""

    def end(
        self, service: str, thumbprint: str, reason: Reason, by: Mapping[str, str], token: str | None = None
    ) -> list[KeyRecord]:
        """Ends a key of a service, and returns the keys that this ended, as they were before.

        ``token`` is the request token with which a key ended itself. It is kept as evidence, and cannot be used again
        (see `registry.domain.admission.Vouched`).

        ``compromised`` revokes the key, every key that it vouched for, and so on, with one entry each. Keys that have
        ended before are left as they are, so a repeated call changes nothing. An operator rejects a pending key, for
        any reason. Raises NotFound.
        """
        owner = service_id(self._authority.current().domain, service)
        grounds = _Grounds(by, None if token is None else {"token": token}, self._now())
        with self._store.write(service) as connection:
            record = keys.find(connection, thumbprint)
            if record is None or record.service != service or reason is Reason.REJECTED:
                self._reject(connection, service, make_kid(owner, thumbprint), grounds)
                return []
            if reason is Reason.RETIRED:
                ended = self._retire(connection, owner, record, grounds)
            else:
                ended = self._revoke(connection, owner, record, grounds)
        for key in ended:
            log.info("key ended kid=%s reason=%s by=%s", make_kid(owner, key.thumbprint), reason.value, dict(by))
        return ended

    def _reject(self, connection: Connection, service: str, kid: str, grounds: _Grounds) -> None:
        if not grounds.of_operator or not applicants.remove(connection, service, split_kid(kid)[1]):
            raise NotFound("key_not_found")
        audit.record(connection, grounds.now, grounds.by, audit.APPLICANT_REJECTED, kid)
        log.info("applicant rejected kid=%s by=%s", kid, dict(grounds.by))

    def _retire(self, connection: Connection, owner: str, key: KeyRecord, grounds: _Grounds) -> list[KeyRecord]:
        retired = lifecycle.retired(key, grounds.now)
        if retired == key:
            return []
        change = Change(KEY_RETIRED, key.service, make_kid(owner, key.thumbprint), grounds.by, grounds.evidence)
        self._append(connection, [change], grounds)
        keys.end(connection, retired)
        return [key]

    def _revoke(self, connection: Connection, owner: str, cause: KeyRecord, grounds: _Grounds) -> list[KeyRecord]:
        family = [cause, *keys.descendants(connection, cause.thumbprint)]
        falling = [key for key in family if key.revoked_at is None]
        if not falling:
            return []
        data = {"reason": Reason.COMPROMISED.value, "cause": make_kid(owner, cause.thumbprint)}
        kids = [make_kid(owner, key.thumbprint) for key in falling]
        changes = [Change(KEY_REVOKED, cause.service, kid, grounds.by, grounds.evidence, data) for kid in kids]
        for key, entry in zip(falling, self._append(connection, changes, grounds), strict=True):
            keys.end(connection, lifecycle.revoked(key, entry.time, entry.seq))
        return falling

    def _append(self, connection: Connection, changes: Sequence[Change], grounds: _Grounds) -> Sequence[Entry]:
        """The entries. An operator's act is one row of the audit trail, with the first of them."""
        entries, first = append(connection, grounds.now, *changes).entries, changes[0]
        services.changed(connection, first.service or "", entries[-1].seq)
        if grounds.of_operator:
            subject = first.data.get("cause") or first.kid or ""
            audit.record(connection, grounds.now, grounds.by, first.type, subject, entries[0].seq)
        return entries
