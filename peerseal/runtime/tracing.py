"""Where spans begin. Nothing is traced, and no library is loaded, until a tracer is installed, which
`peerseal.otel.start` does.

Up to then a `traced` method is the plain function itself, which costs nothing, and a `span` one comparison.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import iscoroutinefunction
from types import MappingProxyType
from typing import Any, Final, Literal, ParamSpec, Protocol, TypeVar, cast
from urllib.parse import urlsplit

P = ParamSpec("P")
R = TypeVar("R")

Kind = Literal["internal", "client", "server", "producer", "consumer"]
"""The kinds of OpenTelemetry's spans."""
Attributes = Mapping[str, str | int]
Describe = Callable[[Any], Attributes]
"""The attributes of a span, from the result of the work."""
Ask = Callable[..., Attributes]
"""The attributes of a span, from the arguments of the work."""
NONE: Final[Attributes] = MappingProxyType({})
_METHODS: Final = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))


def of_method(method: object) -> Attributes:
    """The method of an HTTP request, as the semantic conventions of OpenTelemetry have it: any client can invent
    one."""
    return {"http.request.method": method if type(method) is str and method in _METHODS else "_OTHER"}


def of_call(method: object, url: str) -> Attributes:
    """The request of a client in those conventions, without its path, which may name a person."""
    try:
        parts = urlsplit(url)
        address, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return of_method(method)
    return {**of_method(method), "server.address": address, "server.port": port}


def of_answer(status: int) -> Attributes:
    """The status of an HTTP answer in those conventions."""
    return {"http.response.status_code": status}


def of_messages(operation: str, topic: str, system: str | None = None, count: int = 1) -> Attributes:
    """One operation on messages, in those conventions: ``create``, ``send`` or ``process``."""
    about: dict[str, str | int] = {
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }
    if system is not None:
        about["messaging.system"] = system
    return about if count == 1 else {**about, "messaging.batch.message_count": count}


class Tracer(Protocol):
    """Makes spans. No method raises an error of its own."""

    def span(
        self, name: str, kind: Kind, attributes: Attributes = NONE, links: Sequence[str] = ()
    ) -> AbstractContextManager[Callable[[Attributes], object]]:
        """A span around a block, which an error of the block marks by its code. Its value adds attributes. ``links``
        are the ``traceparent`` of other spans that the block works for."""

    def traceparent(self) -> str | None:
        """The current span, as the header of W3C Trace Context; None where there is none."""


class Installed:
    """The tracer of this process, if any."""

    tracer: Tracer | None = None


installed: Final = Installed()
_places: Final[list["_Place"]] = []


def install(tracer: Tracer | None) -> None:
    """Make spans with ``tracer`` from now on, or with None no more."""
    installed.tracer = tracer
    for place in _places:
        place.trace_with(tracer)


def ignored(_: Attributes) -> None:
    """Adds attributes to no span."""


def span(
    name: str, kind: Kind = "internal", ask: Callable[[], Attributes] | None = None, links: Sequence[str] = ()
) -> AbstractContextManager[Callable[[Attributes], object]]:
    """A span around a block, if spans are made. See `Tracer.span`; only then ``ask`` is called, for its attributes."""
    tracer = installed.tracer
    return nullcontext(ignored) if tracer is None else tracer.span(name, kind, NONE if ask is None else ask(), links)


def traced(
    name: str, kind: Kind = "internal", describe: Describe | None = None, ask: Ask | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of methods: each call is a span of that name, if spans are made. ``ask`` gives attributes of the
    arguments, ``describe`` of the result."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return cast("Callable[P, R]", _Place(function, name, kind, describe or _nothing, ask or _nothing))

    return decorate


class _Place:
    """A method that can be traced. Its class gets the plain function, or one with a span around it."""

    def __init__(self, function: Callable[..., Any], name: str, kind: Kind, describe: Describe, ask: Ask) -> None:
        self._function, self._name, self._kind, self._describe, self._ask = function, name, kind, describe, ask

    def __set_name__(self, owner: type, attribute: str) -> None:
        self._owner, self._attribute = owner, attribute
        _places.append(self)
        self.trace_with(installed.tracer)

    def trace_with(self, tracer: Tracer | None) -> None:
        """Let the class have the function for this tracer."""
        setattr(self._owner, self._attribute, self._function if tracer is None else self._traced_by(tracer))

    def _traced_by(self, tracer: Tracer) -> Callable[..., Any]:
        function, describe, ask = self._function, self._describe, self._ask

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with tracer.span(self._name, self._kind, ask(*args, **kwargs)) as add:
                result = function(*args, **kwargs)
                add(describe(result))
            return result

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            with tracer.span(self._name, self._kind, ask(*args, **kwargs)) as add:
                result = await function(*args, **kwargs)
                add(describe(result))
            return result

        return awaited if iscoroutinefunction(function) else call


def _nothing(*_: object, **__: object) -> Attributes:
    return NONE
