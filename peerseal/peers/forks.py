"""What must begin anew in a forked child: threads are gone there, and a lock that one of them held stays locked."""

import os
import threading
import weakref
from collections.abc import Callable
from functools import cache

_in_children: dict[int, weakref.WeakMethod[Callable[[], None]]] = {}


def in_each_child(method: Callable[[], None]) -> None:
    """Call the bound ``method`` in every process forked from now on, as long as its object lives; nothing stays of it
    then: there may be a session for each request."""
    _hook()
    reference = weakref.WeakMethod(method)
    _in_children[id(reference)] = reference
    weakref.finalize(method.__self__, _in_children.pop, id(reference), None).atexit = False  # type: ignore[attr-defined]


@cache
def _hook() -> None:
    os.register_at_fork(after_in_child=_call_in_child)


def _call_in_child() -> None:
    for reference in list(_in_children.values()):
        method = reference()
        if method is not None:
            method()


def around_each_fork(before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call the bound method ``before`` in this process before every fork from now on, and ``after`` in both processes
    after it, as long as their object lives."""
    os.register_at_fork(before=_weakly(before), after_in_parent=_weakly(after), after_in_child=_weakly(after))


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
        os.register_at_fork(
            before=_weakly(self._before_fork),
            after_in_parent=_weakly(self._after_in_parent),
            after_in_child=_weakly(self._after_in_child),
        )

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


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    return call
