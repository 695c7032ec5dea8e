"""Reads a registry's ledger from outside. It trusts the pinned root key and nothing else.

The root names the ledger keys, one of these signs each checkpoint, and the tree is computed here from the entries
themselves. So a reader that comes from one checkpoint to the next has proven that the second extends the first.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from peerseal.errors import DocumentRefused, FetchError, MalformedToken
from peerseal.protocol.documents.history_statement import (
    MAX_HISTORY_BYTES,
    Continuation,
    Head,
    excused_by,
    signed_histories,
)
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH, RegistryKeys, read_registry_keys
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.ledger.checkpoint import (
    CHECKPOINT_PATH,
    MAX_NOTE_BYTES,
    MAX_PROOF_BYTES,
    TILE_WIDTH,
    Checkpoint,
    decode_bundle,
    decode_proof,
    tile_path,
    verify_checkpoint,
)
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.ledger.merkle import Frontier, check_consistency, leaf_hash
from peerseal.transport.fetch import Answer, Fetcher, no_larger_than
from peerseal.trust.replaced_ledger import PATH as HISTORY
from peerseal.trust.replaced_ledger import statements_in

T = TypeVar("T")

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

    def read(self, seen: Frontier, wanted: Callable[[Entry], bool], through: Sequence[Head] = ()) -> LedgerUpdate:
        """The entries after ``seen`` up to the newest checkpoint. The ledger must pass through the heads ``through``.

        Raises FetchError where the registry does not answer completely. Raises DocumentRefused with
        ``document_inconsistent`` where the ledger does not extend ``seen``, and with other codes for a checkpoint or a
        root's document that cannot be believed.
        """
        checkpoint, note = self._checkpoint()
        if checkpoint.size < seen.size:
            self._check_only_stale(checkpoint, seen)
            return LedgerUpdate(seen)
        edge, found, ahead = seen, list[Entry](), {head.size: head.root for head in through}
        for body in entry_bodies(self._get, seen.size, checkpoint.size):
            edge = edge.appended(leaf_hash(body))
            if ahead.pop(edge.size, edge.root) != edge.root:
                raise _inconsistent(f"it has another root hash at {edge.size} entries than the root said")
            entry = _decoded(body, edge.size)
            if wanted(entry):
                found.append(entry)
        if edge.root != checkpoint.root:
            raise _inconsistent(f"its entries do not lead from {seen.size} to its checkpoint at {edge.size}")
        if ahead:
            raise FetchError(f"the ledger has {edge.size} entries, and the root declared {max(ahead)}")
        return LedgerUpdate(edge, tuple(found), note)

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

    def _checkpoint(self) -> tuple[Checkpoint, str]:
        """The newest checkpoint, and its signed note. A signer that is unknown may stand in a newer root's document."""
        keys = self._registry_keys()

        def read(body: bytes) -> tuple[Checkpoint, str]:
            note = body.decode("utf-8", "replace")
            return verify_checkpoint(note, keys.subject, keys.ledger_keys), note

        try:
            return self._fetch(CHECKPOINT_PATH, MAX_NOTE_BYTES, read)
        except DocumentRefused as error:
            if error.code != "document_unknown_signer":
                raise
        keys = self._registry_keys(again=True)
        return self._fetch(CHECKPOINT_PATH, MAX_NOTE_BYTES, read)

    def _check_only_stale(self, checkpoint: Checkpoint, seen: Frontier) -> None:
        """Passes an old checkpoint of the ledger that was seen: a mirror may be late."""
        with no_larger_than(MAX_PROOF_BYTES):
            answer = self._fetcher.call("GET", f"/ledger/proof?from={checkpoint.size}&to={seen.size}")
        if checkpoint.size == 0 or answer.status != 200:
            raise _inconsistent(f"it has {checkpoint.size} entries, and had {seen.size}")
        try:
            proof = decode_proof(strict_json_object(answer.body).get("proof"))
        except MalformedToken as error:
            raise FetchError("an answer that is no proof") from error
        check_consistency(checkpoint.size, checkpoint.root, seen.size, seen.root, proof)

    def _fetch(self, path: str, size: int, read: Callable[[bytes], T]) -> T:
        """The first answer of the registry's URLs that ``read`` does not refuse, of ``size`` bytes at most."""
        with no_larger_than(size):
            found = self._fetcher.ask(path, lambda answer: read(_body(answer, path)))
        if found is None:
            raise AssertionError("unreachable: no answer says that there is nothing new")
        return found

    def _get(self, path: str) -> bytes:
        return self._fetch(path, MAX_BUNDLE_BYTES, bytes)


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
    try:
        entries = decode_bundle(found)[:width]
    except DocumentRefused as error:
        raise FetchError(f"bundle {number} breaks off", 200) from error
    if len(entries) != width:
        raise FetchError(f"bundle {number} has {len(entries)} entries, not {width}", 200)
    return entries


def _decoded(body: bytes, seq: int) -> Entry:
    try:
        entry = Entry.decode(body)
    except MalformedToken as error:
        raise _inconsistent(f"entry {seq} cannot be read") from error
    if any(type(value) is not str for value in entry.by.values()):
        raise _inconsistent(f"entry {seq} cannot be read")
    if entry.seq != seq:
        raise _inconsistent(f"entry {seq} is numbered {entry.seq}")
    return entry


def _inconsistent(detail: str) -> DocumentRefused:
    return DocumentRefused(
        "document_inconsistent", f"the ledger was rewritten, or the server shows a different one: {detail}"
    )
