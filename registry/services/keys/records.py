"""Unsigned records, page by page: keys and services, and the operators' audit trail."""

from dataclasses import asdict

from sqlalchemy import Connection

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.names import check_service
from registry.domain.errors import NotFound
from registry.domain.publication import record_json
from registry.services.use_case import Json, UseCase
from registry.storage.queries import audit, keys, ledger, services


class Records(UseCase):
    """Reads keys and services."""

    def key(self, service: str, thumbprint: str) -> Json:
        """A key's record, with the ``evidence`` that its admission commits to. The owner of the service checks the
        evidence; other readers have no use for it (`registry.domain.admission.Vouched`). Raises NotFound or
        InvalidName."""
        check_service(service)
        with self._store.look() as connection:
            record = keys.find(connection, thumbprint)
            if record is None or record.service != service:
                raise NotFound("key_not_found")
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

    def has_keys(self, service: str) -> bool:
        """Whether any key of the service was ever registered. Raises InvalidName."""
        check_service(service)
        with self._store.read() as connection:
            return bool(keys.page(connection, service, 0, 1))

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
