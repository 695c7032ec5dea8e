"""Which foreign trust domains the own services may believe: how operators read and change it."""

import logging
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.documents.federation import Federation
from peerseal.protocol.ledger.entries import FEDERATION_SET, Entry
from peerseal.protocol.names import REGISTRY
from registry.domain.errors import LedgerContradicted, PreconditionFailed
from registry.domain.federation import federation_from
from registry.services.documents.policies import Setting
from registry.services.use_case import UseCase
from registry.storage.queries import audit, documents, services
from registry.storage.queries.ledger import Change

log = logging.getLogger(__name__)


class ReadFederation(NamedTuple):
    """The federation, and the entry that set it; an empty one, and None, where none did."""

    setting: Setting[Federation]
    entry: Entry | None


class Federations(UseCase):
    """Reads and changes the federation. A change names the entry that the operator saw, so of two operators at the same
    time one is refused."""

    def current(self) -> Setting[Federation]:
        """The federation in force. Raises LedgerContradicted, StorageUnavailable."""
        with self._store.read() as connection:
            return read_federation(connection, self._authority.current().domain).setting

    def replace(self, body: Mapping[str, Any], seen: Collection[int], by: Mapping[str, str]) -> Setting[Federation]:
        """Replaces the federation that one of the entries ``seen`` set by ``body``
        (`registry.domain.federation.federation_from`), and returns the new one. One that is in force already is left as
        it is. Raises BadRequest, PreconditionFailed, LedgerContradicted, StorageUnavailable."""
        authority = self._authority.current()
        domain, new = authority.domain, federation_from(body, authority.domain, authority.keys.root.thumbprint)
        change = Change(FEDERATION_SET, by=by, data={"federation": new.to_json()})
        with self._store.write(REGISTRY) as connection:
            found = read_federation(connection, domain).setting
            if found.seq not in seen:
                raise PreconditionFailed(f"entry {found.seq} set the federation, the request names {sorted(seen)}")
            if found.value == new:
                return found
            seq = audit.append_act(connection, self._now(), change, domain).entry.seq
            services.changed(connection, REGISTRY, seq)
        log.info("federation set seq=%d by=%s", seq, dict(by))
        return Setting(seq, new)


def read_federation(connection: Connection, domain: str) -> ReadFederation:
    """The federation of the registry of that trust domain. Raises LedgerContradicted for an altered entry."""
    try:
        entry = documents.newest_federation_entry(connection)
        if entry is None:
            return ReadFederation(Setting(0, Federation()), None)
        return ReadFederation(Setting(entry.seq, Federation.from_json(entry.data["federation"], domain)), entry)
    except (MalformedToken, InvalidName, KeyError) as error:
        raise LedgerContradicted(f"the federation: an entry was altered: {error}") from error
