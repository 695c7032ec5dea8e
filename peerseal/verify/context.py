"""Whose transaction the current code works for, and within which request: context variables, so that neither needs a
parameter anywhere.

An adapter sets them for a request, the event consumer for a message, and both clear them; whatever calls another
service within takes them along. asyncio tasks and `asyncio.to_thread` inherit them by themselves; threads do not, so
work is given to a pool through `propagate`.

A transaction is proven. A request id is a note that any client may write: it joins log lines, and proves nothing.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

REQUEST_ID: Final = "x-request-id"
"""The header of requests and messages that a request id stands in."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
"""Visible ASCII without quotation marks, brackets and separators: in no log can it be read as anything else."""

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


class RequestTrace:
    """One request, or one message, under way: its ``id``, and ``minted``, the id of the transaction that was minted in
    it last. The threads and tasks of the request share it."""

    __slots__ = ("id", "minted")

    def __init__(self, id: str) -> None:
        self.id = id
        self.minted: str | None = None


_trace: ContextVar[RequestTrace | None] = ContextVar("peerseal_request", default=None)


def current_request_id() -> str | None:
    """The id of the request, or message, that this code serves; None outside one."""
    trace = _trace.get()
    return trace.id if trace else None


def log_context() -> tuple[str | None, str | None]:
    """What a log line of this code is found by: the request's id and the transaction's. Where no transaction is the
    current one it is the one that was minted in the request last."""
    trace, transaction = _trace.get(), _current.get()
    if transaction is not None:
        return trace.id if trace else None, transaction.id
    return (trace.id, trace.minted) if trace else (None, None)


@contextmanager
def serving(given: str | None = None) -> Iterator[str]:
    """Run a block within a request: the one with the id that was ``given`` with it, if that may stand in a log as it
    is; else the one that the block is in already; else a new one. Gives the id."""
    trace = _trace.get()
    if type(given) is str and _REQUEST_ID.fullmatch(given):
        trace = RequestTrace(given)
    elif trace is None:
        trace = RequestTrace(new_request_id())
    with within(trace):
        yield trace.id


@contextmanager
def within(trace: RequestTrace | None) -> Iterator[None]:
    """Run a block within that request, or within none; what was before comes back after it."""
    token = _trace.set(trace)
    try:
        yield
    finally:
        _trace.reset(token)


def current_trace() -> RequestTrace | None:
    """The request that this code serves; None outside one."""
    return _trace.get()


def note_minted(transaction: Transaction) -> None:
    """The request under way goes on in that transaction."""
    trace = _trace.get()
    if trace is not None:
        trace.minted = transaction.id


def new_request_id() -> str:
    """64 random bits, in hexadecimal digits."""
    return secrets.token_hex(8)


class propagate(Executor):  # noqa: N801 - it reads as what it does: propagate(pool).submit(…)
    """The executor, with each piece of work run for the transaction, and within the request, of whoever gave it, and
    for none once it is done.

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
