"""Which foreign trust domains the own services may believe: how operators read and change it."""

import logging
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.documents.federation import Federation
from peerseal.protocol.ledger.entries import FEDERATION_SET, Entry
from peerseal.protocol.names import REGISTRY
from registry.domain.errors import LedgerContradicted, PreconditionFailed
from registry.domain.federation import Believed, Version, believed_since, federation_from
from registry.services.documents.policies import Setting
from registry.services.use_case import Node, UseCase
from registry.storage.queries import audit, documents, services
from registry.storage.queries.ledger import Change

log = logging.getLogger(__name__)

LOOKED_BACK: Final = 50
"""Entries before the one in force that `Federations.believed` reads, at most."""


class ReadFederation(NamedTuple):
    """The federation, and the entry that set it; an empty one, and None, where none did."""

    setting: Setting[Federation]
    entry: Entry | None


class BelievedNow(NamedTuple):
    """The federation in force, and since when each of its registries is believed."""

    setting: Setting[Federation]
    registries: list[Believed]


class Federations(UseCase):
    """Reads and changes the federation. A change names the entry that the operator saw, so of two operators at the same
    time one is refused."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._believed: tuple[Entry, BelievedNow] | None = None

    def current(self) -> Setting[Federation]:
        """The federation in force. Raises LedgerContradicted, StorageUnavailable."""
        with self._store.read() as connection:
            return read_federation(connection, self._authority.in_force().domain).setting

    def believed(self) -> BelievedNow:
        """The federation in force, with its times, as far as the entries say that were looked at. They are read once
        for each change. Raises LedgerContradicted, StorageUnavailable."""
        domain = self._authority.in_force().domain
        with self._store.read() as connection:
            newest = read_federation(connection, domain)
            if newest.entry is None:
                return BelievedNow(newest.setting, [])
            if (known := self._believed) is not None and known[0] == newest.entry:
                return known[1]
            earlier, complete = _earlier_versions(connection, newest.entry.seq, domain)
        versions = [_version(newest.entry, domain), *earlier]
        found = BelievedNow(newest.setting, believed_since(versions, complete=complete))
        self._believed = newest.entry, found
        return found

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


def _version(entry: Entry, domain: str) -> Version:
    """Raises MalformedToken, InvalidName or KeyError for an altered entry."""
    return Version(entry.seq, entry.time, Federation.from_json(entry.data["federation"], domain))


def _earlier_versions(connection: Connection, below: int, domain: str) -> tuple[list[Version], bool]:
    """The versions before entry ``below``, the newest first, and whether these are all. An altered one ends them."""
    found: list[Version] = []
    bodies = documents.federation_bodies(connection, below, LOOKED_BACK + 1)
    try:
        for body in bodies[:LOOKED_BACK]:
            found.append(_version(Entry.decode(body), domain))
    except (MalformedToken, InvalidName, KeyError) as error:
        log.warning("the federation of an entry before %d cannot be read: %s", below, error)
        return found, False
    return found, len(bodies) <= LOOKED_BACK


def read_federation(connection: Connection, domain: str) -> ReadFederation:
    """The federation of the registry of that trust domain. Raises LedgerContradicted for an altered entry."""
    try:
        entry = documents.newest_federation_entry(connection)
        if entry is None:
            return ReadFederation(Setting(0, Federation()), None)
        return ReadFederation(Setting(entry.seq, Federation.from_json(entry.data["federation"], domain)), entry)
    except (MalformedToken, InvalidName, KeyError) as error:
        raise LedgerContradicted(f"the federation: an entry was altered: {error}") from error
