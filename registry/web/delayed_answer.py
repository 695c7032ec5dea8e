"""Answers that are made later, for calls that wait for a change."""

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, cast

from flask import current_app, request

from registry.services.documents.answer_cache import PublicAnswer
from registry.services.documents.changes import WaitingCall
from registry.web.metrics import WAITING
from registry.web.published import Published, answered_with

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_WAITED = "peerseal.waited"  # in a WSGI environment: the wait of a call that runs for the second time


class DelayedAnswer(Published):
    """Waits for ``call``, ``seconds`` at most, and answers with its list of changes, or with the one that is ``kept``
    for its entry. Where there is none, the application runs again with the same request, and `ended_wait` returns the
    call."""

    def __init__(self, call: WaitingCall, seconds: float, kept: Callable[[int], PublicAnswer | None]) -> None:
        super().__init__()
        self._call = call
        self._seconds = seconds
        self._kept = kept
        self._endpoint = request.endpoint
        self._application = current_app.wsgi_app

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """See Response."""

        def answered() -> Iterable[bytes]:
            told = self._call.answer or self._kept(self._call.since)
            if told is not None:  # hundreds are answered at once: Flask would take most of the time
                return answered_with(told, environ, start_response, self._endpoint, "no-cache")
            environ[_WAITED] = self._call
            return self._application(environ, start_response)

        return DelayedBody(self._call, self._seconds, answered)


class DelayedBody:
    """The body of a delayed answer. Iterating over it blocks the thread until the wait has ended. A server that keeps
    its threads free, such as `registry.serving.worker`, iterates after that."""

    def __init__(self, call: WaitingCall, seconds: float, answered: Callable[[], Iterable[bytes]]) -> None:
        self.call = call
        self.seconds = seconds
        self._answered = answered
        self._leave: Callable[[], object] = lambda: None
        self._body: Iterable[bytes] = ()
        WAITING.inc()

    def answer_in(self, context: Context, leave: Callable[[], object]) -> None:
        """Has the answer made in that context. ``leave`` is called after it, or when the call ends without one."""
        self._answered, self._leave = partial(context.run, self._answered), leave

    def __iter__(self) -> Iterator[bytes]:
        self.call.wait(self.seconds)
        try:
            self._body = self._answered()
        finally:
            self._leave_once()
        return iter(self._body)

    def close(self) -> None:
        """Ends the wait, if it has not ended, without an answer."""
        self.call.leave()
        WAITING.dec()
        self._leave_once()
        if hasattr(self._body, "close"):
            self._body.close()

    def _leave_once(self) -> None:
        leave, self._leave = self._leave, lambda: None
        leave()


def ended_wait(environ: "WSGIEnvironment") -> WaitingCall | None:
    """The wait of a call that runs again after it; None where the call runs for the first time."""
    return cast(WaitingCall | None, environ.get(_WAITED))
