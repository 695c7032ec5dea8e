"""Follows a registry's ledger from outside, believing nothing but the pinned root key.

The root names the ledger keys, one of these signs each checkpoint, and the tree is computed here from the entries
themselves. So whoever is at one checkpoint and reaches the next has proven that the one extends the other.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from peerseal.errors import DocumentRefused, FetchError, MalformedToken
from peerseal.protocol.documents.history_statement import MAX_HISTORY_BYTES, Excused, Head, excused_by, signed_histories
from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.ledger.checkpoint import (
    MAX_NOTE_BYTES,
    MAX_PROOF_BYTES,
    TILE_WIDTH,
    Checkpoint,
    decode_bundle,
    decode_proof,
    read_checkpoint,
    tile_path,
)
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.ledger.merkle import Frontier, check_consistency, leaf_hash
from peerseal.transport.fetch import Answer, Fetcher, no_larger_than
from peerseal.trust.new_history import PATH as HISTORY
from peerseal.trust.new_history import statements_in

T = TypeVar("T")

ROOT_DOCUMENT = "/.well-known/peerseal-registry"
CHECKPOINT = "/ledger/checkpoint"
MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + 0xFFFF)
"""Bytes of a bundle of the largest entries that there may be."""
ROOT_REFRESH = 3600.0
"""Seconds after which the root's document is fetched again; an unknown signer has it fetched at once."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The ledger up to a checkpoint: its right edge, of the entries that were new those that were asked for, and the
    checkpoint as it was signed, which is empty where it is older than what was seen before."""

    edge: Frontier
    entries: tuple[Entry, ...] = ()
    note: str = ""


class Follower:
    """Reads what is new. It keeps the root's document and nothing else: where it is in the ledger its caller knows."""

    def __init__(self, fetcher: Fetcher, pin: str | None, clock: Callable[[], float] = time.time) -> None:
        """With no ``pin`` the root that is seen first is believed, which is for loopback only."""
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

    def read(self, seen: Frontier, wanted: Callable[[Entry], bool], through: Sequence[Head] = ()) -> Seen:
        """What came behind ``seen``, up to the newest checkpoint, by way of the heads ``through``.

        Raises FetchError where the registry does not answer, or not whole; DocumentRefused with
        ``document_inconsistent`` where the ledger is not the one that was seen before, and with other codes for a
        checkpoint or a root's document that is not to be believed.
        """
        checkpoint, note = self._checkpoint()
        if checkpoint.size < seen.size:
            self._check_only_stale(checkpoint, seen)
            return Seen(seen)
        edge, found, ahead = seen, list[Entry](), {head.size: head.root for head in through}
        for body in bodies(self._get, seen.size, checkpoint.size):
            edge = edge.appended(leaf_hash(body))
            if ahead.pop(edge.size, edge.root) != edge.root:
                raise _inconsistent(f"it has another root hash at {edge.size} entries than the root said")
            entry = _decoded(body, edge.size)
            if wanted(entry):
                found.append(entry)
        if edge.root != checkpoint.root:
            raise _inconsistent(f"its entries do not lead from {seen.size} to its checkpoint at {edge.size}")
        if ahead:
            raise FetchError(f"the ledger has {edge.size} entries, and by the root's word {max(ahead)}")
        return Seen(edge, tuple(found), note)

    def given_up(self, seen: Frontier, seen_at: float) -> Excused | None:
        """Where to go on for those who saw that edge at that time (seconds since the epoch), once the root declared it
        lost; None where it did not, or where its word cannot be had."""
        try:
            keys = self._registry_keys()
            told = self._asked(HISTORY, MAX_HISTORY_BYTES, statements_in)
        except (DocumentRefused, FetchError):
            return None
        found = signed_histories(told, keys.root, domain=keys.subject, now=self._clock())
        return excused_by(found.values(), Head(seen.size, seen.root), seen_at)

    def _registry_keys(self, *, anew: bool = False) -> RegistryKeys:
        now = self._clock()
        if self._keys is None or anew or not 0 <= now - self._fetched_at < ROOT_REFRESH:
            keys = self._asked(ROOT_DOCUMENT, RegistryKeys.MAX_SIZE, self._read_registry_keys)
            self._keys, self._fetched_at, self._pin = keys, now, keys.root.thumbprint
        return self._keys

    def _read_registry_keys(self, body: bytes) -> RegistryKeys:
        keys = read_registry_keys(body.decode("ascii", "replace"), pin=self._pin, now=self._clock())
        if self._keys is not None and keys.version < self._keys.version:
            raise DocumentRefused("document_rolled_back", "an older root document than the one seen before")
        return keys

    def _checkpoint(self) -> tuple[Checkpoint, str]:
        """The newest one, and as it was signed. Of an unknown signer the root may have said something since."""
        keys = self._registry_keys()

        def read(body: bytes) -> tuple[Checkpoint, str]:
            note = body.decode("utf-8", "replace")
            return read_checkpoint(note, keys.subject, keys.ledger_keys), note

        try:
            return self._asked(CHECKPOINT, MAX_NOTE_BYTES, read)
        except DocumentRefused as error:
            if error.code != "document_unknown_signer":
                raise
        keys = self._registry_keys(anew=True)
        return self._asked(CHECKPOINT, MAX_NOTE_BYTES, read)

    def _check_only_stale(self, checkpoint: Checkpoint, seen: Frontier) -> None:
        """Passes an old checkpoint of the ledger that was seen, as a mirror may have it."""
        with no_larger_than(MAX_PROOF_BYTES):
            answer = self._fetcher.call("GET", f"/ledger/proof?from={checkpoint.size}&to={seen.size}")
        if checkpoint.size == 0 or answer.status != 200:
            raise _inconsistent(f"it has {checkpoint.size} entries, and had {seen.size}")
        try:
            proof = decode_proof(strict_json_object(answer.body).get("proof"))
        except MalformedToken as error:
            raise FetchError("an answer that is no proof") from error
        check_consistency(checkpoint.size, checkpoint.root, seen.size, seen.root, proof)

    def _asked(self, path: str, size: int, read: Callable[[bytes], T]) -> T:
        """What is read of the first URL whose answer, of so many bytes at most, is not refused."""
        with no_larger_than(size):
            found = self._fetcher.ask(path, lambda answer: read(_body(answer, path)))
        if found is None:
            raise AssertionError("unreachable: no answer says that there is nothing new")
        return found

    def _get(self, path: str) -> bytes:
        return self._asked(path, MAX_BUNDLE_BYTES, bytes)


def _body(answer: Answer, path: str) -> bytes:
    if answer.status != 200:
        raise FetchError(f"GET {path}: status {answer.status}", answer.status)
    return answer.body


def bodies(get: Callable[[str], bytes], begin: int, end: int) -> Iterator[bytes]:
    """The entries from index ``begin`` to before ``end``, bundle by bundle, out of what ``get`` finds under a path. A
    bundle that has become full since may be there in the place of the part that is asked for (C2SP tlog-tiles).

    Raises FetchError where one is missing, or not whole.
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
    return DocumentRefused("document_inconsistent", f"the ledger was rewritten, or another one is shown: {detail}")
