"""The folder through which the workers of one host share their service's keys.

It holds ``keys.json`` (which keys, since when), one PKCS #8 file a private key, and two lock files: ``lock``, held by
the one process that changes the folder, and ``holders``, of which every process that uses the keys holds a share. The
kernel drops a dead process's locks, so nothing here goes stale. Files are 0600, the folder 0700.
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

from peerseal.errors import ConfigurationError, InvalidName, MalformedToken
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import split_kid, split_service_id
from peerseal.runtime.files import PrivateFolder, make_private

__all__ = ["HeldKey", "HeldKeys", "KeyFolder", "make_private"]

_READ_ATTEMPTS = 5
_OURS = re.compile(r"[A-Za-z0-9_-]{43}\.pem|\.new-[0-9a-z_]{1,20}")
"""Names of private keys, and of files that a process which died may have left half written."""
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

    def __init__(
        self, path: str | os.PathLike[str] | None, service: str | None = None, *, setting: str = "PEERSEAL_KEY_DIR"
    ) -> None:
        self._ephemeral = path is None
        self._password = os.urandom(32).hex().encode() if path is None else None
        self._folder = None if path is None else PrivateFolder(Path(path), setting)
        self._service = service
        self._holders: int | None = None
        self._pairs: dict[str, KeyPair] = {}

    @property
    def path(self) -> Path:
        """The folder, made on first use. Raises ConfigurationError where others could reach into it."""
        return self._files.path

    @property
    def _files(self) -> PrivateFolder:
        if self._folder is None:
            self._folder = PrivateFolder(Path(_temporary_folder()))
        return self._folder

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[bool]:
        """Be the one process and thread that changes the folder. Gives False, and no lock, where another one is at it
        and ``wait`` is False."""
        handle = self._files.open("lock", os.O_CREAT | os.O_RDWR)
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
        self._holders = self._files.open("holders", os.O_CREAT | os.O_RDWR)
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
            return os.path.samestat(os.fstat(handle), self._files.stat(name))
        except FileNotFoundError:
            return False

    def stamp(self) -> tuple[int, int] | None:
        """Something that changes with every save, each of which makes a new file; None before the first."""
        try:
            found = self._files.stat("keys.json")
            return found.st_ino, found.st_mtime_ns
        except FileNotFoundError:
            return None

    def load(self) -> HeldKeys:
        """What the folder holds; private keys are read once each. Raises ConfigurationError, KeyRefused or OSError."""
        for _ in range(_READ_ATTEMPTS):
            try:
                text = self._files.read("keys.json")[0]
            except FileNotFoundError:
                return HeldKeys()
            try:
                return self._parse(text)
            except FileNotFoundError:
                continue  # another process has just retired a key that this text still names: read the newer one
        raise ConfigurationError(f"{self.path} names a private key that is not there")

    def pin(self) -> str | None:
        """The root key's thumbprint that an earlier enrolment left in a named folder. Raises ConfigurationError."""
        if self._folder is None or not self._folder.exists():
            return None
        return self.load().pin

    def save(self, held: HeldKeys) -> None:
        """Replace what the folder holds, in one step: private keys first, those no longer named destroyed last."""
        present = set(self._files.names())
        for key in held.keys:
            if _key_file(key.kid) not in present:
                self._files.write(_key_file(key.kid), key.pair.to_pem(self._password))
        keys = [{name: getattr(key, name) for name in _MEMBERS} for key in held.keys]
        self._files.write("keys.json", canonical_json({"domain": held.domain, "pin": held.pin, "keys": keys}))
        named = {_key_file(key.kid) for key in held.keys}
        for name in present - named:
            if _OURS.fullmatch(name):  # names that nothing but this class gives
                self._files.remove(name)
        self._pairs = {key.kid: key.pair for key in held.keys}
        for name in ("lock", "holders"):  # never written, so they would look forgotten to whoever tidies up
            with suppress(FileNotFoundError):
                self._files.date(name)

    def discard(self) -> None:
        """Remove a folder that was made for this process alone; a named one stays."""
        if self._ephemeral and self._folder is not None:
            shutil.rmtree(self._folder.path, ignore_errors=True)
            self._folder = None

    def _parse(self, text: bytes) -> HeldKeys:
        try:
            members = strict_json_object(text)
            held = HeldKeys(members["domain"], members["pin"], tuple(self._held(key) for key in members["keys"]))
        except (MalformedToken, KeyError, TypeError, InvalidName) as error:
            raise ConfigurationError(f"{self.path / 'keys.json'} cannot be read") from error
        self._pairs = {key.kid: key.pair for key in held.keys}
        return held

    def _held(self, member: dict[str, Any]) -> HeldKey:
        kid = member["kid"]
        pair = self._pairs.get(kid)
        if pair is None:
            pair = KeyPair.from_pem(self._files.read(_key_file(kid))[0], self._password)
            self._check_kid(kid, pair)
        return HeldKey(pair=pair, **{name: member[name] for name in _MEMBERS})

    def _check_kid(self, kid: str, pair: KeyPair) -> None:
        """The file is the key that its name says, and this service's: another folder may have been put in place."""
        owner, thumbprint = split_kid(kid)
        if pair.public.thumbprint != thumbprint:
            raise ConfigurationError(f"{self.path / _key_file(kid)} holds another key than its name says")
        if self._service is not None and split_service_id(owner)[1] != self._service:
            raise ConfigurationError(f"{self.path} holds a key of {owner}, and is the folder of {self._service}")


def _key_file(kid: str) -> str:
    return f"{split_kid(kid)[1]}.pem"


def _temporary_folder() -> str:
    try:
        return tempfile.mkdtemp(prefix="peerseal-keys-")
    except OSError as error:
        raise ConfigurationError(
            f"no folder for temporary files can be used ({error.strerror}): set PEERSEAL_KEY_DIR, or TMPDIR to one"
        ) from error


def _unlock(handle: int) -> None:
    """Release and close. Closing alone would not do: a child that was forked meanwhile has the same open file, and the
    lock lives as long as that does."""
    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
