"""Hooks for forked children: the parent's threads are gone there, and a lock that one of them held stays locked.

`in_each_child` adds a hook. Python runs hooks at `os.fork`. A C program that forks by itself, such as uWSGI,
runs none of them; there `notice_fork`, which every public function of ours calls first, runs them late.
"""

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger("peerseal.forks")

_LATE = 10.0
"""Seconds to wait for another thread that runs the hooks of a child."""

_FORK_HOOKS = "py-call-uwsgi-fork-hooks"
"""The option with which uWSGI's forks wait for the interpreter's lock."""

Hook = Callable[[], None]
"""A bound method. It is called as long as its object lives, and forgotten then: there may be a session for each
request."""


def in_each_child(method: Hook) -> None:
    """Call ``method`` in every process forked from now on."""
    _add(in_child=method)


def around_each_fork(before: Hook, in_parent: Hook, in_child: Hook) -> None:
    """Call ``before`` in this process before every fork from now on, then ``in_parent`` here and ``in_child`` there.

    A child that was forked without hooks calls ``in_child`` without a call of ``before``.
    """
    _add(before=before, in_parent=in_parent, in_child=in_child)


def notice_fork() -> None:
    """Run the hooks of `in_each_child`, once, if this process was forked without them. It costs a system call."""
    if os.getpid() != _hooks_ran_in.pid:
        _run_late()


def process_runs(pid: int, started: str = "") -> bool:
    """Whether a process with this id runs on this host, as far as this process may know. With ``started``, which
    `process_started` returned earlier, whether it is still the same process and not a later one or a thread."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return not started or process_started(pid) in (started, "")


def process_started(pid: int) -> str:
    """When the process with this id began: digits to compare, the kernel's clock ticks since the machine started (field
    22 in proc_pid_stat(5)). Empty where the system does not say so."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def warn_of_uwsgi_options() -> None:
    """Log a warning if the server is uWSGI and runs Python's threads only while a request runs, or forks workers from a
    process that has threads."""
    if (uwsgi := _uwsgi()) is None:
        return
    options = {name.decode() if isinstance(name, bytes) else name for name in getattr(uwsgi, "opt", {})}
    if not options & {"enable-threads", "threads"}:
        log.warning(
            "uWSGI runs without --enable-threads: keys are rotated, and revocations noticed, only while requests run"
        )
    elif not uwsgi.masterpid() and uwsgi.numproc > 1 and not uwsgi.worker_id() and _FORK_HOOKS not in options:
        log.warning("uWSGI runs without --master: a worker may hang from its start, as threads run while it is forked")


def left_to_workers() -> bool:
    """In a master of uWSGI, have each worker run the hooks as soon as it is forked, so that it starts the threads that
    this process needs, and return True. In other processes, do nothing and return False.

    No thread may run in a master: uWSGI forks without regard to other threads. Where one of them holds the
    interpreter's lock (the GIL), or waits for it, the forked worker may wait for ever.
    """
    uwsgi = _uwsgi()
    if uwsgi is None or os.getpid() != uwsgi.masterpid():
        return False
    before = getattr(uwsgi, "post_fork_hook", None)
    if not isinstance(before, _NoticeFork):
        uwsgi.post_fork_hook = _NoticeFork(before)
    return True


def _uwsgi() -> Any:
    """The module ``uwsgi`` of that server, which only its processes have; an application may have one of that name."""
    found = sys.modules.get("uwsgi")
    return found if callable(getattr(found, "masterpid", None)) else None


class _NoticeFork:
    """What uWSGI calls in each worker after the fork: the hook that was there before, and `notice_fork`."""

    def __init__(self, before: Callable[[], object] | None) -> None:
        self._before = before

    def __call__(self) -> None:
        if self._before is not None:
            self._before()
        notice_fork()


class BackgroundWork:
    """A thread of ours holds it while it works, so that the process does not fork during that time.

    A child that is forked while another thread is inside OpenSSL inherits OpenSSL's locks as they are, without the
    thread that releases them: the first signature that needs one hangs, and the interpreter with it. A fork waits
    ``PATIENCE`` seconds for the work of all such threads: registries that hang must not hold up a server for longer.
    Then it waits ``SHORT_PATIENCE`` for each further one that is at work: enough for a thread that does not hang."""

    PATIENCE = 5.0
    SHORT_PATIENCE = 0.05

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held_for_fork = False
        _add(before=self._before_fork, in_parent=self._after_in_parent, in_child=self._after_in_child)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _before_fork(self) -> None:
        self._held_for_fork = self._lock.acquire(timeout=max(self.SHORT_PATIENCE, _waiting.until - time.monotonic()))

    def _after_in_parent(self) -> None:
        if self._held_for_fork:
            self._lock.release()

    def _after_in_child(self) -> None:
        self._lock = threading.Lock()


class _Waiting(threading.local):
    """Until when (by the monotonic clock) the fork that this thread makes waits for the work of others."""

    until = 0.0


class _Hooks:
    """The hooks of one moment, in the order in which they were added."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], Callable[[Any], None]]] = {}

    def add(self, method: Any) -> None:
        owner = weakref.ref(method.__self__, self._forget)
        self._known[id(owner)] = owner, method.__func__

    def call(self, *, last_first: bool = False) -> None:
        """Call each hook, even if another one fails."""
        known = list(self._known.values())
        for reference, function in reversed(known) if last_first else known:
            owner = reference()
            try:
                if owner is not None:
                    function(owner)
            except Exception:
                log.exception("at a fork: %s", function.__qualname__)

    def _forget(self, gone: object) -> None:
        self._known.pop(id(gone), None)


class _Process:
    """The process in which the hooks ran last, or that loaded this module."""

    def __init__(self) -> None:
        self.pid = os.getpid()


def _run_before() -> None:
    _waiting.until = time.monotonic() + BackgroundWork.PATIENCE
    _before.call(last_first=True)


def _run_in_child() -> None:
    _hooks_ran_in.pid = os.getpid()
    _in_child.call()


class _LateRun:
    """One late run of the hooks in a child: its thread, and whether it is over."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.over = threading.Event()


def _run_late() -> None:
    """`dict.setdefault` finds the one thread that runs the hooks: a lock may have been inherited locked."""
    mine = _LateRun()
    run = _late_runs.setdefault(os.getpid(), mine)
    if run is mine:
        log.warning("process %d was forked without Python's hooks; they run now", os.getpid())
        _in_child.call()
        _hooks_ran_in.pid = os.getpid()
        run.over.set()
    elif run.thread != mine.thread:  # a hook may call what calls `notice_fork`
        run.over.wait(_LATE)


_before, _in_parent, _in_child = _Hooks(), _Hooks(), _Hooks()
_waiting = _Waiting()
_hooks_ran_in = _Process()
_late_runs: dict[int, _LateRun] = {}
"""By process id."""
_hooked = threading.Lock()
"""The first caller that adds a hook keeps it for ever: the interpreter cannot forget a hook, so it gets only ours."""


def _add(*, before: Hook | None = None, in_parent: Hook | None = None, in_child: Hook) -> None:
    if _hooked.acquire(blocking=False):
        os.register_at_fork(
            before=_run_before,
            after_in_parent=_in_parent.call,
            after_in_child=_run_in_child,
        )
        _hooks_ran_in.pid = os.getpid()  # the first hook: a fork before it had none to run
    for hooks, method in ((_before, before), (_in_parent, in_parent), (_in_child, in_child)):
        if method is not None:
            hooks.add(method)
