"""The folder through which the workers of one host share their service's keys.

It holds ``keys.json`` (which keys, since when), one PKCS #8 file a private key, and two lock files: ``lock``, held by
the one process that changes the folder, and ``holders``, of which every process that uses the keys holds a share. The
kernel drops a dead process's locks, so nothing here goes stale. Files are 0600, the folder 0700.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair

_READ_ATTEMPTS = 5
_UNFINISHED = ".new-"
"""How the names of files begin that a process which died may have left half written."""
_MEMBERS = ("kid", "registered_at", "signs_from", "expires_at")


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
    which private keys are encrypted under a password that stands in their memory only."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._ephemeral = path is None
        self._password = os.urandom(32).hex().encode() if path is None else None
        self._path = None if path is None else Path(path)
        self._checked = False
        self._holders: int | None = None
        self._pairs: dict[str, KeyPair] = {}

    @property
    def path(self) -> Path:
        """The folder, made on first use. Raises ConfigurationError where others could reach into it."""
        if self._path is None:
            self._path = Path(tempfile.mkdtemp(prefix="peerseal-keys-"))
        if not self._checked or not self._path.is_dir():
            make_private(self._path)
            self._checked = True
        return self._path

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[bool]:
        """Be the one process and thread that changes the folder. Gives False, and no lock, where another one is at it
        and ``wait`` is False."""
        handle = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            _unlock(handle)

    def hold(self) -> None:
        """Take a share: this process uses the keys from now on. In a forked child, instead of the parent's share."""
        if self._holders is not None:
            os.close(self._holders)  # the parent's descriptor of the same share; its own stays open
        self._holders = os.open(self.path / "holders", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._holders, fcntl.LOCK_SH)

    def release(self) -> bool:
        """Give the share back. True where it was the last one. Call it with the folder locked, so that of two that
        leave at once the second sees that it is the last."""
        if self._holders is None:
            return False
        try:
            fcntl.flock(self._holders, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._is_in_place(self._holders, "holders")
        except BlockingIOError:
            return False
        finally:
            _unlock(self._holders)
            self._holders = None

    def _is_in_place(self, handle: int, name: str) -> bool:
        """Whether the open file still is the one of that name: somebody who tidies up may have removed it, and others
        then share another one."""
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path / name))
        except FileNotFoundError:
            return False

    def stamp(self) -> tuple[int, int] | None:
        """Something that changes with every save, each of which makes a new file; None before the first."""
        try:
            found = os.stat(self.path / "keys.json")
            return found.st_ino, found.st_mtime_ns
        except FileNotFoundError:
            return None

    def load(self) -> HeldKeys:
        """What the folder holds; private keys are read once each. Raises ConfigurationError, KeyRefused or OSError."""
        for _ in range(_READ_ATTEMPTS):
            try:
                text = (self.path / "keys.json").read_bytes()
            except FileNotFoundError:
                return HeldKeys()
            try:
                return self._parse(text)
            except FileNotFoundError:
                continue  # another process has just retired a key that this text still names: read the newer one
        raise ConfigurationError(f"{self.path} names a private key that is not there")

    def pin(self) -> str | None:
        """The root key's thumbprint that an earlier enrolment left in a named folder. Raises ConfigurationError."""
        if self._path is None or not (self._path / "keys.json").exists():
            return None
        return self.load().pin

    def save(self, held: HeldKeys) -> None:
        """Replace what the folder holds, in one step: private keys first, those no longer named destroyed last."""
        for key in held.keys:
            if not self._key_file(key.kid).exists():
                self._write(self._key_file(key.kid), key.pair.to_pem(self._password))
        keys = [{name: getattr(key, name) for name in _MEMBERS} for key in held.keys]
        self._write(self.path / "keys.json", canonical_json({"domain": held.domain, "pin": held.pin, "keys": keys}))
        named = {self._key_file(key.kid) for key in held.keys}
        for file in (*self.path.glob("*.pem"), *self.path.glob(f"{_UNFINISHED}*")):
            if file not in named:
                file.unlink()
        self._pairs = {key.kid: key.pair for key in held.keys}
        for name in ("lock", "holders"):  # never written, so they would look forgotten to whoever tidies up
            with suppress(FileNotFoundError):
                os.utime(self.path / name)

    def discard(self) -> None:
        """Remove a folder that was made for this process alone; a named one stays."""
        if self._ephemeral and self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path, self._checked = None, False

    def _parse(self, text: bytes) -> HeldKeys:
        try:
            members = strict_json_object(text)
            held = HeldKeys(members["domain"], members["pin"], tuple(self._held(key) for key in members["keys"]))
        except (MalformedToken, KeyError, TypeError) as error:
            raise ConfigurationError(f"{self.path / 'keys.json'} cannot be read") from error
        self._pairs = {key.kid: key.pair for key in held.keys}
        return held

    def _held(self, member: dict[str, Any]) -> HeldKey:
        kid = member["kid"]
        pair = self._pairs.get(kid) or KeyPair.from_pem(self._key_file(kid).read_bytes(), self._password)
        return HeldKey(pair=pair, **{name: member[name] for name in _MEMBERS})

    def _key_file(self, kid: str) -> Path:
        return self.path / f"{kid.rpartition('/')[2]}.pem"

    def _write(self, file: Path, data: bytes) -> None:
        """Atomic and durable: a reader, or a host that loses power, sees the old bytes or the new ones."""
        descriptor, name = tempfile.mkstemp(dir=self.path, prefix=_UNFINISHED)  # 0600
        with os.fdopen(descriptor, "wb") as new:
            new.write(data)
            new.flush()
            os.fsync(new.fileno())
        os.replace(name, file)
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # the new name itself
        finally:
            os.close(folder)


def make_private(folder: Path, *, readable: bool = False) -> None:
    """Make the folder, mode 0700. Raises ConfigurationError where one is there into which others could reach, or, where
    it may be ``readable``, in which they could change something."""
    for missing in [path for path in (folder, *folder.parents) if not path.exists()][::-1]:
        missing.mkdir(mode=0o700, exist_ok=True)  # `parents=True` would make those above as the umask allows
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (0o022 if readable else 0o077):
        raise ConfigurationError(f"{folder} must be this user's alone (mode 0700)")


def _unlock(handle: int) -> None:
    """Release and close. Closing alone would not do: a child that was forked meanwhile has the same open file, and the
    lock lives as long as that does."""
    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
