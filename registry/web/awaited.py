"""Answers to calls that wait for a change."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, cast

from flask import current_app

from registry.services.documents.waiting import WaitingCall
from registry.web.metrics import WAITING
from registry.web.wire import Published

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_TOLD = "peerseal.told"  # in a WSGI environment: the place of a call that waited, and comes again


class Later(Published):
    """The application is called again, with the same request, when the wait at ``place`` has ended: after ``seconds``
    at most. `told` is its place then."""

    def __init__(self, place: WaitingCall, seconds: float) -> None:
        super().__init__()
        self._place = place
        self._seconds = seconds
        self._application = current_app.wsgi_app

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """See Response."""
        environ[_TOLD] = self._place
        return Awaited(self._place, self._seconds, lambda: self._application(environ, start_response))


class Awaited:
    """The body of such an answer. Iterating over it holds the thread until the wait at ``place`` has ended. A server
    without threads to spare iterates after that (`registry.serving.worker`)."""

    def __init__(self, place: WaitingCall, seconds: float, again: Callable[[], Iterable[bytes]]) -> None:
        self.place = place
        self.seconds = seconds
        self._again = again
        self._answer: Iterable[bytes] = ()
        WAITING.inc()

    def __iter__(self) -> Iterator[bytes]:
        self.place.wait(self.seconds)
        self._answer = self._again()
        return iter(self._answer)

    def close(self) -> None:
        """Ends the wait, if it has not ended, without an answer."""
        self.place.leave()
        WAITING.dec()
        if hasattr(self._answer, "close"):
            self._answer.close()


def told(environ: "WSGIEnvironment") -> WaitingCall | None:
    """The place of a call that has waited; None where it comes for the first time."""
    return cast(WaitingCall | None, environ.get(_TOLD))
