"""What must begin anew in a forked child: threads are gone there, and a lock that one of them held stays locked."""

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

log = logging.getLogger("peerseal.forks")

Hook = Callable[[], None]
"""A bound method, which is called as long as its object lives. Nothing stays of it then: there may be a session for
each request."""


def in_each_child(method: Hook) -> None:
    """Call ``method`` in every process forked from now on."""
    _add(in_child=method)


def around_each_fork(before: Hook, after: Hook) -> None:
    """Call ``before`` in this process before every fork from now on, and ``after`` in both processes after it."""
    _add(before=before, in_parent=after, in_child=after)


class BackgroundWork:
    """Held by a thread of ours while it works, so that no fork of this process falls into that.

    A child that is forked while another thread is inside OpenSSL inherits OpenSSL's own locks as they are, with nobody
    left to release them: the first signature that needs one hangs, and the interpreter with it. A fork waits
    ``PATIENCE`` seconds for the work to end: a registry that hangs must not hold up a server for longer.
    """

    PATIENCE = 5.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held_for_fork = False
        _add(before=self._before_fork, in_parent=self._after_in_parent, in_child=self._after_in_child)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _before_fork(self) -> None:
        self._held_for_fork = self._lock.acquire(timeout=self.PATIENCE)

    def _after_in_parent(self) -> None:
        if self._held_for_fork:
            self._lock.release()

    def _after_in_child(self) -> None:
        self._lock = threading.Lock()


class _Hooks:
    """Those of one moment, in the order in which they came."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], Callable[[Any], None]]] = {}

    def add(self, method: Any) -> None:
        owner = weakref.ref(method.__self__, self._forget)
        self._known[id(owner)] = owner, method.__func__

    def call(self, *, last_first: bool = False) -> None:
        """Each of them, whatever becomes of the others."""
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


_before, _in_parent, _in_child = _Hooks(), _Hooks(), _Hooks()
_hooked = threading.Lock()
"""Taken by the first who adds a hook, for ever: the interpreter forgets none that it was given, so it has only ours."""


def _add(*, before: Hook | None = None, in_parent: Hook | None = None, in_child: Hook) -> None:
    if _hooked.acquire(blocking=False):
        os.register_at_fork(
            before=lambda: _before.call(last_first=True),
            after_in_parent=_in_parent.call,
            after_in_child=_in_child.call,
        )
    for hooks, method in ((_before, before), (_in_parent, in_parent), (_in_child, in_child)):
        if method is not None:
            hooks.add(method)
