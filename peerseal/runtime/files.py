"""Folders of this user's own, and files in them, that no other user of the host can read, change or replace.

As OpenSSH's StrictModes: the folders on the way are checked; the folder itself is opened once, following no link,
and everything in it is done relative to that descriptor, so that a folder that is put in its place afterwards is never
read, written or emptied. Each file that is opened is a regular file of this user's or root's with one name.
docs/adr/0005-the-key-folder.md has the reasons.
"""

import logging
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from peerseal.errors import ConfigurationError

log = logging.getLogger("peerseal.files")

DRAFT: Final = ".new-"
"""How the name of a file begins that is being written; a process that died may have left one."""
_NO_LINK: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe in a file's place must not block
_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = 0o022
_warned: set[str] = set()


class PrivateFolder:
    """A folder, made and opened at its first use. ``setting`` is the variable that named it, for messages.

    Where it may be ``readable`` others may read in it, and not write. A folder that belongs to root, in which this
    user may write, as Kubernetes mounts one, is not used itself but ``peerseal-<uid>`` in it. Methods raise OSError for
    a single file, and ConfigurationError where the folder cannot be this user's own.
    """

    def __init__(self, path: Path, setting: str | None = None, *, readable: bool = False) -> None:
        self._named = path
        self._path = path
        self._setting = setting
        self._mask = _OTHERS_WRITE if readable else _OTHERS
        self._held: _Held | None = None

    @property
    def path(self) -> Path:
        """Where it is."""
        self.descriptor()
        return self._path

    @property
    def shown(self) -> Path:
        """Where it is, or would be; makes nothing, and raises nothing."""
        return self._path

    def descriptor(self) -> int:
        """The open folder. One that was deleted meanwhile is made again, with all checks."""
        held = self._held
        if held is None or not held.lives():
            held = self._held = _Held(self._opened())
        return held.descriptor

    def exists(self) -> bool:
        """Whether it is there already; makes nothing."""
        return self._held is not None or self._named.is_dir()

    # ---- files in it

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of the file of that name, whose mode is 0600 where it is made. Raises OSError, and
        ConfigurationError for a link, another user's file, or one with a second name."""
        handle = os.open(name, flags | _NO_LINK, 0o600, dir_fd=self.descriptor())
        try:
            self._check_file(handle, name)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def read(self, name: str, limit: int = -1) -> tuple[bytes, float]:
        """The file's bytes, ``limit`` at most, and when it was changed (seconds since the epoch)."""
        with os.fdopen(self.open(name), "rb") as file:
            return file.read(limit), os.fstat(file.fileno()).st_mtime

    def write(self, name: str, data: bytes, *, modified_at: float | None = None, durable: bool = True) -> None:
        """Put a file of mode 0600 in place in one step: a reader, or a host that loses power where it is ``durable``,
        sees the old bytes or the new ones."""
        folder, draft = self.descriptor(), f"{DRAFT}{secrets.token_hex(8)}"
        handle = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_LINK, 0o600, dir_fd=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            if modified_at is not None:
                os.utime(draft, (modified_at, modified_at), dir_fd=folder)
            os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft, dir_fd=folder)
            raise
        if durable:
            os.fsync(folder)  # the new name itself

    def names(self) -> list[str]:
        """The names in it."""
        return os.listdir(self.descriptor())

    def stat(self, name: str) -> os.stat_result:
        """Of the file, or of a link itself."""
        return os.stat(name, dir_fd=self.descriptor(), follow_symlinks=False)

    def remove(self, name: str) -> None:
        """Remove the file or link of that name, if there is one."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor())

    def date(self, name: str, at: float | None = None) -> None:
        """Say that the file was changed at that time, or now."""
        os.utime(name, None if at is None else (at, at), dir_fd=self.descriptor(), follow_symlinks=False)

    def path_for_libraries(self, name: str) -> Path:
        """A path for a library that opens files itself, such as SQLite: through the open folder where the system has
        such paths, so that it leads there whatever was renamed meanwhile. A file that is there is checked."""
        with suppress(FileNotFoundError):
            self._check_stat(self.stat(name), name)
        through = Path(f"/proc/self/fd/{self.descriptor()}")
        return (through.resolve() if through.exists() else self._path) / name

    # ---- how it is opened

    def _opened(self) -> int:
        self._path = self._named
        try:
            self._make()
            descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(_why(error, self._path)) from error
        found = os.fstat(descriptor)
        if found.st_uid == 0 != os.geteuid():
            os.close(descriptor)
            self._path = self._named / f"peerseal-{os.geteuid()}"
            return self._opened_inside()
        try:
            self._secure(descriptor, found)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _opened_inside(self) -> int:
        try:
            with suppress(FileExistsError):
                self._path.mkdir(mode=0o700)
            descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(_why(error, self._named)) from error
        try:
            self._secure(descriptor, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _make(self) -> None:
        """The folder and those above it, each with mode 0700 where it is missing: `parents=True` would make them as the
        umask allows."""
        for above in reversed(self._path.absolute().parents):
            self._check_above(above)
        if not self._path.is_symlink():
            with suppress(FileExistsError):
                self._path.mkdir(mode=0o700)

    def _check_above(self, folder: Path) -> None:
        """A folder on the way belongs to root or this user. Where others may rename in it, what is opened is checked
        all the same; its owner hears of it, since they can take the folder away."""
        with suppress(FileExistsError):
            if not folder.exists():
                folder.mkdir(mode=0o700)
        found = folder.stat()
        if found.st_uid not in (0, os.geteuid()):
            raise self._refused(f"{folder} on the way belongs to another user {_state(found)}")
        if found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
            self._warn(f"others may rename and remove what lies in {folder} {_state(found)}")

    def _secure(self, descriptor: int, found: os.stat_result) -> None:
        if found.st_uid != os.geteuid():
            raise self._refused(f"belongs to another user {_state(found)}, not to uid {os.geteuid()}: chown it")
        wide = found.st_mode & self._mask
        if wide and found.st_mode & stat.S_ISVTX:
            raise self._refused(f"every user may write there {_state(found)}: name a folder in it")
        if wide:
            self._warn(f"others had access {_state(found)}; tightened")
            try:
                os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & 0o777 & ~self._mask)
            except OSError as error:
                raise self._refused(f"others have access {_state(found)}: chmod 0700") from error
            if os.fstat(descriptor).st_mode & self._mask:
                raise self._refused(f"others have access, and its mode does not change {_state(found)}")

    def _check_file(self, handle: int, name: str) -> None:
        found = os.fstat(handle)
        self._check_stat(found, name)
        if found.st_uid == os.geteuid() and found.st_mode & _OTHERS:
            self._warn(f"others had access to {name} {_state(found)}; tightened")
            os.fchmod(handle, 0o600)

    def _check_stat(self, found: os.stat_result, name: str) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise self._refused(f"{name} is no regular file {_state(found)}: remove it")
        if found.st_uid not in (0, os.geteuid()):
            raise self._refused(f"{name} belongs to another user {_state(found)}: remove it")
        if found.st_nlink > 2:  # one that is being put in place has a second name for a moment
            raise self._refused(f"{name} has {found.st_nlink} names: remove the other hard links")

    def _refused(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"{self._label()}: {why}")

    def _warn(self, what: str) -> None:
        message = f"{self._label()}: {what}"
        if message not in _warned:
            _warned.add(message)
            log.warning("%s", message)

    def _label(self) -> str:
        return f"{self._setting}: {self._path}" if self._setting else str(self._path)


def make_private(folder: Path, *, readable: bool = False, setting: str | None = None) -> None:
    """Make the folder this user's own, or one that others may at most read. Raises ConfigurationError."""
    PrivateFolder(folder, setting, readable=readable).descriptor()


class _Held:
    """An open folder, closed with the last reference to it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._is = os.fstat(descriptor)

    def lives(self) -> bool:
        """Whether the folder still has a name, and the descriptor still is the folder's: programs that become daemons
        close what they do not know."""
        try:
            found = os.fstat(self.descriptor)
        except OSError:
            return False
        return found.st_nlink > 0 and os.path.samestat(found, self._is)

    def __del__(self) -> None:
        with suppress(OSError, AttributeError, TypeError):  # the last two at the interpreter's end
            if os.path.samestat(os.fstat(self.descriptor), self._is):
                os.close(self.descriptor)


def _state(found: os.stat_result) -> str:
    return f"(mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid})"


def _why(error: OSError, folder: Path) -> str:
    """What the system refused, by whom, and the state of the nearest folder that is there."""
    with suppress(OSError):
        if folder.is_symlink():
            return "it is a symbolic link: name the folder that it leads to"
    about = next(filter(None, map(_described, (folder, *folder.parents))), str(folder))
    if isinstance(error, PermissionError):
        return f"not writable by uid {os.geteuid()}: {about}"
    return f"{error.strerror}: {about}"


def _described(folder: Path) -> str | None:
    """A folder with its state; None where it is not there or cannot be seen."""
    try:
        return f"{folder} {_state(folder.stat())}"
    except OSError:
        return None
