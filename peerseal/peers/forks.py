"""What must begin anew in a forked child: threads are gone there, and a lock that one of them held stays locked."""

import os
import weakref
from collections.abc import Callable


def in_each_child(method: Callable[[], None]) -> None:
    """Call the bound ``method`` in every process forked from now on, as long as its object lives."""
    os.register_at_fork(after_in_child=_weakly(method))


def around_each_fork(before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call the bound method ``before`` in this process before every fork from now on, and ``after`` in both processes
    after it, as long as their object lives."""
    os.register_at_fork(before=_weakly(before), after_in_parent=_weakly(after), after_in_child=_weakly(after))


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    return call
