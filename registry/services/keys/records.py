"""Unsigned records, page by page: for operators, and for whoever looks at a service's past."""

import time
from collections.abc import Callable
from typing import Any

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.names import check_service
from registry.domain.errors import NotFound
from registry.domain.publication import record_json
from registry.services.authority.authority import AuthoritySource
from registry.settings import Limits
from registry.storage.queries import keys, ledger, services
from registry.storage.unit import Store


class Records:
    """Reads keys and services."""

    def __init__(
        self, store: Store, authority: AuthoritySource, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._authority = authority
        self._limits = limits
        self._clock = clock

    def key(self, service: str, thumbprint: str) -> dict[str, Any]:
        """One key's record, and in ``evidence`` what the entry that admitted it commits to: for the service's owner,
        who checks it, and of no use to others (`registry.domain.admission.Vouched`). Raises NotFound or InvalidName.
        """
        check_service(service)
        with self._store.look() as connection:
            record = keys.find(connection, thumbprint)
            if record is None or record.service != service:
                raise NotFound("key_not_found")
            evidence = ledger.evidence(connection, record.admitted_seq)
        members = record_json(self._authority.current().domain, record, self._clock())
        return {**members, "evidence": _members(evidence)}

    def keys(self, service: str, after: int = 0, limit: int | None = None) -> dict[str, Any]:
        """``{"service", "keys": […], "next"}``: the keys of a service, past ones too, in order of admission, behind
        the entry with seq ``after``; ``next`` is what to ask for then, None at the end.

        Raises NotFound for a service that never had one, InvalidName.
        """
        check_service(service)
        size, now = self._size(limit), self._clock()
        with self._store.read() as connection:
            if services.seq_of(connection, service) is None:
                raise NotFound("service_not_found")
            page = keys.page(connection, service, after, size)
        domain = self._authority.current().domain
        following = page[-1].admitted_seq if len(page) == size else None
        return {"service": service, "keys": [record_json(domain, key, now) for key in page], "next": following}

    def has_keys(self, service: str) -> bool:
        """Whether any key of the service was ever registered. Raises InvalidName."""
        check_service(service)
        with self._store.read() as connection:
            return bool(keys.page(connection, service, 0, 1))

    def services(self, after: str = "", limit: int | None = None) -> dict[str, Any]:
        """``{"services": [{"service", "seq", "active_keys"}], "next"}``, by name behind ``after``."""
        size, now = self._size(limit), int(self._clock())
        with self._store.read() as connection:
            page = services.page(connection, after, size)
            counts = {service.name: keys.active_count(connection, service.name, now) for service in page}
        rows = [{"service": row.name, "seq": row.seq, "active_keys": counts[row.name]} for row in page]
        return {"services": rows, "next": page[-1].name if len(page) == size else None}

    def _size(self, limit: int | None) -> int:
        return min(limit or self._limits.page, self._limits.page)


def _members(evidence: bytes | None) -> dict[str, Any] | None:
    """Evidence as JSON; None where there is none, or where somebody altered it beyond reading."""
    try:
        return None if evidence is None else strict_json_object(evidence)
    except MalformedToken:
        return None
