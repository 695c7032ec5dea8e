"""Reads the unsigned records of keys and services, page by page, and ends keys. A key is retired when it is no longer
used, and revoked when someone else may have it. `Audit` reads the operators' audit trail.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import Connection

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.ledger.entries import KEY_RETIRED, KEY_REVOKED, Entry
from peerseal.protocol.names import check_service, make_kid, service_id
from peerseal.runtime.log_lines import fields
from peerseal.runtime.tracing import traced
from registry.domain import lifecycle
from registry.domain.errors import NotFound
from registry.domain.keys import KeyRecord
from registry.domain.publication import record_json
from registry.services.use_case import Json, UseCase
from registry.storage.queries import applicants, audit, keys, ledger, services
from registry.storage.queries.ledger import Change, append

log = logging.getLogger(__name__)


class Falling(NamedTuple):
    """The keys that fall with another key: how many they are, and the oldest of them, as `Records.key` has them."""

    number: int
    first: Sequence[Json]


class Records(UseCase):
    """Reads keys and services."""

    def key(self, service: str, thumbprint: str) -> Json:
        """A key's record, with the ``evidence`` that its admission commits to. The owner of the service checks the
        evidence; other readers have no use for it (`registry.domain.admission.Vouched`). Raises NotFound or
        InvalidName."""
        check_service(service)
        with self._store.look() as connection:
            record = keys.of_service(connection, service, thumbprint)
            evidence = ledger.evidence(connection, record.admitted_seq)
        members = record_json(self._authority.current().domain, record, self._clock())
        return {**members, "evidence": _members(evidence)}

    def keys(self, service: str, after: int = 0, limit: int | None = None) -> Json:
        """``{"service", "keys": […], "next"}``: the keys of a service, past ones too, in order of admission, after the
        entry ``after``. Raises InvalidName, and NotFound for a service that never had a key."""
        check_service(service)
        domain, now = self._authority.current().domain, self._clock()

        def read(connection: Connection, size: int) -> list[tuple[object, Json]]:
            if services.seq_of(connection, service) is None:
                raise NotFound("service_not_found")
            page = keys.page(connection, service, after, size)
            return [(key.admitted_seq, record_json(domain, key, now)) for key in page]

        return {"service": service, **self._page("keys", limit, read)}

    def falling(self, service: str, thumbprint: str, limit: int) -> Falling:
        """The keys that fall with a key of the service if it is revoked, without the key itself. Raises NotFound or
        InvalidName."""
        check_service(service)
        domain, now = self._authority.current().domain, self._clock()
        with self._store.read() as connection:
            keys.of_service(connection, service, thumbprint)
            number, first = keys.falling(connection, thumbprint, limit)
        return Falling(number, [record_json(domain, key, now) for key in first])

    def having_keys(self, names: Collection[str]) -> frozenset[str]:
        """Those of the services for which a key was ever registered. ``names`` are those on one page."""
        with self._store.read() as connection:
            return frozenset(name for name in names if keys.page(connection, name, 0, 1))

    def has_keys(self, service: str) -> bool:
        """Whether any key of the service was ever registered. Raises InvalidName."""
        return bool(self.having_keys({check_service(service)}))

    def services(self, after: str = "", limit: int | None = None) -> Json:
        """``{"services": [{"service", "seq", "active_keys"}], "next"}``, by name, after the name ``after``."""
        now = self._now()

        def read(connection: Connection, size: int) -> list[tuple[object, Json]]:
            page = services.page(connection, after, size)
            counts = [keys.active_count(connection, row.name, now) for row in page]
            return [
                (row.name, {"service": row.name, "seq": row.seq, "active_keys": count})
                for row, count in zip(page, counts, strict=True)
            ]

        return self._page("services", limit, read)


class Audit(UseCase):
    """Reads the audit trail. The acts themselves write it (`registry.storage.queries.audit.record`)."""

    def page(self, after: int = 0, limit: int | None = None) -> Json:
        """``{"audit": [{"id", "time", "by", "act", "subject", "seq", "service"}], "next"}``: what operators did, oldest
        first, after the row ``after``. ``service`` is None for an act that concerns none."""

        def read(connection: Connection, size: int) -> list[tuple[object, Json]]:
            page = audit.page(connection, after, size)
            entries = ledger.read_some(connection, sorted({act.seq for act in page if act.seq is not None}))
            named = {entry.seq: entry.service for entry in entries}
            return [(act.id, {**asdict(act), "service": named.get(act.seq or 0)}) for act in page]

        return self._page("audit", limit, read)


def _members(evidence: bytes | None) -> Json | None:
    """Evidence as JSON; None where there is none, or where altered bytes cannot be read."""
    try:
        return None if evidence is None else strict_json_object(evidence)
    except MalformedToken:
        return None


# ---- the end of a key


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

    @traced("registry.end_key", describe=lambda ended: {"registry.keys_ended": len(ended)})
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
                self._reject(connection, service, owner, thumbprint, grounds)
                return []
            if reason is Reason.RETIRED:
                ended = self._retire(connection, owner, record, grounds)
            else:
                ended = self._revoke(connection, owner, record, grounds)
        for key in ended:
            kid = make_kid(owner, key.thumbprint)
            named = fields(kid=kid, reason=reason.value)
            log.info("key ended kid=%s reason=%s by=%s", kid, reason.value, dict(by), extra=named)
        return ended

    def reject(self, service: str, thumbprint: str, by: Mapping[str, str], why: str) -> None:
        """Rejects a pending key in an operator's name. The log says why. Raises NotFound or InvalidName."""
        owner = service_id(self._authority.current().domain, service)
        with self._store.write(service) as connection:
            self._reject(connection, service, owner, thumbprint, _Grounds(by, None, self._now()), why)

    def _reject(
        self, connection: Connection, service: str, owner: str, thumbprint: str, grounds: _Grounds, why: str = ""
    ) -> None:
        if not grounds.of_operator or not applicants.remove(connection, service, thumbprint):
            raise NotFound("key_not_found")
        kid = make_kid(owner, thumbprint)
        audit.record(connection, grounds.now, grounds.by, audit.APPLICANT_REJECTED, kid)
        named = fields(kid=kid, why=why)
        log.info("applicant rejected kid=%s by=%s why=%r", kid, dict(grounds.by), why, extra=named)

    def _retire(self, connection: Connection, owner: str, key: KeyRecord, grounds: _Grounds) -> list[KeyRecord]:
        retired = lifecycle.retired(key, grounds.now)
        if retired == key:
            return []
        change = Change(KEY_RETIRED, key.service, make_kid(owner, key.thumbprint), grounds.by, grounds.evidence)
        self._append(connection, [change], grounds)
        keys.end(connection, [retired])
        return [key]

    def _revoke(self, connection: Connection, owner: str, cause: KeyRecord, grounds: _Grounds) -> list[KeyRecord]:
        family = [cause, *keys.descendants(connection, cause.thumbprint)]
        falling = [key for key in family if key.revoked_at is None]
        if not falling:
            return []
        data = {"reason": Reason.COMPROMISED.value, "cause": make_kid(owner, cause.thumbprint)}
        kids = [make_kid(owner, key.thumbprint) for key in falling]
        changes = [Change(KEY_REVOKED, cause.service, kid, grounds.by, grounds.evidence, data) for kid in kids]
        made = zip(falling, self._append(connection, changes, grounds), strict=True)
        keys.end(connection, [lifecycle.revoked(key, entry.time, entry.seq) for key, entry in made])
        return falling

    def _append(self, connection: Connection, changes: Sequence[Change], grounds: _Grounds) -> Sequence[Entry]:
        """The entries. An operator's act is one row of the audit trail, with the first of them."""
        entries, first = append(connection, grounds.now, *changes).entries, changes[0]
        services.changed(connection, first.service or "", entries[-1].seq)
        if grounds.of_operator:
            subject = first.data.get("cause") or first.kid or ""
            audit.record(connection, grounds.now, grounds.by, first.type, subject, entries[0].seq)
        return entries
