"""How many calls are served at once, where there are more threads than that: most of those only wait for a change."""

from collections.abc import Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_PLACE = "peerseal.place"  # in a WSGI environment: what the call has within the gate


class Gate:
    """Lets a number of calls in at once; the next ones stand before it.

    So the database and the interpreter's lock see no more at once than those, and each call is done as soon as with
    as many threads. A call that is going to wait steps aside, and lets another in.
    """

    def __init__(self, places: int) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(places):
            self._free.put(None)

    def before(self, application: "WSGIApplication") -> "WSGIApplication":
        """The application, behind this gate."""

        def entered(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            self._free.get()
            place = environ[_PLACE] = _Place(self._free)
            try:
                return application(environ, start_response)
            finally:
                place.leave()

        return entered


class _Place:
    """One call's place; it can be left once."""

    def __init__(self, free: "SimpleQueue[None]") -> None:
        self._free: SimpleQueue[None] | None = free

    def leave(self) -> None:
        """Lets another in."""
        if self._free is not None:
            self._free.put(None)
            self._free = None


def step_aside(environ: "WSGIEnvironment") -> None:
    """Lets another call in, in the place of the one with that environment. Where there is no gate, nothing."""
    place = environ.get(_PLACE)
    if place is not None:
        place.leave()
