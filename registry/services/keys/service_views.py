"""What people look at: services by name, one service with its newest keys and entries, and one key with its vouchers.

Each view reads a bounded number of rows by an index, however many services and keys there are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, NamedTuple

from sqlalchemy import Connection

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.names import check_service, check_thumbprint, make_kid, service_id
from registry.domain.errors import LedgerContradicted, NotFound
from registry.domain.keys import KeyRecord
from registry.services.use_case import UseCase
from registry.storage.queries import keys, ledger, services
from registry.storage.queries.keys import Instance
from registry.storage.queries.services import KEYS_COUNTED, ServiceSummary

ROWS: Final = 50
"""Services, or keys, on one page."""
ENTRIES: Final = 20
"""Recent entries of one service."""
VOUCHERS: Final = 1000
"""Vouchers of a key that are looked up: a host that rotates daily has as many after three years."""
NEAREST: Final = 10
"""Of these, those next to the key, which are shown."""

_BEGINNING = re.compile(r"[a-z0-9.-]{0,100}")
_AFTER_ALL = 2**63 - 1


class Found(NamedTuple):
    """A service, and its key if one was looked for."""

    service: str
    thumbprint: str | None = None


class KeyPage(NamedTuple):
    """Keys of a service, newest first, and the entry before which older ones were admitted; None at the end."""

    keys: Sequence[KeyRecord]
    older: int | None


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service, a page of its keys, and the newest entries about it, newest first. ``instances`` are the newest keys
    of its hosts. There may be more of them where the summary is not complete, too."""

    summary: ServiceSummary
    page: KeyPage
    instances: Sequence[Instance]
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key with the vouchers next to it, nearest first; ``between`` counts those between them and ``root``, the first
    key of the chain, which is None where ``vouchers`` reach it. ``whole`` is False where the chain is longer than
    VOUCHERS. ``vouched`` are keys that it vouched for itself, and ``more`` says whether there are others."""

    record: KeyRecord
    vouchers: Sequence[KeyRecord]
    between: int
    root: KeyRecord | None
    whole: bool
    vouched: Sequence[KeyRecord]
    more: bool


def _unknown(name: str) -> str:
    return (
        f"{name} never had a key or a policy. A policy may name callers that are not there yet; or is the name wrong?"
    )


class ServiceViews(UseCase):
    """Reads the views."""

    def find(self, text: str) -> Found | None:
        """The service or the key that has exactly this name, id, thumbprint or kid. Blanks do not count: people read
        thumbprints in groups."""
        text = "".join(text.split())
        domain = self._authority.in_force().domain
        with self._store.look() as connection:
            try:
                key = keys.find(connection, check_thumbprint(text.rpartition("/")[2]))
            except InvalidName:
                key = None
            if key is not None and text in (key.thumbprint, make_kid(service_id(domain, key.service), key.thumbprint)):
                return Found(key.service, key.thumbprint)
            try:
                summary = services.summary(connection, check_service(self._name(text)), self._now())
            except InvalidName:
                return None
        return None if summary is None else Found(summary.name)

    def services(self, after: str = "", beginning: str = "") -> tuple[Sequence[ServiceSummary], bool]:
        """A page of the services whose names have that beginning, after the name ``after``; and whether more follow."""
        beginning = self._name(beginning)
        if not _BEGINNING.fullmatch(beginning):
            return (), False
        with self._store.read() as connection:
            rows = services.summaries(connection, after or beginning, ROWS + 1, self._now(), inclusive=not after)
        # the order of names is the database's, and in each order those with one beginning follow one another
        found = list(takewhile(lambda row: row.name.startswith(beginning), rows))
        return found[:ROWS], len(found) > ROWS

    def service(self, name: str, thumbprint: str | None = None) -> ServiceView:
        """A service with its newest keys, or with that key and older ones where it is not among the newest. Raises
        InvalidName and NotFound, and LedgerContradicted for an altered entry."""
        check_service(name)
        with self._store.read() as connection:
            summary = services.summary(connection, name, self._now())
            if summary is None:
                raise NotFound("service_not_found", _unknown(name))
            page = _page(connection, name, _AFTER_ALL)
            if thumbprint is not None and all(key.thumbprint != thumbprint for key in page.keys):
                page = _page(connection, name, keys.of_service(connection, name, thumbprint).admitted_seq + 1)
            found = keys.instances(connection, name, self._now(), KEYS_COUNTED)
            return ServiceView(summary, page, found, _entries(connection, name))

    def keys(self, name: str, before: int = 0) -> KeyPage:
        """The keys of a service that entries before ``before`` admitted, or the newest (0). Raises InvalidName, and
        NotFound for a service that never had a key or a policy."""
        check_service(name)
        with self._store.read() as connection:
            if services.seq_of(connection, name) is None:
                raise NotFound("service_not_found", _unknown(name))
            return _page(connection, name, before or _AFTER_ALL)

    def key(self, service: str, thumbprint: str) -> KeyView:
        """One key. Raises InvalidName and NotFound."""
        check_service(service)
        with self._store.read() as connection:
            record = keys.of_service(connection, service, thumbprint)
            chain = keys.vouchers(connection, thumbprint, VOUCHERS)
            near = keys.some(connection, chain[:NEAREST])[::-1]  # a voucher was admitted before the key
            root = keys.find(connection, chain[-1]) if len(chain) > NEAREST else None
            vouched = keys.vouched_by(connection, thumbprint, ROWS + 1)
        between = max(len(chain) - NEAREST - 1, 0)
        whole, more = len(chain) < VOUCHERS, len(vouched) > ROWS
        return KeyView(record, near, between, root, whole, vouched[:ROWS], more)

    def _name(self, text: str) -> str:
        """A service's name, or its beginning, from a name or an id."""
        return text.lower().removeprefix(f"{self._authority.in_force().domain}/")


def _page(connection: Connection, service: str, before: int) -> KeyPage:
    found = keys.newest(connection, service, before, ROWS + 1)
    shown = found[:ROWS]
    return KeyPage(shown, shown[-1].admitted_seq if len(found) > ROWS else None)


def _entries(connection: Connection, service: str) -> Sequence[Entry]:
    try:
        return ledger.newest_about(connection, service, ENTRIES)
    except MalformedToken as error:
        raise LedgerContradicted(f"an entry about {service} was altered: {error}") from error
