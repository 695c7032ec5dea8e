"""Split views that were found: their files, what explains them, and what is refused while one stands."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
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
"""Evidence files of a domain in a folder, at most."""
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


def stands(evidence: Evidence, root: RegistryKeys) -> bool:
    """Whether it proves a split view of the root's domain, by what the root and the file say."""
    is_ours = evidence.domain == root.subject and _is_signed_under(evidence, root)
    return is_ours and evidence.verdict(root.ledger_keys, root).proven


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

    def keep(self, evidence: Evidence, root: RegistryKeys | None, *, displaces: bool = True) -> Path | None:
        """The file, whole or not at all, mode 0600; None where there is none. One that is there stays as it is.

        Where there are too many of the domain, one that ``root`` explains gives way. Where none is explained, the
        newest one gives way if this one ``displaces``. Raises ConfigurationError where it cannot be written."""
        if self._folder is None:
            return None
        name = _name_of(evidence)
        with _naming_the_cause():
            if name not in self._names():
                ours = self._of_domain(evidence.domain)
                explained = [each for each, found in ours.items() if root is not None and not stands(found, root)]
                if len(ours) >= MOST_FILES:
                    if not (explained or displaces):
                        return None
                    self._folder.remove((explained or list(ours)[-1:])[0])
                self._folder.write_new(name, evidence.encode())
            return self._folder.shown / name

    def replace(self, evidence: Evidence) -> None:
        """Write the file again. Raises ConfigurationError."""
        if self._folder is not None:
            with _naming_the_cause():
                self._folder.write(_name_of(evidence), evidence.encode())

    def _of_domain(self, domain: str) -> dict[str, Evidence]:
        """The evidence of that domain by the names of the files, the oldest first. Files that hold none do not
        count."""
        found = list[tuple[float, str, Evidence]]()
        for name in self._names():
            with suppress(DocumentRefused, ConfigurationError, OSError):
                data, changed_at = self._read(name)
                found.append((changed_at, name, Evidence.decode(data)))
        found.sort(key=lambda each: each[:2])
        return {name: evidence for _, name, evidence in found if evidence.domain == domain}

    def read(self, known: set[str]) -> Iterator[Evidence]:
        """What the files hold whose names are not ``known`` yet; it is not verified. Files that hold none are passed
        over. Raises ConfigurationError where one cannot be read."""
        with _naming_the_cause():
            for name in sorted(self._names() - known):
                try:
                    yield Evidence.decode(self._read(name)[0])
                except FileNotFoundError:  # removed meanwhile
                    continue
                except DocumentRefused as error:
                    log.warning("%s cannot be read, and is no evidence of a split view: %s", name, error)
                known.add(name)

    def _read(self, name: str) -> tuple[bytes, float]:
        """What a file holds, and when it was changed."""
        return (b"", 0.0) if self._folder is None else self._folder.read_dated(name, MAX_EVIDENCE + 1)

    def _names(self) -> set[str]:
        return set() if self._folder is None else {name for name in self._folder.names() if name.startswith(_PREFIX)}


@contextmanager
def _naming_the_cause() -> Iterator[None]:
    """Turns all errors of files into ConfigurationError."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"split-views/ of the cache folder: {error}") from error


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
            root = self._reader.registry_keys()
            try:
                self._recall(root)
            except ConfigurationError as error:
                raise TrustUnavailable(f"whether a split view stands is not known: {error}") from error
        for evidence in list(self._standing.values()):
            told = f"{evidence.seen[0].source} told of one of them" if evidence.seen else "see its file"
            raise SplitViewFound(f"the ledger of {evidence.domain} has two histories: {told}")

    def add(self, evidence: Evidence) -> None:
        """This one stands from now on. Where there are too many, it takes the place of the newest."""
        name = _name_of(evidence)
        if name not in self._standing and len(self._standing) >= MOST_FILES:
            self._standing.popitem()
        self._standing[name] = evidence

    def recall(self) -> None:
        """Read the files that are new. It makes no call."""
        root = self._reader.registry_keys_in_memory()
        if root is not None:
            try:
                self._recall(root)
            except ConfigurationError as error:
                log.warning("what other processes have found cannot be read: %s", error)

    def look(self) -> None:
        """Forget what the root explains by now. Without an answer of the registry all stays as it is."""
        for name, evidence in list(self._standing.items()):
            try:
                explained, evidence = explanation(self._reader, evidence)
            except (FetchError, DocumentRefused, TrustUnavailable) as error:
                log.warning("requests are refused for a split view, and the root's statements are unknown: %s", error)
                break
            if explained is not None:
                log.warning("a split view ended, its file is %s: %s", name, explained)
                self._write(self._files.replace, evidence)  # it tells the next start
                self._standing.pop(name, None)
        keep = partial(self._files.keep, root=self._reader.registry_keys_in_memory(), displaces=False)
        for evidence in list(self._standing.values()):  # also those whose files could not be written before
            self._write(keep, evidence)

    def _write(self, write: Callable[[Evidence], object], evidence: Evidence) -> None:
        try:
            write(evidence)
        except ConfigurationError as error:
            log.warning("the evidence is not written, so a restarted process may not know of it: %s", error)

    def _recall(self, root: RegistryKeys) -> None:
        with self._lock:
            for evidence in self._files.read(self._read):
                if stands(evidence, root):
                    self.add(evidence)
            self._begun = True

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
