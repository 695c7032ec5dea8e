"""The current transaction and the current request of running code, in context variables.

An adapter sets them for a request, and the event consumer for a message; both clear them afterwards. Calls to other
services take them along. asyncio tasks and `asyncio.to_thread` inherit them; threads of a pool need `propagate`.

A transaction is proven. A request id comes from any client: it connects log lines and proves nothing.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import ContextVar, Token, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, ParamSpec, Self, TypeVar

from peerseal.protocol.trace_context import parse_traceparent
from peerseal.runtime.tracing import NONE, Attributes, Tracer, installed, of_method

P = ParamSpec("P")
R = TypeVar("R")

REQUEST_ID: Final = "x-request-id"
"""The header of requests and messages that holds the request id."""
SERVE: Final = "peerseal.serve"
"""The name of the span of a request."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
"""Visible ASCII without quotation marks, brackets and separators, so that no log can misread it."""

Carry = Callable[[], str]
"""Gives the token to send along. Raises what signing raises, where the token is minted at this moment."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One piece of work for one user, as its transaction token proves it. Only verification and minting make one.

    ``user`` is the user's name at the issuer in ``authentication``; ``scopes`` is all that any service may do in this
    transaction; ``facts`` must not change on the way. ``minter`` and ``workload`` are service ids. ``expires_at`` is
    the end of its token in seconds since the epoch, None where a new token is minted for each call.
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
    """The transaction for which this code runs, if any."""
    return _current.get()


def begin(transaction: Transaction | None) -> None:
    """Set the current transaction of this thread or task until the next call: for adapters of servers, which have no
    block around a request."""
    _current.set(transaction)


@contextmanager
def carrying(transaction: Transaction | None) -> Iterator[Transaction | None]:
    """Run a block for that transaction, or for none. Afterwards the one before is current again."""
    token = _current.set(transaction)
    try:
        yield transaction
    finally:
        _current.reset(token)


class RequestTrace:
    """One request or message: its ``id``, and ``minted``, the id of the last transaction that was minted in it. The
    threads and tasks of the request share it. An ``id`` that is not given is made when it is asked for. ``traceparent``
    is the header of that name as it came (W3C Trace Context), which nothing has checked."""

    def __init__(self, id: str | None = None, traceparent: str | None = None) -> None:
        self._ids: dict[str, str] = {} if id is None else {"id": id}
        self.minted: str | None = None
        self.traceparent = traceparent

    @property
    def id(self) -> str:
        """The same for all threads and tasks of the request."""
        return self._ids.get("id") or self._ids.setdefault("id", new_request_id())


_trace: ContextVar[RequestTrace | None] = ContextVar("peerseal_request", default=None)


def current_request_id() -> str | None:
    """The id of the request or message that this code serves, if any."""
    trace = _trace.get()
    return trace.id if trace else None


def current_traceparent() -> str | None:
    """The current span, if spans are made; else the ``traceparent`` of the current request or message, if it came with
    a valid one."""
    if installed.tracer is not None and (own := installed.tracer.traceparent()):
        return own
    trace = _trace.get()
    given = trace.traceparent if trace else None
    return given if parse_traceparent(given) else None


def log_context() -> tuple[str | None, str | None]:
    """The ids of request and transaction for a log line of this code. Where there is no current transaction it is the
    last one that was minted in the request."""
    trace, transaction = _trace.get(), _current.get()
    if transaction is not None:
        return trace.id if trace else None, transaction.id
    return (trace.id, trace.minted) if trace else (None, None)


@contextmanager
def serving(given: str | None = None, traceparent: str | None = None) -> Iterator[str]:
    """Run a block within the request with the id ``given``, if that id is valid; else within the current request, or a
    new one. Gives the id. ``traceparent`` is the header that came with the request."""
    trace = _trace_of(given, traceparent)
    with within(trace):
        yield trace.id


def valid_request_id(given: str | None) -> str | None:
    """The id itself, if it is short and plain; None for any other text, which a log could misread."""
    return given if type(given) is str and _REQUEST_ID.fullmatch(given) else None


def _trace_of(given: str | None, traceparent: str | None) -> RequestTrace:
    if type(given) is str and _REQUEST_ID.fullmatch(given):
        return RequestTrace(given, traceparent)
    return _trace.get() or RequestTrace(None, traceparent)


AddAttributes = Callable[[Attributes], object]
"""Adds attributes to a span."""


class RequestSpan:
    """The span of a request, as a context manager. ``add`` adds attributes, once it has begun."""

    add: AddAttributes

    def __init__(self, tracer: Tracer, method: str | None) -> None:
        self._around = tracer.span(SERVE, "server", NONE if method is None else of_method(method))

    def __enter__(self) -> Self:
        self.add = self._around.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._around.__exit__(*error)


def request_span(method: str | None) -> RequestSpan | None:
    """The span of a request with that method; None if no spans are made."""
    tracer = installed.tracer
    return None if tracer is None else RequestSpan(tracer, method)


Before = tuple[Token[Transaction | None], Token[RequestTrace | None], RequestSpan | None]
"""What was current before a request, and the span of the request, if spans are made."""


def enter_request(given: str | None = None, traceparent: str | None = None, method: str | None = None) -> Before:
    """As ``with carrying(None), serving(given, traceparent)``, in less time: for an adapter that each request passes
    through. The adapter calls `leave_request` with the result in a ``finally``. ``method`` is that of HTTP."""
    before, trace = _current.set(None), _trace.set(_trace_of(given, traceparent))
    span = request_span(method)
    return before, trace, None if span is None else span.__enter__()


def enter_outside() -> Before:
    """As ``with carrying(None), within(None)``, in less time; `leave_request` takes the result."""
    return _current.set(None), _trace.set(None), None


set_transaction: Final = _current.set
"""As ``with carrying(transaction)``, in less time: `reset_transaction` takes the result, in a ``finally``."""
reset_transaction: Final = _current.reset

set_trace: Final = _trace.set
"""As ``with within(trace)``, in less time: `reset_trace` takes the result, in a ``finally``."""
reset_trace: Final = _trace.reset


def leave_request(before: Before) -> None:
    """End the request: what was current before `enter_request` or `enter_outside` is current again."""
    transaction, trace, around = before
    if around is not None:
        around.__exit__(None, None, None)
    _current.reset(transaction)
    _trace.reset(trace)


@contextmanager
def within(trace: RequestTrace | None) -> Iterator[None]:
    """Run a block within that request, or within none. Afterwards the one before is current again."""
    token = _trace.set(trace)
    try:
        yield
    finally:
        _trace.reset(token)


def current_trace() -> RequestTrace | None:
    """The request that this code serves, if any."""
    return _trace.get()


def note_minted(transaction: Transaction) -> None:
    """Log lines of the current request name that transaction from now on."""
    trace = _trace.get()
    if trace is not None:
        trace.minted = transaction.id


def new_request_id() -> str:
    """64 random bits, in hexadecimal digits."""
    return secrets.token_hex(8)


class propagate(Executor):  # noqa: N801 - used like a function: propagate(pool).submit(…)
    """The executor; each piece of work runs for the transaction and within the request of the code that submits it.

    Shutting this down shuts the given executor down.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        """See Executor. ``map`` goes through here as well."""
        return self._executor.submit(copy_context().run, partial(fn, *args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See Executor."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)
