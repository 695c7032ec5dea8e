"""A key ends: retired, because its work is done, or revoked, because somebody else may hold it."""

import logging
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import Connection

from peerseal.protocol.ledger import KEY_RETIRED, KEY_REVOKED
from peerseal.protocol.names import make_kid, service_id
from registry.domain.errors import NotFound
from registry.domain.keys import KeyRecord, KeyState
from registry.services.authority import AuthoritySource
from registry.storage import keys, services
from registry.storage.ledger import Change, append
from registry.storage.unit import Store

log = logging.getLogger(__name__)


class Reason(StrEnum):
    """Why a key ends."""

    RETIRED = "retired"
    COMPROMISED = "compromised"


class _Grounds(NamedTuple):
    """What the end of a key rests on, as its entry says it."""

    by: Mapping[str, str]
    proof: str | None


class KeyEnding:
    """Retires and revokes keys."""

    def __init__(self, store: Store, authority: AuthoritySource, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._authority = authority
        self._clock = clock

    def end(
        self, service: str, thumbprint: str, reason: Reason, by: Mapping[str, str], proof: str | None = None
    ) -> list[KeyRecord]:
        """Ends a key of a service, and returns the keys that this ended, as they were before.

        ``proof`` is the request token with which a key ended itself: it goes into the entry as evidence, spent (see
        `registry.domain.admission.Vouched`).

        ``compromised`` revokes the key, and every key that it vouched for, and so on, one entry each. What has ended
        that far already is left as it is, so that asking again changes nothing. Raises NotFound.
        """
        owner = service_id(self._authority.current().domain, service)
        now = int(self._clock())
        with self._store.write(service) as connection:
            record = keys.find(connection, thumbprint)
            if record is None or record.service != service:
                raise NotFound("key_not_found")
            if reason is Reason.RETIRED:
                ended = [record] if record.state(now) is KeyState.ACTIVE else []
                self._retire(connection, owner, ended, _Grounds(by, proof), now)
            else:
                family = [record, *keys.descendants(connection, thumbprint)]
                ended = [key for key in family if key.revoked_at is None]
                self._revoke(connection, owner, record, ended, _Grounds(by, proof), now)
        for key in ended:
            log.info("key ended kid=%s reason=%s by=%s", make_kid(owner, key.thumbprint), reason.value, dict(by))
        return ended

    def _retire(
        self, connection: Connection, owner: str, ended: list[KeyRecord], grounds: "_Grounds", now: int
    ) -> None:
        for key in ended:
            kid = make_kid(owner, key.thumbprint)
            [entry] = append(connection, now, Change(KEY_RETIRED, key.service, kid, grounds.by, grounds.proof))
            keys.retire(connection, key.thumbprint, now)
            services.changed(connection, key.service, entry.seq)

    def _revoke(
        self,
        connection: Connection,
        owner: str,
        cause: KeyRecord,
        ended: list[KeyRecord],
        grounds: "_Grounds",
        now: int,
    ) -> None:
        if not ended:
            return
        data = {"reason": Reason.COMPROMISED.value, "cause": make_kid(owner, cause.thumbprint)}
        kids = [make_kid(owner, key.thumbprint) for key in ended]
        changes = [Change(KEY_REVOKED, cause.service, kid, grounds.by, grounds.proof, data) for kid in kids]
        entries = append(connection, now, *changes)
        for key, entry in zip(ended, entries, strict=True):
            keys.revoke(connection, key.thumbprint, now, entry.seq)
        services.changed(connection, cause.service, entries[-1].seq)
