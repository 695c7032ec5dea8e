"""The list of changes that one process asks for, in a file that all processes of a host read.

The process that holds a lock asks the registry, and writes down the lists of changes that it received, as they were
signed. The others look at the file. When the leading process dies the kernel drops its lock, and another one takes
over. When it hangs, nothing is written for too long, and each process asks for itself. In another file the processes
write down which services they watch, for the question that the leading process asks.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from threading import Event
from typing import Final, NamedTuple, Self

from peerseal.errors import ConfigurationError, InvalidName
from peerseal.protocol.documents.changes import Watched
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.limits import TrustLimits
from peerseal.runtime.locks import Opened
from peerseal.trust.disk.document_cache import CopyFolder

_FILE = "changes.lists"
_LOCK = "changes.asks"
"""Earlier releases share ``changes`` and ``changes.leads``. Their processes do not say which services they watch, so
this release must not ask for them."""
_WATCHED = "changes.watched"
_ALL = "*"
_ANSWER = "changes.answer"
NOTHING: Final = Watched(frozenset())
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SignedChanges(NamedTuple):
    """A list of changes, not verified, and the uptime at which it was asked for; minus infinity where that is not
    known: the uptime of another machine, or of an earlier start of this one, says nothing here."""

    jws: str
    asked_at: float

    @classmethod
    def of(cls, line: str) -> Self:
        """From a line of the file."""
        *stamp, jws = line.split(" ")
        try:
            boot, asked_at = stamp
            return cls(jws, float(asked_at) if boot == _boot() else -math.inf)
        except ValueError:
            return cls(jws, -math.inf)

    def line(self) -> str:
        """The line of the file."""
        return f"{_boot()} {self.asked_at!r} {self.jws}"


class SharedChanges:
    """The lists of changes of one host, in a folder of copies. Used by one thread of a process, but for `watched` and
    `watch`."""

    KEPT = 32
    """Lists that stay in the file: a process that did not look for so many must ask the registry itself."""

    def __init__(self, copies: CopyFolder) -> None:
        self._copies = copies
        self._lock: Opened | None = None
        self._written_at = 0.0
        self._changed_at = time.monotonic()
        self._lines: tuple[str, ...] = ()
        in_each_child(self._forget)

    @property
    def leads(self) -> bool:
        """Whether this process asked to lead, and does."""
        return self._lock is not None

    def lead(self) -> bool:
        """Ask the registry for all from now on, unless another process does. False where one does."""
        if self._lock is not None:
            return True
        try:
            lock = Opened(self._copies.made().open(_LOCK, os.O_CREAT | os.O_RDWR))
            try:
                self._lock = lock if lock.lock(wait=0.0) else None
            finally:
                if self._lock is None:
                    lock.close()
        except (OSError, ConfigurationError):
            return True  # without a folder, or without locks in it, each process asks
        return self._lock is not None

    def resign(self) -> None:
        """Let another process ask."""
        if self._lock is not None:
            self._lock.unlock()
            self._lock = None

    def write(self, changes: SignedChanges, now: float) -> None:
        """Write down a list of changes that was checked."""
        kept = [*self._read(), changes.line()][-self.KEPT :]
        self._copies.write(_FILE, "\n".join(kept), now)

    def wait_for_new(self, wait: float, limits: TrustLimits, stopping: Event) -> tuple[SignedChanges, ...] | None:
        """The lists that were written since the last call, oldest first, waited for ``wait`` seconds. None where
        nothing was written for so long that the leading process must hang."""
        patience = limits.wait + limits.longest_poll_pause + 2 * limits.poll_interval
        if time.monotonic() - self._changed_at > patience:
            wait = min(wait, limits.poll_interval)  # it still hangs: each process asks as if there were no folder
        tried_at = time.monotonic()
        for _ in range(max(1, int(wait / limits.look_interval))):
            written_at = self._copies.fetched_at(_FILE)
            if written_at != self._written_at:
                before, self._written_at, self._lines = set(self._lines), written_at, self._read()
                self._changed_at = time.monotonic()
                return tuple(SignedChanges.of(line) for line in self._lines if line not in before)
            if time.monotonic() - tried_at > limits.poll_interval:
                if self.lead():
                    break  # the process that led is gone: this one asks next
                tried_at = time.monotonic()
            if stopping.wait(limits.look_interval):
                break
        return None if time.monotonic() - self._changed_at > patience else ()

    def watched(self) -> Watched:
        """The services that processes of the host watch, as they said."""
        copy = self._copies.read(_WATCHED)
        if copy is None:
            return NOTHING
        with suppress(InvalidName):
            return Watched.read(copy.jws)
        return Watched()

    def watch(self, watched: Callable[[], Watched]) -> None:
        """Say which services this process watches, unless all are watched already. Of two processes that write at once
        one may overwrite the other, which writes again at its next call."""
        known = self.watched()
        if known != Watched() and not known >= (own := watched()):
            both = known | own
            self._copies.write(_WATCHED, _ALL if both == Watched() else both.text, time.time())

    def answering(self) -> AbstractContextManager[object]:
        """Be the one process of the host that asks what changed since it woke: the others take its answer."""
        return self._copies.locked(_ANSWER)

    def write_answer(self, changes: SignedChanges, now: float) -> None:
        """Write down what the registry answered, and that was checked."""
        self._copies.write(_ANSWER, changes.line(), now)

    def answer(self, after: float, now: float) -> str | None:
        """The answer, not verified, to a question that was put after that uptime, if any."""
        copy = self._copies.read(_ANSWER)
        changes = SignedChanges.of(copy.jws) if copy else None
        return changes.jws if changes is not None and after < changes.asked_at <= now else None

    def _read(self) -> tuple[str, ...]:
        copy = self._copies.read(_FILE)
        return tuple(copy.jws.split("\n")) if copy else ()

    def _forget(self) -> None:
        """A forked child does not lead: the lock is its parent's, and must end with that."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


@cache
def _boot() -> str:
    """The name of this start of this machine; without one each process counts as a machine of its own."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return f"process-{os.getpid()}"
