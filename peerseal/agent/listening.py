"""Where the agent listens, and who may connect.

On a Unix socket the kernel tells which user connects (``SO_PEERCRED``), so no secret is needed. The socket has the mode
0600, or 0660 where other users than the agent's own may ask: they must also be in the agent's group. Its folder cannot
be changed by other users. On loopback every user of the host can connect, so each call needs a secret.
"""

import ipaddress
import os
import pwd
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from peerseal.errors import ConfigurationError
from peerseal.runtime.files import Access, Folder
from peerseal.runtime.locks import Opened
from peerseal.runtime.settings import read_text, whole_number
from peerseal.runtime.trusted_path import warn_of_others

SOCKET: Final = "--socket"
SHORTEST_SECRET: Final = 32
"""Characters of a secret: 16 random bytes in hexadecimal digits."""
_BACKLOG: Final = 128
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of Linux: pid, uid, gid
_OTHERS: Final = 0o177
_OTHERS_BUT_GROUP: Final = 0o117
_LARGEST_PORT: Final = 65535


def user_id(connection: socket.socket) -> int:
    """The user at the other end of a Unix socket, as it was when the program connected."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(found)
    return int(uid)


def users_of(names: Iterable[str]) -> frozenset[int]:
    """The ids of these users, each a name or a number, and of this process's own. Raises ConfigurationError."""
    return frozenset((os.geteuid(), *map(_user_of, names)))


def _user_of(name: str) -> int:
    number = whole_number(name)
    if number is not None:
        return number
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"--allow-user={name!r:.60}: no user of this host") from error


@contextmanager
def unix_socket(path: Path, users: frozenset[int]) -> Iterator[socket.socket]:
    """A socket at ``path`` on which these users may connect; it is removed at the end.

    A lock next to it tells a socket in use from one that a killed agent left. Raises ConfigurationError.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        raise ConfigurationError(f"{SOCKET}: this system does not tell who connects: use --listen and --secret-file")
    folder = Folder(path.parent, SOCKET, named=path, access=Access.READABLE, tightens=False).make()
    lock = Opened(folder.open(f"{path.name}.lock", os.O_CREAT | os.O_RDWR))
    try:
        if not lock.lock(wait=0.0):
            raise ConfigurationError(f"{SOCKET}={path}: another agent listens there: stop it, or name another socket")
        _remove_left_over(folder, path)
        with socket.socket(socket.AF_UNIX) as listener:
            _bind(listener, folder.path / path.name, _OTHERS if users == {os.geteuid()} else _OTHERS_BUT_GROUP)
            listener.listen(_BACKLOG)
            try:
                yield listener
            finally:
                folder.remove(path.name)
    finally:
        lock.unlock()


def _remove_left_over(folder: Folder, path: Path) -> None:
    try:
        found = folder.stat(path.name)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(f"{SOCKET}={path}: there is a file that is no socket: name another path")
    folder.remove(path.name)


def _bind(listener: socket.socket, path: Path, mask: int) -> None:
    """The mask, and not a later change of the mode: no other user can connect in between."""
    before = os.umask(mask)
    try:
        listener.bind(str(path))
    except OSError as error:  # a path of more than 107 bytes, too
        raise ConfigurationError(f"{SOCKET}={path}: {error.strerror or error}") from error
    finally:
        os.umask(before)


@contextmanager
def loopback_socket(address: str) -> Iterator[socket.socket]:
    """A socket on ``HOST:PORT``, an address of the loopback interface. Raises ConfigurationError."""
    host, _, port = address.rpartition(":")
    number = whole_number(port)
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        ip = None
    if ip is None or not ip.is_loopback or number is None or number > _LARGEST_PORT:
        raise ConfigurationError(f"--listen={address!r:.60}: expected a loopback address such as 127.0.0.1:7070")
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((str(ip), number))
        except OSError as error:
            raise ConfigurationError(f"--listen={address}: {error.strerror}") from error
        listener.listen(_BACKLOG)
        yield listener


def secret_in(file: Path) -> str:
    """The secret in the file, with a warning where other users can read it. Raises ConfigurationError, which does not
    show it."""
    secret = read_text(file, "--secret-file")
    if secret is None or len(secret) < SHORTEST_SECRET or not secret.isascii():
        raise ConfigurationError(
            f"--secret-file={file}: expected {SHORTEST_SECRET} ASCII characters or more, such as those of"
            " `openssl rand -hex 32`"
        )
    warn_of_others(file, f"--secret-file={file}", "secret")
    return secret
