"""Whose transaction the current code works for: a context variable, so that it needs no parameter anywhere.

An adapter sets it for a request, the event consumer for a message, and both clear it; whatever calls another service
within takes it along. asyncio tasks and `asyncio.to_thread` inherit it by themselves; threads do not, so work is given
to a pool through `propagate`.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Carry = Callable[[], str]
"""Gives the token to send along. Raises what signing raises, where it is only minted when it is needed."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """What is done for one user, and proven: only verification and minting make one.

    ``user`` is the user's name at the issuer in ``authentication``; ``scopes`` is all that may be done in this
    transaction, by whomever; ``facts`` must not change on the way. ``minter`` and ``workload`` are service ids.
    ``expires_at`` is when its token ends, in seconds since the epoch; None where tokens are minted as they are needed.
    """

    id: str
    user: str
    scopes: frozenset[str]
    facts: Mapping[str, Any] = field(repr=False)
    authentication: Mapping[str, Any] = field(repr=False)
    minter: str
    workload: str
    carry: Carry = field(repr=False, compare=False)
    expires_at: int | None = field(default=None, compare=False)


_current: ContextVar[Transaction | None] = ContextVar("peerseal_transaction", default=None)


def current_transaction() -> Transaction | None:
    """The transaction for which this code runs; None where it runs for no user."""
    return _current.get()


def begin(transaction: Transaction | None) -> None:
    """For adapters of servers, which have no block around a request: this thread or task works for that transaction
    from now on, until it begins another one or none."""
    _current.set(transaction)


@contextmanager
def carrying(transaction: Transaction | None) -> Iterator[Transaction | None]:
    """Run a block for that transaction, or for none; what was before comes back after it."""
    token = _current.set(transaction)
    try:
        yield transaction
    finally:
        _current.reset(token)


class propagate(Executor):  # noqa: N801 - it reads as what it does: propagate(pool).submit(…)
    """The executor, with each piece of work run for the transaction of whoever gave it, and for none once it is done.

    The pool is the caller's: shutting this down shuts that down.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        """See Executor. ``map`` goes through here as well."""
        return self._executor.submit(copy_context().run, partial(fn, *args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See Executor."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)
