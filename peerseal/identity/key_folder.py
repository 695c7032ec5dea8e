"""The folder through which the workers of one host share their service's keys.

It holds ``keys.json`` (which keys, since when), one PKCS #8 file a private key, and two lock files: ``lock``, held by
the one process that changes the folder, and ``holders``, of which every process that uses the keys holds a share. The
kernel drops a dead process's locks, so nothing here goes stale. Files are 0600, the folder 0700, and it is held by its
descriptor (`peerseal.runtime.files`): another folder that is put in its place is not used. Where there is a passphrase
(`peerseal.identity.key_passphrase`), private keys are encrypted under it, and decrypted when they are loaded.
"""

import fcntl
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
from peerseal.runtime.trusted_path import Opened

__all__ = ["HeldKey", "HeldKeys", "KeyFolder", "make_private"]

_READ_ATTEMPTS = 5
_KEYS = "keys.json"
_KEY_FILE = re.compile(r"[A-Za-z0-9_-]{43}\.pem")
"""A key's RFC 7638 thumbprint, and no path: what lies in the folder chooses no file outside it."""
_LARGEST = 1 << 20
"""Bytes of a file in the folder: more is none of ours."""
_NO_PASSPHRASE = KeyPassphrase("PEERSEAL_KEY_PASSPHRASE")
_TIMES = ("registered_at", "signs_from", "expires_at")
_MEMBERS = ("kid", *_TIMES)


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key pair of ours. All times are seconds since the epoch.

    ``registered_at`` is None for a candidate: generated, and perhaps registered, but the answer was not seen.
    ``signs_from`` is when its lead time ends, ``expires_at`` its natural end.
    """

    kid: str
    pair: KeyPair = field(repr=False)
    registered_at: float | None = None
    signs_from: float = 0.0
    expires_at: float = 0.0

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
class HeldKeys:
    """What the folder says, oldest key first. ``pin`` is the root key's thumbprint that the first enrolment brought."""

    domain: str | None = None
    pin: str | None = None
    keys: tuple[HeldKey, ...] = ()

    def signing(self, now: float) -> HeldKey | None:
        """The key to sign with now: the newest whose lead time is over."""
        registered = [key for key in self.keys if key.registered_at is not None and key.expires_at > now]
        ready = [key for key in registered if key.signs_from <= now]
        return ready[-1] if ready else (registered[0] if registered else None)

    def having(self, key: HeldKey) -> Self:
        """With that key added, or in the place of the one with its kid."""
        others = tuple(held for held in self.keys if held.kid != key.kid)
        return replace(self, keys=(*others, key))

    def without(self, kid: str) -> Self:
        """With no key of that kid."""
        return replace(self, keys=tuple(held for held in self.keys if held.kid != kid))


class KeyFolder:
    """One service's keys on one host. With no ``path`` it is a folder of this process and its forked children, in
    which private keys are encrypted under a password that stands in their memory only; else under ``passphrase``, if
    that is given."""

    def __init__(self, path: str | os.PathLike[str] | None, passphrase: KeyPassphrase = _NO_PASSPHRASE) -> None:
        self._ephemeral = path is None
        self._passphrase = replace(passphrase, value=os.urandom(32).hex()) if path is None else passphrase
        self._folder = None if path is None else Folder(path, "PEERSEAL_KEY_DIR", named=Path(path).absolute().parent)
        self._holders: Opened | None = None
        self._pairs: dict[str, KeyPair] = {}
        self._plain: set[str] = set()

    @property
    def path(self) -> Path:
        """Where the folder is, made on first use. Raises ConfigurationError where others could reach into it."""
        return self._files.path

    @property
    def _files(self) -> Folder:
        if self._folder is None:
            self._folder = Folder(_temporary_folder())
        return self._folder

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[bool]:
        """Be the one process and thread that changes the folder. Gives False, and no lock, where another one is at it
        and ``wait`` is False."""
        lock = Opened(self._files.open("lock", os.O_CREAT | os.O_RDWR))
        try:
            try:
                fcntl.flock(lock.fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            lock.unlock()

    def hold(self) -> None:
        """Take a share: this process uses the keys from now on. In a forked child, instead of the parent's share."""
        if self._holders is not None:
            self._holders.close()  # the parent's descriptor of the same share; its own stays open
            self._holders = None
        self._holders = Opened(self._files.open("holders", os.O_CREAT | os.O_RDWR))
        fcntl.flock(self._holders.fd, fcntl.LOCK_SH)

    def release(self) -> bool:
        """Give the share back. True where it was the last one. Call it with the folder locked, so that of two that
        leave at once the second sees that it is the last."""
        holders, self._holders = self._holders, None
        if holders is None or not holders.is_open():
            return False
        try:
            fcntl.flock(holders.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._is_in_place(holders, "holders")
        except BlockingIOError:
            return False
        finally:
            holders.unlock()

    def _is_in_place(self, opened: Opened, name: str) -> bool:
        """Whether the open file still is the one of that name: somebody who tidies up may have removed it, and others
        then share another one."""
        try:
            return os.path.samestat(opened.stat(), self._files.stat(name))
        except FileNotFoundError:
            return False

    def stamp(self) -> tuple[int, int] | None:
        """Something that changes with every save, each of which makes a new file; None before the first."""
        try:
            found = self._files.stat(_KEYS)
            return found.st_ino, found.st_mtime_ns
        except FileNotFoundError:
            return None

    def load(self) -> HeldKeys:
        """What the folder holds; private keys are read and decrypted once each. Raises ConfigurationError, also for a
        key that the passphrase does not open, or KeyRefused."""
        for _ in range(_READ_ATTEMPTS):
            try:
                text = self._files.read(_KEYS, _LARGEST)
            except FileNotFoundError:
                return HeldKeys()
            try:
                return self._parse(text)
            except FileNotFoundError:
                continue  # another process has just retired a key that this text still names: read the newer one
        raise ConfigurationError(f"{self._files.shown} names a private key that is not there")

    def pin(self) -> str | None:
        """The root key's thumbprint that an earlier enrolment left in a named folder. Raises ConfigurationError."""
        return None if self._folder is None else self.load().pin

    @property
    def lies_open(self) -> bool:
        """Whether a private key was loaded that is plain, although there is a passphrase. `save` encrypts it."""
        return bool(self._plain)

    def save(self, held: HeldKeys) -> None:
        """Replace what the folder holds, in one step: private keys first, those no longer named destroyed last. Raises
        ConfigurationError."""
        present = set(self._files.names())
        for key in held.keys:
            name = _file_of(key.kid)
            if key.kid not in self._pairs or name not in present or name in self._plain:
                self._files.write(name, key.pair.to_pem(self._passphrase.password))
        keys = [{name: getattr(key, name) for name in _MEMBERS} for key in held.keys]
        self._files.write(_KEYS, canonical_json({"domain": held.domain, "pin": held.pin, "keys": keys}))
        for name in present - {_file_of(key.kid) for key in held.keys}:
            if _KEY_FILE.fullmatch(name) and self._is_ours(name):
                self._files.remove(name)
        self._files.remove_drafts()
        self._pairs = {key.kid: key.pair for key in held.keys}
        self._plain.clear()
        for name in ("lock", "holders"):  # never written, so they would look forgotten to a program that tidies up
            with suppress(FileNotFoundError):
                self._files.date(name)

    def discard(self) -> None:
        """Remove a folder that was made for this process alone; a named one stays."""
        if self._ephemeral and self._folder is not None:
            shutil.rmtree(self._folder.shown, ignore_errors=True)
            self._folder = None

    def _parse(self, text: bytes) -> HeldKeys:
        try:
            members = strict_json_object(text)
            named = members["domain"], members["pin"]
            if any(type(name) is not str for name in named if name is not None):
                raise TypeError("a name is a text")
            held = HeldKeys(*named, tuple(self._held(key) for key in members["keys"]))
        except (MalformedToken, KeyError, TypeError) as error:
            raise ConfigurationError(f"{self._files.shown / _KEYS} cannot be read") from error
        self._pairs = {key.kid: key.pair for key in held.keys}
        return held

    def _held(self, member: dict[str, Any]) -> HeldKey:
        kid = member["kid"]
        if any(type(member[name]) not in (int, float) for name in _TIMES if member[name] is not None):
            raise TypeError("a time is a number")
        pair = self._pairs.get(kid) or self._read_pair(_file_of(kid))
        return HeldKey(pair=pair, **{name: member[name] for name in _MEMBERS})

    def _read_pair(self, name: str) -> KeyPair:
        """The key pair in a file, which must be the one that the file is named after. Raises FileNotFoundError."""
        path, pem = self._files.shown / name, self._files.read(name, _LARGEST)
        try:
            pair = self._passphrase.opened(pem, path, KeyPair.from_pem)
        except KeyRefused as error:
            raise KeyRefused(error.code, f"{path} holds no private key that can be read") from error
        if f"{pair.public.thumbprint}.pem" != name:
            raise ConfigurationError(f"{path} holds another key than its name says: remove it")
        if self._passphrase.leaves_plain(pem):
            self._plain.add(name)
        return pair

    def _is_ours(self, name: str) -> bool:
        """Whether a key file that is not named any more was written here: no other program names a key's file after
        that key's thumbprint."""
        if name in map(_file_of, self._pairs):
            return True
        try:
            self._read_pair(name)
        except (FileNotFoundError, ConfigurationError, KeyRefused):
            return False
        return True


def _file_of(kid: str) -> str:
    """The name of a key's file. Raises ConfigurationError for a kid that has none."""
    name = f"{str(kid).rpartition('/')[2]}.pem"
    if not _KEY_FILE.fullmatch(name):
        raise ConfigurationError(f"{kid!r} is not a key id: it ends in no RFC 7638 thumbprint")
    return name


def _temporary_folder() -> str:
    try:
        return tempfile.mkdtemp(prefix="peerseal-keys-")
    except OSError as error:
        problem = f"keys without PEERSEAL_KEY_DIR lie in a temporary folder, and none is writable: {error.strerror}"
        raise ConfigurationError(f"{problem}; set PEERSEAL_KEY_DIR, or TMPDIR to a folder that is") from error
