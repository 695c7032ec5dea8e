"""Reads a registry's ledger from outside. It trusts the pinned root key and nothing else.

The root names the ledger keys, one of these signs each checkpoint, and the tree is computed here from the entries
themselves. So a reader that comes from one checkpoint to the next has proven that the second extends the first.

Entries and tiles are not signed: where they do not lead to a checkpoint, they may be damaged. So the ledger counts as
rewritten only where nodes that do lead to the checkpoint show another root for a size that was seen.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from peerseal.errors import DocumentRefused, FetchError, MalformedToken
from peerseal.protocol.documents.history_statement import (
    MAX_HISTORY_BYTES,
    Continuation,
    Head,
    excused_by,
    signed_histories,
)
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH, RegistryKeys, read_registry_keys
from peerseal.protocol.ledger.checkpoint import (
    CHECKPOINT_PATH,
    MAX_NOTE_BYTES,
    TILE_WIDTH,
    Checkpoint,
    decode_bundle,
    tile_path,
    verify_checkpoint,
)
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.ledger.merkle import Frontier, NodeReader, earlier_root, leaf_hash
from peerseal.transport.fetch import Answer, Fetcher, no_larger_than
from peerseal.trust.replaced_ledger import PATH as HISTORY
from peerseal.trust.replaced_ledger import statements_in
from peerseal.trust.tile_proofs import nodes_from_tiles

T = TypeVar("T")

TELLS_OF_A_LOSS: Final = ("document_inconsistent", "document_rolled_back")
"""The codes of refusals after which the root may have declared that the ledger that was seen is lost."""

MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + 0xFFFF)
"""Bytes of a bundle of the largest entries that there may be."""
ROOT_REFRESH = 3600.0
"""Seconds after which the root's document is fetched again. A checkpoint by an unknown key has it fetched at once."""


@dataclass(frozen=True, slots=True)
class LedgerUpdate:
    """What is new up to a checkpoint: the right edge of the tree, those new entries that the caller wanted, and the
    signed checkpoint. The checkpoint is empty where it is older than the ledger that was seen before."""

    edge: Frontier
    entries: tuple[Entry, ...] = ()
    note: str = ""


class LedgerReader:
    """Reads what is new in the ledger. It keeps the root's document only; the caller keeps its place in the ledger."""

    def __init__(self, fetcher: Fetcher, pin: str | None, clock: Callable[[], float] = time.time) -> None:
        """Without a ``pin`` the first root key is believed, which is for loopback only."""
        self._fetcher = fetcher
        self._pin = pin
        self._clock = clock
        self._keys: RegistryKeys | None = None
        self._fetched_at = 0.0

    @property
    def pin(self) -> str | None:
        """The root key's thumbprint, once it is known."""
        return self._pin

    def domain(self) -> str:
        """The trust domain. Raises FetchError or DocumentRefused."""
        return self._registry_keys().subject

    def read(
        self,
        seen: Frontier,
        wanted: Callable[[Entry], bool],
        through: Sequence[Head] = (),
        held: NodeReader | None = None,
    ) -> LedgerUpdate:
        """The entries after ``seen`` up to the newest checkpoint. The ledger must pass through the heads ``through``.
        ``held`` reads nodes of the tree at ``seen``, where the caller has them.

        Raises FetchError where the registry does not answer completely. Raises DocumentRefused with
        ``document_inconsistent`` where a signed checkpoint contradicts ``seen``; with ``document_rolled_back`` for an
        older checkpoint, and ``document_not_in_ledger`` for entries, that nothing proves nor contradicts: a later
        answer may; and with other codes for a checkpoint or a root's document that cannot be believed.
        """
        checkpoint, note = self._checkpoint(seen.size)
        if checkpoint.size < seen.size:
            self._check_older(checkpoint, seen, held)
            return LedgerUpdate(seen)
        if checkpoint.size == seen.size and checkpoint.root != seen.root:
            raise _inconsistent(Head(seen.size, seen.root), checkpoint)
        try:
            edge, passed, entries = self._read_on(seen, checkpoint, wanted, {head.size for head in through})
        except DocumentRefused:
            if self._shows_another(Head(seen.size, seen.root), checkpoint):
                raise _inconsistent(Head(seen.size, seen.root), checkpoint) from None
            raise
        for head in through:
            if head.size not in passed:
                raise FetchError(f"the ledger has {edge.size} entries, and the root declared {head.size}")
            if passed[head.size] != head.root:
                raise _inconsistent(head, checkpoint)
        return LedgerUpdate(edge, entries, note)

    def excused(self, seen: Frontier, seen_at: float) -> Continuation | None:
        """Where a reader goes on that saw this edge at that time (seconds since the epoch), if the root declared the
        edge lost. None where the root did not, or where its statements cannot be fetched."""
        try:
            keys = self._registry_keys()
            statements = self._fetch(HISTORY, MAX_HISTORY_BYTES, statements_in)
        except (DocumentRefused, FetchError):
            return None
        found = signed_histories(statements, keys.root, domain=keys.subject, now=self._clock())
        return excused_by(found.values(), Head(seen.size, seen.root), seen_at)

    def _registry_keys(self, *, again: bool = False) -> RegistryKeys:
        now = self._clock()
        if self._keys is None or again or not 0 <= now - self._fetched_at < ROOT_REFRESH:
            keys = self._fetch(REGISTRY_KEYS_PATH, RegistryKeys.MAX_SIZE, self._read_registry_keys)
            self._keys, self._fetched_at, self._pin = keys, now, keys.root.thumbprint
        return self._keys

    def _read_registry_keys(self, body: bytes) -> RegistryKeys:
        keys = read_registry_keys(body.decode("ascii", "replace"), pin=self._pin, now=self._clock())
        if self._keys is not None and keys.version < self._keys.version:
            raise DocumentRefused("document_rolled_back", "an older root document than the one seen before")
        return keys

    def _checkpoint(self, seen: int) -> tuple[Checkpoint, str]:
        """The first checkpoint of ``seen`` entries or more, else the largest; and its signed note. A signer that is
        unknown may stand in a newer root's document."""
        try:
            return self._signed_checkpoint(self._registry_keys(), seen)
        except DocumentRefused as error:
            if error.code != "document_unknown_signer":
                raise
        return self._signed_checkpoint(self._registry_keys(again=True), seen)

    def _signed_checkpoint(self, keys: RegistryKeys, seen: int) -> tuple[Checkpoint, str]:
        older = list[tuple[Checkpoint, str]]()

        def read(body: bytes) -> tuple[Checkpoint, str]:
            note = body.decode("utf-8", "replace")
            found = verify_checkpoint(note, keys.subject, keys.ledger_keys)
            if found.size < seen:
                older.append((found, note))
                raise _late(found, seen)  # the next URL may have a newer one
            return found, note

        try:
            return self._fetch(CHECKPOINT_PATH, MAX_NOTE_BYTES, read)
        except DocumentRefused as error:
            if error.code != "document_rolled_back":
                raise
        return max(older, key=lambda each: each[0].size)

    def _check_older(self, found: Checkpoint, seen: Frontier, held: NodeReader | None) -> None:
        """Passes a checkpoint of an earlier size of the ledger that was seen: a mirror may be late. The registry that
        could prove it may be down, so what is known here decides. Raises DocumentRefused where that does not suffice,
        or shows another ledger."""
        known = _earlier_head(seen, found.size, held)
        if self._shows_another(known, found):
            raise _inconsistent(known, found)
        if known.size < found.size:
            raise _late(found, seen.size)

    def _shows_another(self, known: Head, found: Checkpoint) -> bool:
        """Whether the tree of the checkpoint has another root at the size of the known head, shown by nodes that lead
        to the checkpoint."""
        if known.size == 0:
            return False
        try:
            tiles = nodes_from_tiles(self._fetcher, found.size)
            return earlier_root(known.size, found.size, found.root, tiles) != known.root
        except (DocumentRefused, FetchError):  # there are none
            return known.size == found.size and known.root != found.root

    def _read_on(
        self, seen: Frontier, checkpoint: Checkpoint, wanted: Callable[[Entry], bool], sizes: set[int]
    ) -> tuple[Frontier, dict[int, bytes], tuple[Entry, ...]]:
        """The edge at the checkpoint, the roots at those of the ``sizes`` that come after ``seen``, and the wanted
        entries. Raises FetchError, or DocumentRefused with ``document_not_in_ledger``."""
        edge, passed, found, unreadable = seen, dict[int, bytes](), list[Entry](), list[DocumentRefused]()

        def get(path: str) -> bytes:
            return self._fetch(path, MAX_BUNDLE_BYTES, partial(_checked_bundle, edge, checkpoint))

        for body in entry_bodies(get, seen.size, checkpoint.size):
            edge = edge.appended(leaf_hash(body))
            if edge.size in sizes:
                passed[edge.size] = edge.root
            try:
                entry = _decoded(body, edge.size)
            except DocumentRefused as error:
                unreadable.append(error)
            else:
                found += [entry] if wanted(entry) else []
        if unreadable:  # the ledger's own: its checkpoint covers them
            raise unreadable[0]
        return edge, passed, tuple(found)

    def _fetch(self, path: str, size: int, read: Callable[[bytes], T]) -> T:
        """The first answer of the registry's URLs that ``read`` does not refuse, of ``size`` bytes at most."""
        with no_larger_than(size):
            found = self._fetcher.ask(path, lambda answer: read(_body(answer, path)))
        if found is None:
            raise AssertionError("unreachable: no answer says that there is nothing new")
        return found


def _body(answer: Answer, path: str) -> bytes:
    if answer.status != 200:
        raise FetchError(f"GET {path}: status {answer.status}", answer.status)
    return answer.body


def entry_bodies(get: Callable[[str], bytes], begin: int, end: int) -> Iterator[bytes]:
    """The entries from index ``begin`` to before ``end``, bundle by bundle. ``get`` fetches a path. A full bundle may
    have replaced the partial one that is asked for (C2SP tlog-tiles).

    Raises FetchError for a bundle that is missing or incomplete.
    """
    for number in range(begin // TILE_WIDTH, -(-end // TILE_WIDTH) if end > begin else 0):
        first = number * TILE_WIDTH
        width = min(TILE_WIDTH, end - first)
        yield from _bundle(get, number, width)[max(begin - first, 0) :]


def _bundle(get: Callable[[str], bytes], number: int, width: int) -> Sequence[bytes]:
    try:
        found = get(f"/ledger/{tile_path('entries', number, width)}")
    except FetchError as error:
        if error.http_status != 404 or width == TILE_WIDTH:
            raise
        found = get(f"/ledger/{tile_path('entries', number)}")
    return _complete(found, number, width)


def _complete(bundle: bytes, number: int, width: int) -> Sequence[bytes]:
    """The first entries of a bundle, as many as asked for. Raises FetchError."""
    try:
        entries = decode_bundle(bundle)[:width]
    except DocumentRefused as error:
        raise FetchError(f"bundle {number} breaks off", 200) from error
    if len(entries) != width:
        raise FetchError(f"bundle {number} has {len(entries)} entries, not {width}", 200)
    return entries


def _checked_bundle(edge: Frontier, checkpoint: Checkpoint, bundle: bytes) -> bytes:
    """The bundle that continues the edge. The last one must lead to the checkpoint, while other URLs can be asked for
    it. Raises FetchError, or DocumentRefused with ``document_not_in_ledger``."""
    number = edge.size // TILE_WIDTH
    first = number * TILE_WIDTH
    width = min(TILE_WIDTH, checkpoint.size - first)
    entries, end = _complete(bundle, number, width), edge
    if first + width == checkpoint.size:
        for body in entries[edge.size - first :]:
            end = end.appended(leaf_hash(body))
        if end.root != checkpoint.root:
            detail = f"the entries after {edge.size} do not lead to the checkpoint at {checkpoint.size}"
            raise DocumentRefused("document_not_in_ledger", f"{detail}: a file of a mirror may be damaged")
    return bundle


def _decoded(body: bytes, seq: int) -> Entry:
    try:
        entry = Entry.decode(body)
    except MalformedToken as error:
        raise DocumentRefused("document_malformed", f"entry {seq} cannot be read: {error}") from error
    if any(type(value) is not str for value in entry.by.values()):
        raise DocumentRefused("document_malformed", f"entry {seq} cannot be read: its `by` holds other than text")
    if entry.seq != seq:
        raise DocumentRefused("document_malformed", f"entry {seq} is numbered {entry.seq}")
    return entry


def _earlier_head(seen: Frontier, size: int, held: NodeReader | None) -> Head:
    """The head of the ledger that was seen at that smaller size, by the nodes that are held; else, or where these are
    damaged, the head at the largest size below it that the edge alone determines."""
    if held is not None and size:
        try:
            return Head(size, earlier_root(size, seen.size, seen.root, held))
        except (DocumentRefused, FetchError):
            pass
    edge = seen.within(size)
    return Head(edge.size, edge.root)


def _late(found: Checkpoint, seen: int) -> DocumentRefused:
    detail = f"its checkpoint has {found.size} entries, and {seen} were seen"
    return DocumentRefused("document_rolled_back", f"{detail}: a mirror is late, or the registry lost entries")


def _inconsistent(known: Head, found: Checkpoint) -> DocumentRefused:
    shown = f"its checkpoint at {found.size} entries contradicts the root hash at {known.size} that is known"
    return DocumentRefused("document_inconsistent", f"the ledger was rewritten, or two are shown: {shown}")
