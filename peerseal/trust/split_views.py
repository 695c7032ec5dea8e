"""Split views that were found: their files, what explains them, and what is refused while one stands."""

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from peerseal.errors import ConfigurationError, DocumentRefused, FetchError, SplitViewFound, TrustUnavailable
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.ledger.checkpoint import parse_checkpoint
from peerseal.protocol.ledger.split_view import MAX_EVIDENCE, Evidence
from peerseal.runtime.files import Folder
from peerseal.runtime.forks import in_each_child
from peerseal.trust.documents import DocumentReader

log = logging.getLogger("peerseal.split_view")

MOST_FILES: Final = 16
"""Evidence files in a folder, at most: the first ones say it all."""
_PREFIX: Final = "split-view-"

DECLARED_LOSS: Final = "declared_loss"
"""The root key declared entries lost."""
DROPPED_KEY: Final = "unknown_signer"
"""The root names a ledger key no more that signed one of the notes."""


def explanation(reader: DocumentReader, evidence: Evidence) -> tuple[str | None, Evidence]:
    """What explains the contradiction now, None where nothing does; and the evidence with the root's statements.

    Raises FetchError, DocumentRefused or TrustUnavailable where that cannot be known.
    """
    root = reader.registry_keys()
    if not _is_signed_under(evidence, root):
        return DROPPED_KEY, evidence

    def explains(statements: Sequence[str]) -> bool:
        return not replace(evidence, statements=tuple(statements)).verdict(root.ledger_keys, root).proven

    explained, statements = reader.replaced_ledgers.explained_by(explains)
    return DECLARED_LOSS if explained else None, replace(evidence, statements=tuple(statements))


def _is_signed_under(evidence: Evidence, root: RegistryKeys) -> bool:
    """Whether ledger keys that the root names now signed both notes."""
    try:
        evidence.verdict(root.ledger_keys)
    except DocumentRefused:
        return False
    return True


class EvidenceFolder:
    """The folder of evidence files, which the processes of a host share. None takes nothing, and has nothing."""

    def __init__(self, folder: Folder | None) -> None:
        self._folder = folder

    def write(self, evidence: Evidence, *, again: bool = False) -> Path | None:
        """The file, whole or not at all, mode 0600; None where it cannot be written. The oldest files stay where there
        are too many; one that is there is replaced only ``again``."""
        if self._folder is None:
            return None
        name = _name_of(evidence)
        try:
            known = self._names()
            if name not in known and len(known) >= MOST_FILES:
                return None
            if again:
                self._folder.write(name, evidence.encode())
            else:
                self._folder.write_new(name, evidence.encode())
            return self._folder.shown / name
        except (OSError, ConfigurationError) as error:
            log.warning("the evidence of a split view cannot be written: %s", error)
            return None

    def read(self, known: set[str]) -> Iterator[Evidence]:
        """What the files hold whose names are not ``known`` yet; it is not verified. Files that hold none are passed
        over."""
        for name in sorted(self._names() - known):
            known.add(name)
            try:
                yield Evidence.decode(self._read(name))
            except (OSError, ConfigurationError, DocumentRefused) as error:
                log.warning("%s cannot be read, and is no evidence of a split view: %s", name, error)

    def _read(self, name: str) -> bytes:
        return b"" if self._folder is None else self._folder.read(name, MAX_EVIDENCE + 1)

    def _names(self) -> set[str]:
        return set() if self._folder is None else {name for name in self._folder.names() if name.startswith(_PREFIX)}


def _name_of(evidence: Evidence) -> str:
    heads = map(parse_checkpoint, evidence.notes)
    sizes = "-".join(f"{head.size}-{head.root.hex()[:8]}" for head in heads)
    return f"{_PREFIX}{evidence.domain}-{sizes}.json"


class StandingSplitViews:
    """The split views that nothing explains, of this process and of others that share the folder. While one stands,
    `check` refuses. What the root key signs ends it: a statement about lost entries, or a list of keys without the
    ledger key that signed both."""

    def __init__(self, reader: DocumentReader, files: EvidenceFolder) -> None:
        self._reader = reader
        self._files = files
        self._read = set[str]()
        self._begun = False
        self._standing = dict[str, Evidence]()
        self._renew_lock()
        in_each_child(self._renew_lock)

    @property
    def are_none(self) -> bool:
        """Whether it is known that none stands. It makes no call."""
        return self._begun and not self._standing

    @property
    def are_some(self) -> bool:
        """Whether one is known to stand."""
        return bool(self._standing)

    def check(self) -> None:
        """Raises SplitViewFound while one stands, and TrustUnavailable where the files cannot be judged."""
        if not self._begun:
            self._recall(self._reader.registry_keys())
        for evidence in list(self._standing.values()):
            told = f"{evidence.seen[0].source} told of one of them" if evidence.seen else "see its file"
            raise SplitViewFound(f"the ledger of {evidence.domain} has two histories: {told}")

    def add(self, evidence: Evidence) -> None:
        """This one stands from now on."""
        self._standing[_name_of(evidence)] = evidence

    def recall(self) -> None:
        """Read the files that are new. It makes no call."""
        root = self._reader.registry_keys_in_memory()
        if root is not None:
            self._recall(root)

    def look(self) -> None:
        """Forget what the root explains by now. Without an answer of the registry all stays as it is."""
        for name, evidence in list(self._standing.items()):
            try:
                explained, evidence = explanation(self._reader, evidence)
            except (FetchError, DocumentRefused, TrustUnavailable) as error:
                log.warning("requests are refused for a split view, and the root's statements are unknown: %s", error)
                return
            if explained is not None:
                log.warning("a split view ended, its file is %s: %s", name, explained)
                self._files.write(evidence, again=True)  # it tells the next start what explains it
                self._standing.pop(name, None)

    def _recall(self, root: RegistryKeys) -> None:
        with self._lock:
            for evidence in self._files.read(self._read):
                is_ours = evidence.domain == root.subject and _is_signed_under(evidence, root)
                if is_ours and evidence.verdict(root.ledger_keys, root).proven:
                    self.add(evidence)
            self._begun = True

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
