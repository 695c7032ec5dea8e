"""The way to a folder: each step is checked, and a later swap of a folder on the way has no effect."""

import errno
import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from peerseal.errors import ConfigurationError
from peerseal.runtime.locks import Opened

log = logging.getLogger("peerseal.files")

_ON_THE_WAY: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HELD: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MOST_LINKS: Final = 40


@dataclass(frozen=True, slots=True)
class Label:
    """How messages name a path: ``setting`` is the variable that it comes from, ``named`` that variable's value."""

    setting: str | None
    named: Path

    def of(self, path: Path) -> str:
        """``SETTING=VALUE`` and, where it is another one, the path."""
        if self.setting is None:
            return str(path)
        named = f"{self.setting}={self.named}"
        return named if path == self.named else f"{named}: {path}"

    def refused(self, path: Path, problem: str) -> ConfigurationError:
        """The error that names a path and its problem."""
        return ConfigurationError(f"{self.of(path)}: {problem}")

    def trouble(self, path: Path, error: OSError, writing: bool = False) -> ConfigurationError:
        """The error for a path that the system refuses."""
        if error.errno == errno.EROFS:
            return self.refused(path, "on a read-only file system: mount a volume that can be written there")
        if error.errno == errno.ELOOP:
            return self.refused(path, "a symbolic link, which is not followed: name the folder or file itself")
        if not isinstance(error, PermissionError):
            return self.refused(path, error.strerror or str(error))
        what = "writable" if writing else "accessible"
        me = os.geteuid()
        try:
            found = os.stat(path, follow_symlinks=False)
        except OSError:
            return self.refused(path, f"not {what} by uid {me}: {remedy(me)}")
        return self.refused(path, f"not {what} by uid {me} {state(found)}: {remedy(me)}")


class OpenFolder(Opened):
    """An open folder and its path. It is closed with the last reference to it, so that no thread uses a number that now
    belongs to another file."""

    def __init__(self, fd: int, path: Path) -> None:
        super().__init__(fd)
        self.path = path

    def lives(self) -> bool:
        """Whether the descriptor still belongs to this folder, and the folder exists."""
        return self.is_open() and self.stat().st_nlink > 0

    def __del__(self) -> None:
        self.close()


class Walk:
    """From the root to a folder, one checked step at a time. Missing folders are made with the ``mode``, if any; a
    ``lenient`` walk passes folders of any user. ``tightens`` as of `peerseal.runtime.files.Folder`."""

    def __init__(self, label: Label, mode: int | None, lenient: bool, *, tightens: bool = True) -> None:
        self._label = label
        self._mode = mode
        self._lenient = lenient
        self._tightens = tightens
        self._links = 0

    def to(self, path: Path) -> OpenFolder:
        """The folder at that path, as a place to go on from. It need not be readable."""
        here = OpenFolder(os.open(path.anchor, _ON_THE_WAY), Path(path.anchor))
        ahead = list(path.parts[:0:-1])
        self._check(here)
        while ahead:
            name = ahead.pop()
            try:
                inner = self._enter(here.fd, name, here.path, _ON_THE_WAY)
                here = OpenFolder(inner, here.path.parent if name == ".." else here.path / name)  # free of links
            except NotADirectoryError:
                target = self._target(here, name)
                if target.is_absolute():
                    here = OpenFolder(os.open(target.anchor, _ON_THE_WAY), Path(target.anchor))
                ahead.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
            else:
                self._check(here)
        return here

    def whole(self, path: Path) -> OpenFolder:
        """The folder at that path, links followed, to work in."""
        here = self.to(path)
        return OpenFolder(self._enter(here.fd, ".", here.path, _HELD), here.path)

    def held(self, parent: int, name: str, above: Path) -> OpenFolder:
        """The folder of that name, which is no link, to work in."""
        try:
            return OpenFolder(self._enter(parent, name, above, _HELD), above / name)
        except NotADirectoryError as error:
            raise self._no_folder(parent, name, above) from error

    def _enter(self, parent: int, name: str, above: Path, flags: int) -> int:
        """Raises NotADirectoryError, also for a link, and FileNotFoundError where nothing is made."""
        try:
            return self._opened(parent, name, flags)
        except FileNotFoundError:
            if self._mode is None:
                raise
        except (NotADirectoryError, ConfigurationError):
            raise
        except OSError as error:
            raise self._label.trouble(above / name, error) from error
        try:
            with suppress(FileExistsError):
                os.mkdir(name, self._mode, dir_fd=parent)
            return self._opened(parent, name, flags)
        except NotADirectoryError:
            raise
        except OSError as error:
            raise self._label.trouble(above, error, writing=True) from error

    @staticmethod
    def _opened(parent: int, name: str, flags: int) -> int:
        try:
            return os.open(name, flags, dir_fd=parent)
        except OSError as error:
            if error.errno == errno.ELOOP:  # as some systems say it of a link
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
            raise

    def _target(self, here: OpenFolder, name: str) -> Path:
        """The target of a link on the way."""
        try:
            found = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
            target = os.readlink(name, dir_fd=here.fd) if stat.S_ISLNK(found.st_mode) else ""
        except OSError as error:  # such as a link to another process's files in /proc, or one that is gone again
            raise self._label.trouble(here.path / name, error) from error
        self._links += 1
        if not target or self._links > MOST_LINKS:
            raise self._no_folder(here.fd, name, here.path)
        if not is_trusted(found.st_uid):
            raise self._label.refused(here.path / name, f"a symbolic link of another user {state(found)}: remove it")
        return Path(target)

    def _no_folder(self, parent: int, name: str, above: Path) -> ConfigurationError:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "a file"
        return self._label.refused(above / name, f"{what}, not a folder {state(found)}: name the folder itself")

    def _check(self, here: OpenFolder) -> None:
        found, me = here.stat(), os.geteuid()
        if not is_trusted(found.st_uid) and not self._lenient:
            problem = f"belongs to neither root nor uid {me} {state(found)}, and its owner may replace what lies in it"
            raise self._label.refused(here.path, f"{problem}: {remedy(me)}, or choose another folder")
        if others_may_rename(found) and not self._made_sticky(here, found):
            warn_once(
                f"{self._label.of(here.path)}: other users may rename what lies in it {state(found)}: a restart may "
                "find nothing there; give this service a volume or folder of its own, or set the sticky bit (chmod +t)"
            )

    def _made_sticky(self, here: OpenFolder, found: os.stat_result) -> bool:
        """Set the sticky bit on the folder that the setting names, if it is this user's: then only owners rename files
        in it. Its mode stays the same otherwise, since services of several users may share it."""
        if not self._tightens or here.path != self._label.named or found.st_uid != os.geteuid():
            return False
        named = OpenFolder(os.open(".", _HELD, dir_fd=here.fd), here.path)
        with suppress(OSError):
            os.fchmod(named.fd, stat.S_IMODE(found.st_mode) | stat.S_ISVTX)
        if is_sticky(named.stat()):
            warn_once(f"{self._label.of(here.path)}: others could rename what lies in it {state(found)}; made sticky")
        return is_sticky(named.stat())


def is_trusted(owner: int) -> bool:
    """Whether that owner is root or this user, so that no other user can change the file."""
    return owner in (0, os.geteuid()) or _is_unmapped(owner)


@lru_cache(16)
def _is_unmapped(owner: int) -> bool:
    """Whether no process of this user namespace can be that user: files of the host's root look like that."""
    try:
        lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    ranges = [(int(first), int(count)) for first, _, count in map(str.split, lines)]
    return bool(ranges) and not any(first <= owner < first + count for first, count in ranges)


def is_sticky(found: os.stat_result) -> bool:
    """Whether only owners may rename and remove in that folder, as in /tmp."""
    return bool(found.st_mode & stat.S_ISVTX)


def others_may_rename(found: os.stat_result) -> bool:
    """Whether other users may rename files of this user in that folder. This user's primary group counts as its own:
    many systems give each user one."""
    by_group = found.st_mode & stat.S_IWGRP and found.st_gid != os.getegid()
    return not is_sticky(found) and bool(found.st_mode & stat.S_IWOTH or by_group)


def warn_of_others(file: Path, shown: str, what: str) -> None:
    """Log a warning where other users can read or change a secret file, which is named ``shown`` and holds ``what``. It
    stays as it is: Kubernetes mounts secrets that each user of a container may read."""
    found = file.stat()
    if found.st_mode & 0o077 or not is_trusted(found.st_uid):
        log.warning("%s: others have access to this %s %s: make a new one, of mode 0600", shown, what, state(found))


def state(found: os.stat_result) -> str:
    """Mode and owner, for a message."""
    return f"(mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid})"


def remedy(uid: int) -> str:
    """The advice for a wrong owner."""
    return f"chown it to uid {uid}, or run the process as its owner"


@lru_cache(256)
def warn_once(message: str, to: logging.Logger = log) -> None:
    """Log each message once: several parts of a process open the same folder, or read the same variable."""
    to.warning("%s", message)
