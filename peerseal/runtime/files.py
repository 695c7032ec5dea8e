"""Folders and files that no other user of the host can change or replace.

A folder is opened once and held by its descriptor, and all work in it is relative to that descriptor. So a folder that
replaces it later is never read, written or emptied. The rules follow OpenSSH's StrictModes
(docs/adr/0005-the-key-folder.md gives the reasons):

1. Every folder on the way belongs to root or to this user. A symbolic link on the way is followed if root or this user
   made it.
2. The folder itself is no link and belongs to this user. A mode that gives access to others is tightened, with a
   warning.
3. A file in it is a regular file of this user or root, with one name. A mode that lets others change it is tightened
   too.
"""

import errno
import fcntl
import hashlib
import math
import os
import re
import secrets
import shutil
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Final, Self

from peerseal.errors import ConfigurationError
from peerseal.runtime.locks import Opened, succeeds_within
from peerseal.runtime.trusted_path import (
    MOST_LINKS,
    Label,
    OpenFolder,
    Walk,
    is_sticky,
    is_trusted,
    remedy,
    state,
    warn_once,
)

DRAFT: Final = ".new-"
"""The beginning of the name of a file that is being written; a process that died may have left one."""
_DRAFT_NAME: Final = re.compile(r"\.new-[a-z0-9_]+")

_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe in a file's place must not block
_OTHERS_WRITE: Final = 0o022
_OTHERS: Final = 0o077
_PRIVATE: Final = 0o700
_LOCK_FILES: Final = 64


def is_of_disk(error: BaseException | None) -> bool:
    """Whether a disk is full or broken, or takes no more of this process (``ulimit -f``): no setting of a command
    changes that, and it may end."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Access(Enum):
    """What other users may do in a folder. The value has the mode bits that they may not have."""

    PRIVATE = 0o077
    """Nothing. The folder is this user's."""
    READABLE = 0o022
    """Read. The folder is this user's."""
    COMMON = 0
    """The folder may be root's, and others may have files in it. Each file that is used is this user's or root's."""


class Folder:
    """A folder, held by its descriptor from the first use on. Safe to use from threads and after a fork.

    ``setting`` is the variable that names it and ``named`` that variable's value, both for messages. A missing folder,
    and those above it, are made with ``mode``; None makes nothing. With ``shareable`` the setting may also name a
    folder of root, or one with the sticky bit, in which every user may make files (an emptyDir, /tmp): then the folder
    is ``peerseal-<uid>`` in it. Reading raises FileNotFoundError where the folder or the file is missing; writing makes
    the folder. Every other failure is a ConfigurationError.

    Without ``tightens`` no mode is changed: a person names the folder or file on a command line, and a typing mistake
    may name any. Then a folder that others may change is refused, and a file that they may change brings a warning."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        setting: str | None = None,
        *,
        named: Path | None = None,
        access: Access = Access.PRIVATE,
        shareable: bool = False,
        mode: int | None = _PRIVATE,
        tightens: bool = True,
        parent: "Folder | None" = None,
    ) -> None:
        self._given = Path(path) if parent is not None else Path(path).absolute()
        self._label = Label(setting, named or self._given)
        self._access = access
        self._shareable = shareable
        self._mode = mode
        self._tightens = tightens
        self._parent = parent
        self._current: OpenFolder | None = None

    def inner(self, name: str) -> "Folder":
        """The folder of that name in this one; private, unless this one is made for all to read."""
        return Folder(
            name,
            self._label.setting,
            named=self._label.named,
            access=self._access if self._mode != _PRIVATE else Access.PRIVATE,
            mode=self._mode,
            tightens=self._tightens,
            parent=self,
        )

    @property
    def path(self) -> Path:
        """The path, for messages and for libraries that need a path. Makes the folder."""
        return self._hold(create=True).path

    @property
    def shown(self) -> Path:
        """The path, without access to the disk."""
        if self._current is not None:
            return self._current.path
        return self._given if self._parent is None else self._parent.shown / self._given

    def make(self) -> Self:
        """Make the folder if it is missing, and check it."""
        self._hold(create=True)
        return self

    def check_writable(self) -> None:
        """Passes if files can be made in the folder."""
        held = self._hold(create=True)
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=held.fd, effective_ids=True):
            raise self._label.trouble(held.path, PermissionError(errno.EACCES, ""), writing=True)

    def is_in_place(self) -> bool:
        """Whether its path still leads to it."""
        try:
            held = self._hold()
            return os.path.samestat(os.stat(held.path, follow_symlinks=False), held.stat())
        except FileNotFoundError:
            return False

    # ---- what lies in it

    def names(self) -> list[str]:
        """The names in the folder; none where it is missing."""
        try:
            held = self._hold()
        except FileNotFoundError:
            return []
        with self._reporting(held):
            return os.listdir(held.fd)

    def stat(self, name: str) -> os.stat_result:
        """The state of the file of that name; of a link, the link's own."""
        held = self._hold()
        with self._reporting(held, name):
            return os.stat(name, dir_fd=held.fd, follow_symlinks=False)

    def open(self, name: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
        """A descriptor of a checked file."""
        held = self._hold(create=bool(flags & os.O_CREAT))
        with self._reporting(held, name):
            handle = os.open(name, flags | _FILE, mode, dir_fd=held.fd)
            try:
                wide = self._wide(held, name, os.fstat(handle))
                if wide is not None:
                    with self._tightening():
                        os.fchmod(handle, wide)
            except BaseException:
                os.close(handle)
                raise
        return handle

    def check(self, name: str, *, readable: bool = False) -> bool:
        """Check a file as `open` does, without opening it; False where it is missing. For SQLite's files: closing
        another descriptor would drop SQLite's locks. Other users may still read a ``readable`` file."""
        held = self._hold()
        try:
            found = os.stat(name, dir_fd=held.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        with self._reporting(held, name):
            others = _OTHERS_WRITE if readable else _OTHERS
            tighter = self._wide(held, name, found, others, links=2)  # one that is put in place now has a second name
            if tighter is not None:
                with self._tightening():
                    os.chmod(name, tighter, dir_fd=held.fd)
        return True

    def link(self, name: str) -> str | None:
        """The target of the link of that name, which root or this user made; None for anything but a link."""
        held = self._hold()
        with self._reporting(held, name):
            found = os.stat(name, dir_fd=held.fd, follow_symlinks=False)
            if not stat.S_ISLNK(found.st_mode):
                return None
            if not is_trusted(found.st_uid):
                raise self._label.refused(
                    held.path / name, f"a symbolic link of another user {state(found)}: remove it"
                )
            return os.readlink(name, dir_fd=held.fd)

    def read(self, name: str, limit: int = -1) -> bytes:
        """The file's bytes, or the first ``limit`` of them."""
        return self.read_dated(name, limit)[0]

    def read_dated(self, name: str, limit: int = -1) -> tuple[bytes, float]:
        """The file's bytes, and when it was changed (seconds since the epoch)."""
        with os.fdopen(self.open(name), "rb") as file:
            return file.read(limit), os.fstat(file.fileno()).st_mtime

    def write(
        self, name: str, data: bytes, *, modified_at: float | None = None, durable: bool = True, mode: int = 0o600
    ) -> None:
        """Replace a file in one step: a reader sees the old bytes or the new ones. If ``durable``, so does a host that
        loses power."""
        held, draft = self._hold(create=True), f"{DRAFT}{secrets.token_hex(8)}"
        with self._reporting(held, name, writing=True):
            handle = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _FILE, mode, dir_fd=held.fd)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    if durable:
                        os.fsync(handle)
                if modified_at is not None:
                    os.utime(draft, (modified_at, modified_at), dir_fd=held.fd, follow_symlinks=False)
                os.replace(draft, name, src_dir_fd=held.fd, dst_dir_fd=held.fd)
            except BaseException:
                with suppress(OSError):
                    os.unlink(draft, dir_fd=held.fd)
                raise
            if durable:
                os.fsync(held.fd)  # the new name itself

    def write_new(self, name: str, data: bytes) -> bool:
        """Write a new file of mode 0600, whole or not at all. False where the file exists: of two processes that begin
        at the same time one wins, with a complete file."""
        draft = f"{DRAFT}{secrets.token_hex(8)}"
        self.write(draft, data)
        try:
            return self.put_in_place(draft, name)
        finally:
            self.remove(draft)

    def put_in_place(self, draft: str, name: str) -> bool:
        """Give a finished file that name as well. False where a file has that name already."""
        held = self._hold()
        try:
            with self._reporting(held, name, writing=True):
                os.link(draft, name, src_dir_fd=held.fd, dst_dir_fd=held.fd, follow_symlinks=False)
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove the file or link of that name, if there is one."""
        with suppress(FileNotFoundError):
            held = self._hold()
            with self._reporting(held, name, writing=True):
                os.unlink(name, dir_fd=held.fd)

    def remove_whole(self, name: str) -> None:
        """Remove the folder of that name with all that is in it, if there is one. No link is followed, and another
        process may remove it, too."""
        with suppress(FileNotFoundError):
            held = self._hold()
            with self._reporting(held, name):
                shutil.rmtree(name, dir_fd=held.fd)

    def remove_drafts(self) -> None:
        """Remove the drafts of processes that died during `write`. Call it where no other process writes."""
        for name in self.names():
            if _DRAFT_NAME.fullmatch(name):
                self.remove(name)

    @contextmanager
    def locked(self, name: str, *, wait: float = math.inf) -> Iterator[bool]:
        """Lock the file of that name for the block: one process and thread at a time. Gives False, without the lock,
        where another one still holds it after ``wait`` seconds."""
        file = Opened(self.open(name, os.O_CREAT | os.O_RDWR))
        try:
            yield file.lock(wait=wait)
        finally:
            file.unlock()

    def date(self, name: str, at: float | None = None) -> None:
        """Set the time of the file's last change, to now by default. Raises FileNotFoundError."""
        held = self._hold()
        with self._reporting(held, name, writing=True):
            os.utime(name, None if at is None else (at, at), dir_fd=held.fd, follow_symlinks=False)

    # ---- how it is opened

    def _hold(self, *, create: bool = False) -> OpenFolder:
        """The folder's descriptor. It is opened again, with all checks, after the folder was deleted or the process
        closed descriptors that it did not know."""
        held = self._current
        if held is None or not held.lives():
            held = self._current = self._opened(create)
        return held

    def _opened(self, create: bool) -> OpenFolder:
        lenient = self._access is Access.COMMON and os.geteuid() == 0
        walk = Walk(self._label, self._mode if create else None, lenient, tightens=self._tightens)
        if self._parent is not None:
            parent = self._parent._hold(create=create)
            return self._secured(walk.held(parent.fd, str(self._given), parent.path))
        if self._access is Access.COMMON:
            return self._secured(walk.whole(self._given))
        above, name = self._given.parent, self._given.name
        on_the_way = walk.to(above)
        held = walk.held(on_the_way.fd, name, on_the_way.path) if name else walk.whole(above)
        found = held.stat()
        if self._shareable and is_trusted(found.st_uid) and (found.st_uid != os.geteuid() or is_sticky(found)):
            held = walk.held(held.fd, f"peerseal-{os.geteuid()}", held.path)
        return self._secured(held)

    def _secured(self, held: OpenFolder) -> "OpenFolder":
        """The folder, if it is this user's alone or can be made so."""
        found, me = held.stat(), os.geteuid()
        if self._access is Access.COMMON:
            if not is_trusted(found.st_uid) and me != 0:
                raise self._label.refused(
                    held.path, f"belongs to neither root nor uid {me} {state(found)}: {remedy(me)}"
                )
            return held
        if found.st_uid != me:
            raise self._label.refused(held.path, f"not owned by uid {me} {state(found)}: {remedy(me)}")
        wide = stat.S_IMODE(found.st_mode) & self._access.value
        if wide and is_sticky(found):
            raise self._label.refused(held.path, f"every user may write there {state(found)}: name a folder inside it")
        if wide and not self._tightens:
            raise self._label.refused(
                held.path, f"others may change what lies in it {state(found)}: name another folder, or chmod go-w"
            )
        if wide:
            wanted = stat.S_IMODE(found.st_mode) & 0o777 & ~self._access.value
            with self._reporting(held):
                os.fchmod(held.fd, wanted)
            warn_once(f"{self._label.of(held.path)}: others had access {state(found)}; tightened to {wanted:04o}")
            if held.stat().st_mode & self._access.value:
                raise self._label.refused(
                    held.path, f"its mode cannot be changed {state(found)}: use another file system"
                )
        return held

    def _wide(
        self, held: OpenFolder, name: str, found: os.stat_result, others: int = _OTHERS, links: int = 1
    ) -> int | None:
        """The tighter mode that a file needs, without the rights ``others``, or None. Raises
        ConfigurationError for another user's file, and for one that every user may change and this user
        cannot tighten."""
        path, me, common = held.path / name, os.geteuid(), self._access is Access.COMMON
        if not stat.S_ISREG(found.st_mode):
            raise self._label.refused(path, f"not a regular file {state(found)}: name another one")
        of_the_folder = common and me == 0 and found.st_uid == held.stat().st_uid
        if not is_trusted(found.st_uid) and not of_the_folder:
            raise self._label.refused(path, f"not owned by uid {me} {state(found)}: another user made it; remove it")
        if found.st_nlink > (2 if common else links):
            raise self._label.refused(path, f"has {found.st_nlink} names {state(found)}: remove the other hard links")
        wide = found.st_mode & others & ~(self._mode or _PRIVATE)
        if found.st_uid != me:
            if found.st_mode & stat.S_IWOTH:
                raise self._label.refused(path, f"every user may change it {state(found)}: chmod o-w")
            return None
        if not wide:
            return None
        if not self._tightens:
            if found.st_mode & _OTHERS_WRITE:
                warn_once(f"{self._label.of(path)}: others may change it {state(found)}: chmod go-w")
            return None
        warn_once(f"{self._label.of(held.path)}: others had access to {name} {state(found)}; tightened")
        return stat.S_IMODE(found.st_mode) & 0o777 & ~wide

    @contextmanager
    def _tightening(self) -> Iterator[None]:
        """Ignores a read-only mount: others cannot change a file there either."""
        try:
            yield
        except OSError as error:
            if self._access is not Access.COMMON or error.errno != errno.EROFS:
                raise

    @contextmanager
    def _reporting(self, held: OpenFolder, name: str | None = None, *, writing: bool = False) -> Iterator[None]:
        """Adds the folder or file to the system's error. FileNotFoundError and FileExistsError are for the caller."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            path = held.path if name is None or writing else held.path / name
            raise self._label.trouble(path, error, writing) from error


class NameLock:
    """A lock on a name, in a folder: one process and thread at a time holds it, and names need no files.

    It is one byte of the file ``locks``, as an open-file-description lock: like `flock` it belongs to the open file, so
    a forked child neither has it nor drops it. Where the system has no such locks, the name's hash chooses one of 64
    files.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        digest = hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest()
        self._place = int.from_bytes(digest, "big") >> 2
        kind = re.split(r"[-.]", name, maxsplit=1)[0]  # a process may hold locks of two kinds
        self._file = f"{kind}-{self._place % _LOCK_FILES}.lock"
        self._folder = folder
        self._by_file = not hasattr(fcntl, "F_OFD_SETLK")
        self._handle = folder.open(self._file if self._by_file else "locks", os.O_CREAT | os.O_RDWR)

    def lock(self, *, wait: float = 0.0) -> bool:
        """Take it. False where another process or thread still holds it after ``wait`` seconds. Raises OSError or
        ConfigurationError."""
        return succeeds_within(wait, self._lock_now)

    def _lock_now(self) -> bool:
        try:
            self._apply(fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.F_WRLCK)
        except BlockingIOError:
            return False
        except OSError as error:
            if self._by_file or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise
            os.close(self._handle)
            self._by_file = True
            self._handle = self._folder.open(self._file, os.O_CREAT | os.O_RDWR)
            return self._lock_now()
        return True

    def close(self) -> None:
        """Release it. Closing is not enough: a child that was forked in between has the same open file."""
        with suppress(OSError):
            self._apply(fcntl.LOCK_UN, fcntl.F_UNLCK)
        os.close(self._handle)

    def _apply(self, whole: int, part: int) -> None:
        if self._by_file:
            fcntl.flock(self._handle, whole)
        else:
            wanted = struct.pack("hhqqi4x", part, os.SEEK_SET, self._place, 1, 0)  # struct flock
            fcntl.fcntl(self._handle, fcntl.F_OFD_SETLK, wanted)


def read_file(path: Path, limit: int = -1, *, tightens: bool = True) -> bytes:
    """Read a file in a folder of this user or root. Links that root or this user made are followed: Kubernetes mounts
    secrets as links. ``tightens`` as of `Folder`. Raises FileNotFoundError or ConfigurationError."""
    folder, name = resolved(path, tightens=tightens)
    return folder.read(name, limit)


def tighten_file(path: Path) -> None:
    """Take the rights of others from a file that `read_file` read. Raises FileNotFoundError or ConfigurationError."""
    folder, name = resolved(path)
    folder.check(name)


def resolved(path: Path, *, tightens: bool = True) -> tuple[Folder, str]:
    """The folder of that file, which may be missing, and its name there. Links of root and this user are followed.
    ``tightens`` as of `Folder`. Raises FileNotFoundError or ConfigurationError."""
    path = path.absolute()
    for _ in range(MOST_LINKS):
        folder = Folder(path.parent, access=Access.COMMON, tightens=tightens)
        try:
            target = folder.link(path.name)
        except FileNotFoundError:
            target = None
        if target is None:
            return folder, path.name
        path = path.parent / target
    raise ConfigurationError(f"{path}: links lead in a circle")


def make_private(folder: Path, *, readable: bool = False) -> None:
    """Make the folder this user's alone: mode 0700, or, if ``readable``, a mode in which others cannot change it.
    Raises ConfigurationError where that fails."""
    Folder(folder, access=Access.READABLE if readable else Access.PRIVATE).make()


def cache_folder(path: str | os.PathLike[str], setting: str = "PEERSEAL_CACHE_DIR") -> Folder:
    """The folder in which the processes of a service share their caches."""
    return Folder(path, setting, access=Access.READABLE, shareable=True)
