"""The folder through which the workers of one host share the keys of their service.

=============== ====================================================================================================
``keys.json``   kids, times, the trust domain and the pin
``*.pem``       one private key each (PKCS #8), encrypted if there is a passphrase
``lock``        locked by the one process that changes the folder
``holders``     locked in shared mode by every process that uses the keys
=============== ====================================================================================================

The kernel releases the locks of a process that ends. Files have mode 0600, the folder 0700. The folder is opened once
(`peerseal.runtime.files`): another folder that replaces it is not used.
"""

import fcntl
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from peerseal.errors import ConfigurationError, KeyRefused, MalformedToken
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair
from peerseal.runtime.files import Folder, make_private
from peerseal.runtime.locks import Opened

__all__ = ["KeyFolder", "StoredKey", "StoredKeys", "make_private"]

_READ_ATTEMPTS = 5
_KEYS = "keys.json"
_KEY_FILE = re.compile(r"[A-Za-z0-9_-]{43}\.pem")
"""A thumbprint (RFC 7638) and no path: the content of the folder cannot name a file outside of it."""
_LARGEST = 1 << 20
"""Bytes of the longest file in the folder."""
_NO_PASSPHRASE = KeyPassphrase("PEERSEAL_KEY_PASSPHRASE")
_TIMES = ("registered_at", "signs_from", "expires_at")
_MARKS = ("brought", "refused")
"""Members that earlier releases do not write."""
_MEMBERS = ("kid", *_TIMES, *_MARKS)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key pair of this service. All times are seconds since the epoch.

    ``registered_at`` is None for a candidate: it may be registered already if the answer was lost. ``signs_from`` is
    the end of its lead, ``expires_at`` the end of its life. ``brought`` marks a key that was made elsewhere: no other
    key replaces it before it is registered. ``refused`` marks a candidate that the registry does not admit: the next
    attempt replaces it.
    """

    kid: str
    pair: KeyPair = field(repr=False)
    registered_at: float | None = None
    signs_from: float = 0.0
    expires_at: float = 0.0
    brought: bool = False
    refused: bool = False

    @property
    def is_candidate(self) -> bool:
        """Whether it is the next key to register."""
        return self.registered_at is None and not self.refused

    @property
    def thumbprint(self) -> str:
        """RFC 7638."""
        return self.pair.public.thumbprint

    @property
    def owner(self) -> str:
        """The service id that the kid begins with."""
        return self.kid.rpartition("/")[0]

    @property
    def domain(self) -> str:
        """The trust domain that the kid begins with."""
        return self.kid.partition("/")[0]


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """The content of ``keys.json``, oldest key first. ``pin`` is the root key's thumbprint of the first join token."""

    domain: str | None = None
    pin: str | None = None
    keys: tuple[StoredKey, ...] = ()

    def signing(self, now: float) -> StoredKey | None:
        """The key to sign with: the newest key after its lead, or the oldest one if all are in their lead."""
        registered = [key for key in self.keys if key.registered_at is not None and key.expires_at > now]
        ready = [key for key in registered if key.signs_from <= now]
        return ready[-1] if ready else (registered[0] if registered else None)

    def having(self, key: StoredKey) -> Self:
        """With that key added, or replaced if there is one with its kid."""
        others = tuple(held for held in self.keys if held.kid != key.kid)
        return replace(self, keys=(*others, key))

    def without(self, kid: str) -> Self:
        """Without the key of that kid."""
        return replace(self, keys=tuple(held for held in self.keys if held.kid != kid))


class KeyFolder:
    """The keys of one service on one host. Without a ``path`` it is a temporary folder for this process and its forked
    children; private keys are then encrypted with a password that is only in their memory."""

    def __init__(self, path: str | os.PathLike[str] | None, passphrase: KeyPassphrase = _NO_PASSPHRASE) -> None:
        self._ephemeral = path is None
        self._passphrase = replace(passphrase, value=os.urandom(32).hex()) if path is None else passphrase
        self._folder = None if path is None else Folder(path, "PEERSEAL_KEY_DIR", named=Path(path).absolute().parent)
        self._holders: Opened | None = None
        self._pairs: dict[str, KeyPair] = {}
        self._plain: set[str] = set()

    @property
    def path(self) -> Path:
        """The path of the folder, which is created on first use. Raises ConfigurationError if other users could change
        it."""
        return self._files.path

    @property
    def _files(self) -> Folder:
        if self._folder is None:
            self._folder = Folder(_temporary_folder())
        return self._folder

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[bool]:
        """Exclude other processes and threads that change the folder. With ``wait=False`` it yields False, without the
        lock, if another one has it."""
        with self._files.locked("lock", wait=math.inf if wait else 0.0) as locked:
            yield locked

    def hold(self) -> None:
        """Note that this process uses the keys. A forked child calls it again for itself."""
        if self._holders is not None:
            self._holders.close()  # the copy of the parent's descriptor; the parent keeps its own
            self._holders = None
        self._holders = Opened(self._files.open("holders", os.O_CREAT | os.O_RDWR))
        fcntl.flock(self._holders.fd, fcntl.LOCK_SH)

    def release(self) -> bool:
        """Note that this process no longer uses the keys; returns whether it was the last one. The caller holds the
        lock, so that of two processes that leave at once the second is the last."""
        holders, self._holders = self._holders, None
        if holders is None or not holders.is_open():
            return False
        try:
            return holders.lock(wait=0.0) and self._is_in_place(holders, "holders")
        finally:
            holders.unlock()

    def in_use(self) -> bool:
        """Whether a process uses or changes the keys now. A folder without keys is not made."""
        try:
            self._files.stat("holders")
        except FileNotFoundError:
            return False
        with self.locked(wait=False) as locked:  # under the lock, so that a process that leaves sees no holder in this
            return not locked or self._is_held()

    def _is_held(self) -> bool:
        holders = Opened(self._files.open("holders", os.O_CREAT | os.O_RDWR))
        try:
            return not holders.lock(wait=0.0)
        finally:
            holders.unlock()

    def _is_in_place(self, opened: Opened, name: str) -> bool:
        """Whether the open file still has that name. A cleaner may have removed it; others then lock a new file."""
        try:
            return os.path.samestat(opened.stat(), self._files.stat(name))
        except FileNotFoundError:
            return False

    def stamp(self) -> tuple[int, int] | None:
        """A value that changes with every save; None before the first one."""
        try:
            found = self._files.stat(_KEYS)
            return found.st_ino, found.st_mtime_ns
        except FileNotFoundError:
            return None

    def load(self) -> StoredKeys:
        """The keys in the folder. Each private key is read and decrypted once. Raises KeyRefused or ConfigurationError,
        the latter also for a passphrase that does not decrypt a key."""
        for _ in range(_READ_ATTEMPTS):
            try:
                text = self._files.read(_KEYS, _LARGEST)
            except FileNotFoundError:
                return StoredKeys()
            try:
                return self._parse(text)
            except FileNotFoundError:
                continue  # another process has just retired a key of this text: read the new text
        raise ConfigurationError(f"{self._files.shown} names a private key that is not there")

    def pin(self) -> str | None:
        """The root key's thumbprint that an earlier enrolment stored in a named folder. Raises ConfigurationError."""
        return None if self._folder is None else self.load().pin

    @property
    def lies_open(self) -> bool:
        """Whether a private key was loaded that is not encrypted although there is a passphrase. `save` encrypts it."""
        return bool(self._plain)

    def save(self, stored: StoredKeys) -> None:
        """Replace the keys: write new private keys, then ``keys.json`` in one step, then delete old private keys.
        Raises ConfigurationError."""
        present = set(self._files.names())
        for key in stored.keys:
            name = _file_of(key.kid)
            if key.kid not in self._pairs or name not in present or name in self._plain:
                self._files.write(name, key.pair.to_pem(self._passphrase.password))
        keys = [{name: getattr(key, name) for name in _MEMBERS} for key in stored.keys]
        self._files.write(_KEYS, canonical_json({"domain": stored.domain, "pin": stored.pin, "keys": keys}))
        for name in present - {_file_of(key.kid) for key in stored.keys}:
            if _KEY_FILE.fullmatch(name) and self._is_ours(name):
                self._files.remove(name)
        self._files.remove_drafts()
        self._pairs = {key.kid: key.pair for key in stored.keys}
        self._plain.clear()
        for name in ("lock", "holders"):  # never written: a cleaner that removes old files must not remove them
            with suppress(FileNotFoundError):
                self._files.date(name)

    def discard(self) -> None:
        """Remove a temporary folder; a named one stays."""
        if self._ephemeral and self._folder is not None:
            shutil.rmtree(self._folder.shown, ignore_errors=True)
            self._folder = None

    def _parse(self, text: bytes) -> StoredKeys:
        try:
            members = strict_json_object(text)
            named = members["domain"], members["pin"]
            if any(type(name) is not str for name in named if name is not None):
                raise TypeError("a name is a text")
            stored = StoredKeys(*named, tuple(self._stored_key(key) for key in members["keys"]))
        except (MalformedToken, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{self._files.shown / _KEYS} cannot be read: expected the JSON that Peerseal writes"
            ) from error
        self._pairs = {key.kid: key.pair for key in stored.keys}
        return stored

    def _stored_key(self, member: dict[str, Any]) -> StoredKey:
        kid = member["kid"]
        if any(type(member[name]) not in (int, float) for name in _TIMES if member[name] is not None):
            raise TypeError("a time is a number")
        marks = {name: member.get(name, False) for name in _MARKS}
        if any(type(mark) is not bool for mark in marks.values()):
            raise TypeError("a mark is true or false")
        pair = self._pairs.get(kid) or self._read_pair(_file_of(kid))
        return StoredKey(kid, pair, **{name: member[name] for name in _TIMES}, **marks)

    def _read_pair(self, name: str) -> KeyPair:
        """The key pair in a file, whose name is its thumbprint. Raises FileNotFoundError, ConfigurationError or
        KeyRefused."""
        path, pem = self._files.shown / name, self._files.read(name, _LARGEST)
        try:
            pair = self._passphrase.opened(pem, path, KeyPair.from_pem)
        except KeyRefused as error:
            raise KeyRefused(error.code, f"{path} holds no readable private key") from error
        if f"{pair.public.thumbprint}.pem" != name:
            raise ConfigurationError(f"{path} holds another key than its name says: remove it")
        if self._passphrase.leaves_plain(pem):
            self._plain.add(name)
        return pair

    def _is_ours(self, name: str) -> bool:
        """Whether this program wrote a key file: no other one names a file after the thumbprint of its key."""
        if name in map(_file_of, self._pairs):
            return True
        try:
            self._read_pair(name)
        except (FileNotFoundError, ConfigurationError, KeyRefused):
            return False
        return True


def _file_of(kid: str) -> str:
    """The name of a key's file. Raises ConfigurationError for a kid without a thumbprint."""
    name = f"{str(kid).rpartition('/')[2]}.pem"
    if not _KEY_FILE.fullmatch(name):
        raise ConfigurationError(f"{kid!r} is not a key id: it does not end in a thumbprint (RFC 7638)")
    return name


def _temporary_folder() -> str:
    try:
        return tempfile.mkdtemp(prefix="peerseal-keys-")
    except OSError as error:
        problem = f"keys without PEERSEAL_KEY_DIR are in a temporary folder, and none is writable: {error.strerror}"
        raise ConfigurationError(f"{problem}; set PEERSEAL_KEY_DIR, or TMPDIR to a folder that is") from error
