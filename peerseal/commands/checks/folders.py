"""Checks of the folders, and of what the workers of this host share through them."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from peerseal.commands.checks.finding import Finding, error, ok, warning
from peerseal.commands.checks.host import Host, open_to_others
from peerseal.errors import PeersealError
from peerseal.runtime.trusted_path import is_trusted, remedy, state
from peerseal.verify.replay.redis import RedisReplayGuard

_WORKERS = re.compile(r"(?:-w|--workers)[= ]?([0-9]{1,6})")


def check_key_folder(host: Host) -> Iterator[Finding]:
    """The folder for keys is this user's, or can be made."""
    folder = host.key_folder
    if host.settings.path("PEERSEAL_KEY_DIR") is None:
        yield warning(
            "PEERSEAL_KEY_DIR is not set: each process has a key of its own, which is gone with it",
            "set it to a folder that outlives a restart, or each start needs a new join token",
        )
    elif folder is not None:
        yield _finding_of("PEERSEAL_KEY_DIR", folder, private=True)


def check_cache_folder(host: Host) -> Iterator[Finding]:
    """There is a folder for the registry's documents and the replay guard."""
    folder = host.settings.path("PEERSEAL_CACHE_DIR")
    if folder is not None:
        yield _finding_of("PEERSEAL_CACHE_DIR", folder, private=False)
    elif host.settings.path("PEERSEAL_KEY_DIR") is not None:
        yield ok("PEERSEAL_CACHE_DIR is not set: the key folder is used")
    else:
        yield warning(
            "PEERSEAL_CACHE_DIR is not set: a start fails while the registry is down, and each worker accepts a token"
            " once",
            "set it, or PEERSEAL_KEY_DIR, to a folder that outlives a restart",
        )


def _finding_of(setting: str, folder: Path, *, private: bool) -> Finding:
    """Reports the state of a folder, and changes nothing in it."""
    shown, me = f"{setting}: {folder}", os.geteuid()
    try:
        if (above := _owned_by_another(folder, private=private)) is not None:
            found = f"{shown}: {above} belongs to neither root nor uid {me} {state(above.stat())}"
            advice = f"{remedy(me)}, or choose another folder"
            return error(f"{found}, and its owner may replace what lies in it", advice)
        if not folder.exists():
            return _finding_of_missing(setting, folder)
        return _finding_of_present(setting, folder, private=private)
    except OSError as failed:
        return error(f"{shown} cannot be looked at by uid {me}: {failed.strerror}", remedy(me))


def _finding_of_present(setting: str, folder: Path, *, private: bool) -> Finding:
    shown, me, found = f"{setting}: {folder}", os.geteuid(), folder.stat()
    if not folder.is_dir():
        return error(f"{shown} is a file {state(found)}", f"name a folder in {setting}")
    if not is_trusted(found.st_uid):
        return error(f"{shown} belongs to neither root nor uid {me} {state(found)}", remedy(me))
    if unwritable := _unwritable(folder):
        return error(f"{shown} is {unwritable[0]}", unwritable[1])
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return error(f"{shown} is not writable by uid {me} {state(found)}", remedy(me))
    if private and (wide := open_to_others(folder)):
        return warning(f"{wide[0]} is open to other users {state(wide[0].stat())}", f"chmod -R go= {folder}")
    return ok(f"{shown} {state(found)}")


def _unwritable(folder: Path) -> tuple[str, str] | None:
    """Why nothing can be written on the folder's file system, whatever its mode, and what to do."""
    found = os.statvfs(folder)
    if found.f_flag & os.ST_RDONLY:
        return "on a read-only file system", "mount a volume that can be written there"
    if not found.f_bavail or (found.f_files and not found.f_favail):  # some file systems do not count files
        return "on a full file system", "make room there: a key that cannot be written is not used"
    return None


def _owned_by_another(folder: Path, *, private: bool) -> Path | None:
    """The first folder on the way that belongs to another user. Root itself trusts such a folder, except with keys."""
    if os.geteuid() == 0 and not private:
        return None
    on_the_way = (parent for parent in folder.resolve().parents if parent.exists())
    return next((parent for parent in on_the_way if not is_trusted(parent.stat().st_uid)), None)


def _finding_of_missing(setting: str, folder: Path) -> Finding:
    shown, above = f"{setting}: {folder}", next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir():
        return error(f"{shown} cannot be made: {above} is a file {state(above.stat())}", f"name a folder in {setting}")
    if unwritable := _unwritable(above):
        return error(f"{shown} cannot be made: {above} is {unwritable[0]}", unwritable[1])
    if os.access(above, os.W_OK | os.X_OK):
        return ok(f"{shown} is made at the first start")
    return error(f"{shown} cannot be made: {above} is not writable {state(above.stat())}", remedy(os.geteuid()))


def check_replay_guard(host: Host) -> Iterator[Finding]:
    """Each token is accepted once by all workers, and with Redis by all hosts."""
    url, folder = host.settings.secret("PEERSEAL_REPLAY_URL"), host.settings.path("PEERSEAL_REPLAY_DIR")
    if folder is not None:
        yield _finding_of("PEERSEAL_REPLAY_DIR", folder, private=False)
    if url is not None:
        yield _finding_of_redis(url, host.service or "doctor")
    elif folder or host.settings.path("PEERSEAL_CACHE_DIR") or host.settings.path("PEERSEAL_KEY_DIR"):
        yield ok("the workers of this host share it; several hosts need PEERSEAL_REPLAY_URL")
    else:
        yield warning(
            "it is in the memory of each process: each worker accepts the same token once",
            "set PEERSEAL_CACHE_DIR, or PEERSEAL_REPLAY_URL for several hosts",
        )


def _finding_of_redis(url: str, service: str) -> Finding:
    """The URL is not shown: it may hold a password."""
    try:
        guard = RedisReplayGuard(url, service)
        try:
            guard.check()
        finally:
            guard.close()
    except PeersealError as refused:
        return error(str(refused), "start Redis, or correct PEERSEAL_REPLAY_URL: no call is accepted without it")
    return ok("Redis answers and keeps what it is given; all hosts with this PEERSEAL_REPLAY_URL share it")


def check_workers(host: Host) -> Iterator[Finding]:
    """Several processes share one key: a join token that is good once admits one key."""
    several, shared = _several_processes(host), host.settings.path("PEERSEAL_KEY_DIR") is not None
    if several and not shared:
        yield error(
            f"{several} starts several processes, and each registers a key of its own: the first one uses up the"
            " join token",
            "set PEERSEAL_KEY_DIR: they share one key there",
        )
    elif several:
        yield ok(f"{several}: the processes share the key in PEERSEAL_KEY_DIR")
    else:
        yield ok("no variable asks for several processes" + ("" if shared else "; those need PEERSEAL_KEY_DIR"))


def _several_processes(host: Host) -> str | None:
    """The variable by which the server, or the reloader of the development server, starts several processes."""
    for name in ("WEB_CONCURRENCY", "UVICORN_WORKERS"):
        count = host.environ.get(name, "")
        if count.isdigit() and int(count) > 1:
            return f"{name}={count}"
    asked = _WORKERS.search(" ".join(_words(host.environ.get("GUNICORN_CMD_ARGS", ""))))
    if asked is not None and int(asked[1]) > 1:
        return f"GUNICORN_CMD_ARGS ({asked[0]})"
    if host.environ.get("FLASK_DEBUG", "").lower() in ("1", "true", "yes"):
        return "FLASK_DEBUG (the reloader)"
    return None


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return []
