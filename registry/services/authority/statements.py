"""The root's statements about lost entries, read from the ledger in the database."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping

from sqlalchemy import Connection

from peerseal.errors import DocumentRefused
from peerseal.protocol.documents.history_statement import Head, HistoryStatement, excused_by, signed_histories
from peerseal.protocol.documents.registry_keys import read_registry_keys
from peerseal.protocol.ledger.entries import HISTORY_DECLARED, Entry
from peerseal.protocol.ledger.merkle import frontier_at, leaf_hash
from peerseal.protocol.tokens.claims import LEEWAY
from registry.services.documents.tile_cache import TileCache
from registry.storage.queries import documents, ledger

log = logging.getLogger(__name__)

Entries = Callable[[int, int], Iterable[bytes]]
"""Reads the entries of a ledger from one index up to, and without, another. Raises FetchError."""


def statements(connection: Connection, now: float) -> Mapping[str, HistoryStatement]:
    """The statements that the root in force signed, by their compact JWS, oldest first. The root's own document must be
    valid; the statements of others are skipped."""
    jws, appended = documents.registry_keys(connection), ledger.histories(connection)
    if jws is None or not appended:
        return {}
    try:
        keys = read_registry_keys(jws, pin=None, now=now)
    except DocumentRefused as error:
        _log_skipped(error)
        return {}
    return signed_histories(appended, keys.root, domain=keys.subject, now=now, refused=_log_skipped)


def _log_skipped(error: DocumentRefused) -> None:
    log.error("a statement about a new history is skipped (%s): %s", error.code, error)


def given_up(connection: Connection, head: Head, entries: Entries, now: float) -> Head | None:
    """The head from which the ledger goes on, if the root gave up the history with the head ``head``, which a witness
    shows; otherwise None. The witness does not say when ``head`` was signed: it was signed after each statement that is
    among its own ``entries``.

    Raises FetchError where the entries cannot be fetched, and DocumentRefused where they do not lead to that head.
    """
    found = statements(connection, now)
    about = [one for one in found.values() if one.excuses(head, 0)]
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
