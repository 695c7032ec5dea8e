"""The root's statements about lost entries, as the ledger in the database holds them."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping

from sqlalchemy import Connection

from peerseal.errors import DocumentRefused
from peerseal.protocol.documents.history_statement import Head, HistoryStatement, excused_by, read_history
from peerseal.protocol.documents.registry_keys import read_registry_keys
from peerseal.protocol.ledger.entries import HISTORY_DECLARED, Entry
from peerseal.protocol.ledger.merkle import frontier_at, leaf_hash
from peerseal.protocol.tokens.claims import LEEWAY
from registry.services.documents.tile_cache import TileCache
from registry.storage.queries import documents, ledger

log = logging.getLogger(__name__)

Entries = Callable[[int, int], Iterable[bytes]]
"""Reads the entries of a ledger from one index to before another. Raises FetchError."""


def statements(connection: Connection, now: float) -> Mapping[str, HistoryStatement]:
    """Those that the root in force signed, by their compact JWS, oldest first. Whoever took over a node may append
    others: they are passed over."""
    jws, found = documents.newest(connection), dict[str, HistoryStatement]()
    for statement in ledger.histories(connection) if jws is not None else ():
        try:
            keys = read_registry_keys(jws or "", pin=None, now=now)
            found[statement] = read_history(statement, keys.root, domain=keys.subject, now=now)
        except DocumentRefused as error:
            log.error("a statement about a new history is passed over (%s): %s", error.code, error)
    return found


def given_up(connection: Connection, head: Head, entries: Entries, now: float) -> Head | None:
    """The head from which the ledger goes on, where the root gave up the history of which somebody outside shows
    ``head``; None where it did not. Nobody says when that head was signed: it came after each statement that is among
    its own ``entries``.

    Raises FetchError where these cannot be had, and DocumentRefused where they do not lead to that head.
    """
    found = statements(connection, now)
    about = [one for one in found.values() if one.covers(head, 0)]
    told: Collection[str] = ()
    if about and all(one.lost != head for one in about):
        common = min((one.common for one in about), key=lambda one: one.size)
        told = _statements_among(connection, common, head, entries)
    after = max((found[jws].issued_at + LEEWAY + 1 for jws in found.keys() & told), default=0)
    excused = excused_by(found.values(), head, after)
    return None if excused is None else excused.new


def _statements_among(connection: Connection, common: Head, head: Head, entries: Entries) -> Collection[str]:
    edge, found = frontier_at(common.size, TileCache().reader(connection)), list[str]()
    for body in entries(common.size, head.size):
        edge, entry = edge.appended(leaf_hash(body)), Entry.decode(body)
        if entry.type == HISTORY_DECLARED:
            found.append(str(entry.data.get("statement")))
    if edge.root != head.root:
        raise DocumentRefused("document_inconsistent", f"its entries do not lead to its checkpoint at {head.size}")
    return found
