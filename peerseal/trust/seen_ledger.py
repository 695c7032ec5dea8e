"""The newest state of the registry's ledger that a trust store has seen: each signed document is checked against it.

A document is believed only as part of one history. The keys in it are in the ledger, and its ledger must extend the
newest one that this store has seen, before a restart too, or be extended by it. So a client detects a registry that
shows it two histories, or a rewritten one.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peerseal.errors import AnswerTooLarge, ConfigurationError, DocumentRefused, FetchError, MalformedToken
from peerseal.protocol.documents.federation import FederationDocument
from peerseal.protocol.documents.history_statement import Head, HistoryStatement, excused_by
from peerseal.protocol.documents.key_set import ACTIVE, KeySetDocument, KeySetPart, ListedKey
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import natural, strict_json_object
from peerseal.protocol.ledger.checkpoint import (
    CHECKPOINT_PATH,
    MAX_NOTE_BYTES,
    MAX_PROOF_BYTES,
    Checkpoint,
    decode_proof,
    verify_checkpoint,
)
from peerseal.protocol.ledger.merkle import Proof, check_consistency, check_inclusion
from peerseal.protocol.names import split_service_id
from peerseal.runtime.bounded import BoundedDict
from peerseal.runtime.files import Folder, cache_folder
from peerseal.runtime.forks import in_each_child
from peerseal.transport.fetch import Answer, Fetcher, content, no_larger_than
from peerseal.trust.tile_proofs import proof_from_tiles

log = logging.getLogger("peerseal.trust")

_AGREED = 256
"""Checkpoints remembered as consistent with the newest, so that no proof is fetched for them again."""
_LOCK_WAIT = 0.5
"""Seconds to wait for another process. It needs microseconds; one that was stopped must not hold up others."""


OfferedProof = tuple[int, Proof | None]
"""The size of an earlier tree, and the proof that a later one begins with it."""


@dataclass(frozen=True, slots=True)
class SeenCheckpoint:
    """A checkpoint, the note that signs it, and when this host saw it (seconds since the epoch)."""

    checkpoint: Checkpoint
    note: str
    seen_at: float

    @property
    def head(self) -> Head:
        """The size and root hash of the ledger at this checkpoint."""
        return Head(self.checkpoint.size, self.checkpoint.root)


class SeenLedger:
    """The history that one store has seen. In ``cache_dir`` the newest checkpoint outlives the process. Safe to use
    from threads: none waits for a proof that another one fetches.

    After a history statement the new head is stored with the checkpoint, as text: its size, its root hash, and the time
    from which on everything counts as seen.
    """

    def __init__(
        self, fetcher: Callable[[], Fetcher], cache_dir: Path | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._fetcher = fetcher
        self._clock = clock
        self._history = self._history_on_file = ""
        self._folder = None if cache_dir is None else cache_folder(cache_dir)
        self._newest: SeenCheckpoint | None = None
        self._agreed = BoundedDict[int, bytes](_AGREED)
        self._on_file: SeenCheckpoint | None = None
        self._recalled = False
        self._memory_works = True
        self._lock = threading.Lock()
        in_each_child(self._renew_lock)

    def size(self, root: RegistryKeys) -> int:
        """Entries of the newest checkpoint seen, 0 where none was. Raises as `follow` does."""
        if not self._recalled:
            self._recall(root)
        return self._newest.checkpoint.size if self._newest else 0

    @property
    def newest(self) -> SeenCheckpoint | None:
        """The newest checkpoint in memory; another object after each change."""
        return self._newest

    def is_known(self, found: Checkpoint) -> bool:
        """Whether memory holds it as a checkpoint of the one history."""
        return self._agreed.get(found.size) == found.root

    def follow(self, found: Checkpoint, note: str, root: RegistryKeys, offered: OfferedProof | None = None) -> None:
        """Accept a checkpoint, whose signature was checked, as part of the one history; as the newest if it is larger.
        A proof that came along spares a call, where it is the one that is needed.

        Raises DocumentRefused (``document_inconsistent``), or FetchError where no proof of it can be had.
        """
        if self._agreed.get(found.size) == found.root:
            self._take_newer_signature(found, note, root)
            return
        self._recall(root)  # another process may have seen another history meanwhile
        if self._compare(SeenCheckpoint(found, note, self._seen_now()), offered) and not self._remember(root):
            self._recall(root)  # another process has written one meanwhile: compare the two, then write ours
            self._remember(root)

    def _seen_now(self) -> float:
        """The time now, and never earlier than that of a head that the root declared: what follows such a head counts
        as seen after it. Other heads do not count: the clock may have been ahead when they were seen."""
        declared_at = self._history.rpartition("-")[2]  # `adopt` writes size-root-time
        return max(self._clock(), float(natural(declared_at) or 0))

    def accept_copy(self, found: Checkpoint, note: str, root: RegistryKeys) -> None:
        """Accept the checkpoint of a copy on disk as part of the one history: it was compared before it was written,
        and no proof is fetched for it again. Raises as `follow` does."""
        if self._agreed.get(found.size) == found.root:
            return
        self._recall(root)
        newest = self._newest
        if newest is None or found.size >= newest.checkpoint.size:
            self.follow(found, note, root)
        else:
            with self._lock:
                self._agreed[found.size] = found.root

    def adopt(self, statements: Iterable[HistoryStatement], root: RegistryKeys, before: Callable[[], None]) -> bool:
        """Adopt another ledger, where the root says that the one that was seen is lost for good. Before that the
        registry must prove that its ledger begins with the declared head, and that head with the common part of both
        ledgers; then ``before`` is called. False where no statement is about the ledger that was seen.

        Raises DocumentRefused where the registry has a third ledger, or FetchError.
        """
        newest = self._newest
        excused = excused_by(statements, newest.head, newest.seen_at) if newest is not None else None
        if newest is None or excused is None:
            return False
        common, new = (Checkpoint(root.subject, head.size, head.root) for head in (excused.common, excused.new))
        found, note = self._current(root)
        if found.size < new.size:
            short = f"the ledger has {found.size} entries, and goes on from {new.size}"
            raise DocumentRefused("document_rolled_back", short)
        self._prove(common, new, None)
        self._prove(new, found, None)
        before()
        history = f"{new.size}-{new.root.hex()}-{excused.seen_at}"
        with self._lock:
            if self._newest is not newest:
                return False
            self._newest = SeenCheckpoint(found, note, max(self._clock(), float(excused.seen_at)))
            self._agreed = BoundedDict(_AGREED, {new.size: new.root, found.size: found.root})
            self._history = history
        lost = f"{newest.checkpoint.size} entries, root {newest.checkpoint.root.hex()}"
        log.warning("the root gave up the ledger that was seen (%s); it goes on from %s", lost, excused.new)
        self._replace(root)
        return True

    def _current(self, root: RegistryKeys) -> tuple[Checkpoint, str]:
        def read(answer: Answer) -> tuple[Checkpoint, str]:
            note = content(answer).decode("utf-8", "replace")
            return verify_checkpoint(note, root.subject, root.ledger_keys), note

        with no_larger_than(MAX_NOTE_BYTES):
            found = self._fetcher().ask(CHECKPOINT_PATH, read)
        if found is None:
            raise AssertionError("unreachable: no checkpoint says that there is nothing new")
        return found

    def _replace(self, root: RegistryKeys) -> None:
        """Put the newest checkpoint on disk in place of the one there."""
        file, newest = self._file(root), self._newest
        if file is None or newest is None:
            return
        try:
            with file.locked():
                file.replace(newest.note, newest.seen_at, self._history)
                self._on_file = newest
        except (OSError, ConfigurationError) as error:
            log.warning("%s cannot be written, a restart would bring the lost ledger back: %s", file.path, error)

    def forget_dropped_keys(self, root: RegistryKeys) -> None:
        """Forget the newest checkpoint if the root no longer names the ledger key that signed it: the key may have been
        stolen."""
        with self._lock:
            if self._newest is not None and _verified(self._newest.note, root) is None:
                log.warning("the newest checkpoint was signed by a ledger key that was dropped: it is forgotten")
                self._newest, self._agreed = None, BoundedDict(_AGREED)

    def _compare(self, found: SeenCheckpoint, offered: OfferedProof | None = None) -> bool:
        """Prove that it is of the same history, and return whether it is the newest now. Raises as `follow` does."""
        while True:
            newest = self._newest
            if newest is not None:
                old, new = sorted((newest.checkpoint, found.checkpoint), key=lambda checkpoint: checkpoint.size)
                fits = offered is not None and new is found.checkpoint and old.size == offered[0]
                self._prove(old, new, offered[1] if offered is not None and fits else None)
            with self._lock:
                if self._newest is not newest:
                    continue  # another thread replaced it meanwhile: the proof must be against the newest
                self._agreed[found.checkpoint.size] = found.checkpoint.root
                if newest is None or found.checkpoint.size > newest.checkpoint.size:
                    self._newest = found
                    return True
                return False

    def _prove(self, old: Checkpoint, new: Checkpoint, offered: Proof | None) -> None:
        """Passes where ``new`` continues ``old``: by the proof that came along, or one that is fetched. Raises
        DocumentRefused or FetchError."""
        try:
            if old.size in (0, new.size):
                check_consistency(old.size, old.root, new.size, new.root, ())
            elif offered is not None:
                check_consistency(old.size, old.root, new.size, new.root, offered)
            else:
                self.ask_for_proof(old, new)
        except DocumentRefused as error:
            if error.code == "document_inconsistent":
                seen = [f"{checkpoint.size} entries, root {checkpoint.root.hex()}" for checkpoint in (old, new)]
                log.error("two histories of the ledger of %s: %s; %s", old.origin, *seen)
            raise
        except FetchError as error:
            if error.http_status != 404:  # else taken for the answer that there is no such document
                raise
            shorter = f"the registry does not show that {new.size} entries begin with {old.size}"
            raise DocumentRefused("document_rolled_back", shorter) from error

    def ask_for_proof(self, old: Checkpoint, new: Checkpoint) -> None:
        """Passes where ``new`` continues ``old``, by the registry's proof, or by the tiles of a mirror, which has none.
        Raises DocumentRefused or FetchError."""

        def read(answer: Answer) -> bool:
            check_consistency(old.size, old.root, new.size, new.root, read_proof(answer, old.size, new.size))
            return True

        try:
            with no_larger_than(MAX_PROOF_BYTES):
                self._fetcher().ask(f"/ledger/proof?from={old.size}&to={new.size}", read)
        except FetchError as error:
            if error.http_status != 404:
                raise
            proof = proof_from_tiles(self._fetcher(), old.size, new.size)
            check_consistency(old.size, old.root, new.size, new.root, proof)

    def _take_newer_signature(self, found: Checkpoint, note: str, root: RegistryKeys) -> None:
        """After a rollover of the ledger's key, keep the newest checkpoint with the new key's signature: the old key
        will be dropped."""
        newest = self._newest
        if newest is None or newest.checkpoint != found or newest.note == note:
            return
        if _signed_by(note, root, (root.ledger_key,)) is not None:
            with self._lock:
                if self._newest is newest:
                    self._newest = SeenCheckpoint(found, note, newest.seen_at)
            self._remember(root)

    # ---- across restarts

    def _recall(self, root: RegistryKeys) -> None:
        """Take the checkpoint on disk into account. Raises as `follow` does: what is there and verifies is a history
        that was shown to this host."""
        kept = self._on_disk(root)
        new = kept is not None and self._agreed.get(kept.checkpoint.size) != kept.checkpoint.root
        if kept is not None and self._newest is None:
            self._history = self._history_on_file
        if kept is not None and new and not self._continued_by(kept) and self._compare(kept):
            self._on_file = kept
        self._recalled = True

    def _continued_by(self, kept: SeenCheckpoint) -> bool:
        """Continue with the checkpoint on disk where all that this process has seen was there before: the process that
        replaced it has compared the two (`_may_replace`), so that of many workers one fetches the proof."""
        with self._lock:
            newest = self._newest
            if newest is None or newest is not self._on_file or kept.checkpoint.size <= newest.checkpoint.size:
                return False
            if self._history != self._history_on_file:
                return False  # another ledger was adopted: this process has to check that itself
            self._agreed[kept.checkpoint.size] = kept.checkpoint.root
            self._newest = self._on_file = kept
            return True

    def _on_disk(self, root: RegistryKeys) -> SeenCheckpoint | None:
        """The checkpoint in the file. One that does not verify counts as none: a ledger key may have been dropped
        since, and a user who can damage the file can also remove it."""
        file = self._file(root)
        if file is None:
            return None
        try:
            note, seen_at, self._history_on_file = file.read()
        except (OSError, ConfigurationError) as error:
            log.warning("%s cannot be read: %s", file.path, error)
            return None
        if note is None:
            return None
        checkpoint = _verified(note, root)
        if checkpoint is None:
            log.warning("%s is ignored: no ledger key that the root names signed it", file.path)
            return None
        return SeenCheckpoint(checkpoint, note, seen_at)

    def _remember(self, root: RegistryKeys) -> bool:
        """Put the newest checkpoint on disk, unless a larger one is there. An error of the disk is not fatal. False
        if the checkpoint on disk must be compared first."""
        file, newest = self._file(root), self._newest
        if file is None or newest is None:
            return True
        try:
            with file.locked():
                kept = self._on_disk(root)
                passed = kept is None or self._may_replace(kept.checkpoint, newest.checkpoint)
                if passed:
                    file.replace(newest.note, newest.seen_at, self._history)
                    self._on_file = newest
            self._memory_works = True
            return passed or kept is None or kept.checkpoint.size > newest.checkpoint.size
        except (OSError, ConfigurationError) as error:
            if self._memory_works:
                log.warning("%s cannot be written, a restart would forget the ledger: %s", file.path, error)
            self._memory_works = False
            return True

    def _may_replace(self, kept: Checkpoint, newest: Checkpoint) -> bool:
        """Whether ``newest`` may replace the checkpoint on disk. One that was not compared yet stays: another process
        has just seen it, and the next process that reads it compares."""
        return kept.size <= newest.size and self._agreed.get(kept.size) == kept.root

    def _file(self, root: RegistryKeys) -> "CheckpointFile | None":
        if self._folder is None:
            return None
        return CheckpointFile(self._folder, root.subject, root.root.thumbprint)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


class CheckpointFile:
    """The newest checkpoint on disk, so that a restart does not make a client believe a shorter or another history.

    There is one file in ``folder`` for each trust ``domain`` and root key (by its thumbprint, ``pin``), shared by all
    processes of the host that use the folder. It holds a signed note and nothing else: each reader checks the
    signature, so a user who can write it can at most make the checkpoint be forgotten. The file's time is when the
    checkpoint was seen. Where the root replaced the ledger that was seen before, a second file names the head from
    which the ledger goes on (`peerseal.trust.replaced_ledger`). All methods raise OSError or ConfigurationError.
    """

    def __init__(self, folder: Folder, domain: str, pin: str) -> None:
        self._folder = folder
        self._name = f"ledger-{domain}-{pin}.checkpoint"
        self._history = f"ledger-{domain}-{pin}.history"

    @property
    def path(self) -> Path:
        """Of the file, for messages."""
        return self._folder.shown / self._name

    def read(self) -> tuple[str | None, float, str]:
        """The note, not verified, when it was seen (seconds since the epoch), and the name of the declared head; None
        for the note where there is none. Invalid UTF-8 becomes U+FFFD, so that the note is refused."""
        try:
            note, seen_at = self._folder.read_dated(self._name, MAX_NOTE_BYTES + 1)
        except FileNotFoundError:
            return None, 0.0, ""
        return note.decode("utf-8", "replace"), seen_at, self._read_history()

    def _read_history(self) -> str:
        try:
            return self._folder.read(self._history, 128).decode("ascii", "replace")
        except FileNotFoundError:
            return ""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one process and thread that changes the file. Raises TimeoutError, an OSError."""
        with self._folder.locked(self.path.with_suffix(".lock").name, wait=_LOCK_WAIT) as locked:
            if not locked:
                raise TimeoutError("another process holds the lock")
            yield

    def replace(self, note: str, seen_at: float, history: str = "") -> None:
        """Put another note in place in one step, mode 0600: a reader, or a host that loses power, sees the old one or
        the new one. Call it with the file locked."""
        if history != self._read_history():
            self._folder.write(self._history, history.encode("ascii"))
        self._folder.write(self._name, note.encode("utf-8"), modified_at=seen_at)


def check_admissions(document: KeySetDocument | KeySetPart | KeyStatement, checkpoint: Checkpoint) -> None:
    """The entry that admitted a key, which the document repeats for each key, matches the key and is in the ledger of
    ``checkpoint``. No key ends later than it was admitted for. A key ends earlier only by a retirement or a revocation,
    which are entries too.

    Raises DocumentRefused. It checks no signature.
    """
    service = split_service_id(document.subject)[1]
    for key in _keys_of(document):
        admission = key.admission
        try:
            leaf = admission.entry(checkpoint.origin, service, key.public).leaf
        except ValueError as error:
            raise DocumentRefused("document_malformed", f"the admission is no ledger entry: {error}") from error
        check_inclusion(leaf, admission.index, checkpoint.size, key.proof, checkpoint.root)
        if key.active_until > admission.expires_at or (
            key.state == ACTIVE and key.active_until != admission.expires_at
        ):
            raise DocumentRefused("document_not_in_ledger", "a key's window is not the one that it was admitted for")


def check_federation(document: FederationDocument, checkpoint: Checkpoint) -> None:
    """The entry that set the federation, which the document repeats, has this federation, and is in the ledger of
    ``checkpoint``. Without an entry no foreign domain is believed.

    Raises DocumentRefused. It checks no signature.
    """
    if document.entry is None:
        if document.federation.domains:
            raise DocumentRefused("document_not_in_ledger", "it names foreign domains, and no entry that set them")
        return
    try:
        leaf = document.entry.with_federation(document.federation).leaf
    except ValueError as error:
        raise DocumentRefused("document_malformed", f"the federation is no ledger entry: {error}") from error
    check_inclusion(leaf, document.entry.index, checkpoint.size, document.entry.proof, checkpoint.root)


def read_proof(answer: Answer, old: int, new: int) -> tuple[bytes, ...]:
    """The consistency proof in the registry's answer. Raises FetchError or DocumentRefused."""
    body = content(answer)
    if len(body) > MAX_PROOF_BYTES:
        raise AnswerTooLarge(f"{len(body)} bytes, and a proof has {MAX_PROOF_BYTES} at most")
    try:
        members = strict_json_object(body)
        proof = decode_proof(members.get("proof"))
    except MalformedToken as error:
        raise DocumentRefused("document_malformed", f"a consistency proof: {error}") from error
    sizes = members.get("from"), members.get("to")
    if any(type(size) is not int for size in sizes) or sizes != (old, new):
        raise DocumentRefused("document_malformed", f"a consistency proof that is not from {old} to {new}")
    return proof


def _keys_of(document: KeySetDocument | KeySetPart | KeyStatement) -> Iterable[ListedKey | KeyStatement]:
    return (document,) if isinstance(document, KeyStatement) else document.keys


def _verified(note: str, root: RegistryKeys) -> Checkpoint | None:
    return _signed_by(note, root, root.ledger_keys)


def _signed_by(note: str, root: RegistryKeys, jwks: Iterable[Mapping[str, str]]) -> Checkpoint | None:
    try:
        return verify_checkpoint(note, root.subject, jwks)
    except DocumentRefused:
        return None
