"""What must begin anew in a forked child: threads are gone there, and a lock that one of them held stays locked."""

import os
import weakref
from collections.abc import Callable


def in_each_child(method: Callable[[], None]) -> None:
    """Call the bound ``method`` in every process forked from now on, as long as its object lives."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    os.register_at_fork(after_in_child=call)
