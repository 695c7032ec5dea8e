"""A witness of transparency logs (https://c2sp.org/tlog-witness): it cosigns a log's checkpoint once the log has proven
that the checkpoint continues the one which was cosigned before.

For each log, by its origin, the witness keeps the newest checkpoint that it cosigned. The comparison with that one and
its replacement are one transaction, which is on disk before the cosignature is given: two submissions at once, or a
crash, never lead to cosignatures of two histories.
"""

import binascii
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from peerseal.errors import ConfigurationError, DocumentRefused
from peerseal.protocol.ledger.checkpoint import MAX_NOTE_BYTES
from peerseal.protocol.ledger.cosignature import LOG_KEY, WITNESS_KEY, Note, NoteKey, SignatureLine, cosign
from peerseal.protocol.ledger.merkle import EMPTY_ROOT, HASH_SIZE, Proof, check_consistency
from peerseal.runtime.files import Folder

MAX_PROOF_LINES: Final = 63
"""Hashes of the consistency proof of a submission, at most."""
MAX_SUBMISSION: Final = 64 + MAX_PROOF_LINES * 45 + MAX_NOTE_BYTES
"""Bytes of a submission, at most."""
SIZE_TYPE: Final = "text/x.tlog.size"
"""The media type of an answer that names the size of the newest checkpoint."""

_OLD = re.compile(r"old (0|[1-9][0-9]{0,17})")
_HASH = re.compile(r"[A-Za-z0-9+/]{43}=")
_KEY_FILE: Final = "witness.key"
_STATE_FILE: Final = "witness.sqlite3"
_LOST: Final = (
    "a witness that goes on with the key alone, or with an older copy of the file, would cosign a log that was rolled"
    " back. Begin with a new folder, and have its new key configured"
)
_DAMAGED: Final = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""What SQLite says of a file that is empty, was altered, or is none of its own; other errors may pass."""
_BUSY: Final = 10.0
"""Seconds to wait for another submission's transaction."""
_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS cosigned (
        origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, at INTEGER NOT NULL, note TEXT NOT NULL
    ) STRICT
"""


class SubmissionRefused(Exception):
    """A checkpoint that the witness does not cosign: the HTTP ``status`` and the ``reason``; ``size`` is that of the
    newest cosigned checkpoint, where the submission does not continue it."""

    def __init__(self, status: int, reason: str, size: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.size = size


@dataclass(frozen=True, slots=True)
class Submission:
    """A checkpoint, and the proof that it continues the log's checkpoint of size ``old``."""

    old: int
    proof: Proof
    note: Note

    @classmethod
    def parse(cls, body: bytes) -> "Submission":
        """Reads the body of ``add-checkpoint``. Raises SubmissionRefused with 400."""
        try:
            head, blank, rest = body.decode("utf-8").partition("\n\n")
            first, *lines = head.split("\n")
            old = _OLD.fullmatch(first)
            if not blank or old is None or len(lines) > MAX_PROOF_LINES:
                raise SubmissionRefused(400, f"expected 'old SIZE', {MAX_PROOF_LINES} hashes at most, an empty line")
            return cls(int(old[1]), tuple(map(_read_hash, lines)), Note.parse(rest))
        except UnicodeDecodeError as error:
            raise SubmissionRefused(400, "the submission is not UTF-8") from error
        except DocumentRefused as error:
            raise SubmissionRefused(400, str(error)) from error


def _read_hash(line: str) -> bytes:
    try:
        if _HASH.fullmatch(line):
            return binascii.a2b_base64(line, strict_mode=True)
    except binascii.Error:
        pass
    raise SubmissionRefused(400, f"expected the base64 of {HASH_SIZE} bytes in each line of the proof")


class Witness:
    """A witness with the state in a folder. Safe to use from threads, and from several processes with one folder."""

    def __init__(
        self,
        folder: Path,
        name: str,
        logs: Iterable[NoteKey],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Makes the folder (0700), the key (0600) and the state where they are missing. ``logs`` are the keys whose
        checkpoints are cosigned; a log may have several. Raises ConfigurationError."""
        self._folder = Folder(folder)
        self._clock = clock
        self._logs: dict[str, list[NoteKey]] = {}
        for log in logs:
            self._logs.setdefault(log.name, []).append(log)
        self._key = self._read_or_make_key()
        self.key = NoteKey.of(name, WITNESS_KEY, self._key.public_key())

    def cosign(self, body: bytes) -> SignatureLine:
        """The cosignature of the submitted checkpoint. Raises SubmissionRefused, and sqlite3.Error where the state
        cannot be read or written: then nothing is cosigned."""
        asked = Submission.parse(body)
        found = asked.note.claimed
        keys = self._logs.get(found.origin)
        if keys is None:
            raise SubmissionRefused(404, f"the log {found.origin} is not witnessed here")
        if not any(asked.note.is_signed_by(key) for key in keys):
            raise SubmissionRefused(403, f"no key of {found.origin} that is known here signed the checkpoint")
        if asked.old > found.size:
            raise SubmissionRefused(400, f"old is {asked.old}, and the checkpoint has {found.size} entries")
        with self._transaction() as connection:
            at = self._checked_time(connection, asked)
            connection.execute(
                "REPLACE INTO cosigned (origin, size, root, at, note) VALUES (?, ?, ?, ?, ?)",
                (found.origin, found.size, found.root, at, asked.note.text + "\n" + _lines(asked.note)),
            )
        return cosign(asked.note.text, self.key.name, self._key, at)

    def sizes(self) -> dict[str, int]:
        """The size of the newest cosigned checkpoint of each log; 0 where none was cosigned. Raises sqlite3.Error."""
        with closing(self._connect()) as connection:
            rows = connection.execute("SELECT origin, size FROM cosigned").fetchall()
        return dict.fromkeys(self._logs, 0) | {origin: size for origin, size in rows if origin in self._logs}

    def _checked_time(self, connection: sqlite3.Connection, asked: Submission) -> int:
        """When the checkpoint is cosigned, after it was compared with the newest: never earlier than that one, also
        where the clock was set back. Raises SubmissionRefused."""
        found = asked.note.claimed
        row = connection.execute("SELECT size, root, at FROM cosigned WHERE origin = ?", (found.origin,)).fetchone()
        size, root, at = row or (0, EMPTY_ROOT, 0)
        if asked.old != size:
            raise SubmissionRefused(409, f"the newest cosigned checkpoint has {size} entries", size)
        if found.size == size and found.root != root:
            raise SubmissionRefused(409, f"another checkpoint of {size} entries was cosigned: two histories", size)
        try:
            check_consistency(size, root, found.size, found.root, asked.proof)
        except DocumentRefused as error:
            raise SubmissionRefused(422, str(error)) from error
        return max(int(self._clock()), at)

    # ---- the files

    def _read_or_make_key(self) -> Ed25519PrivateKey:
        folder = self._folder.make()
        with folder.locked(".lock"):
            try:
                pem = folder.read(_KEY_FILE, 4096)
            except FileNotFoundError:
                self._make_state()
                key = Ed25519PrivateKey.generate()
                folder.write(_KEY_FILE, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
                return key
            self._check_state()
        return _ed25519(pem, f"{folder.shown}/{_KEY_FILE}")

    def _check_state(self) -> None:
        """The file has the table, which is made before the key. Raises ConfigurationError."""
        path = f"{self._folder.shown}/{_STATE_FILE}"
        if _STATE_FILE not in self._folder.names():
            raise ConfigurationError(f"{path} is missing: {_LOST}")
        try:
            with closing(self._connect()) as connection:
                connection.execute("SELECT 1 FROM cosigned LIMIT 1")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGED:
                raise ConfigurationError(f"{path} is damaged ({error}): {_LOST}") from error
            raise ConfigurationError(f"{path} cannot be read now: {error}") from error

    def _make_state(self) -> None:
        try:
            with self._transaction() as connection:
                connection.execute(_TABLE)
        except sqlite3.Error as error:
            raise ConfigurationError(f"{self._folder.shown}/{_STATE_FILE}: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone from its beginning, and on disk at its end."""
        with closing(self._connect()) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")  # the removed journal, too, outlives a loss of power
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._folder.path / _STATE_FILE, timeout=_BUSY, isolation_level=None)


def read_log_key(text: str) -> NoteKey:
    """A log's key in the text form of signed-note. Raises MalformedToken."""
    return NoteKey.parse(text, LOG_KEY)


def _lines(note: Note) -> str:
    return "".join(f"{line}\n" for line in note.signatures)


def _ed25519(pem: bytes, path: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path}: expected an unencrypted private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path}: expected an Ed25519 key")
    return key
