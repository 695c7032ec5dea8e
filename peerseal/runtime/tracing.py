"""Where spans begin. Nothing is traced, and no library is loaded, until a tracer is installed, which
`peerseal.otel.start` does.

Up to then a `traced` method is the plain function itself, which costs nothing, and a `span` one comparison.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import iscoroutinefunction
from typing import Any, Final, Literal, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

Kind = Literal["internal", "client", "server", "producer", "consumer"]
"""The kinds of OpenTelemetry's spans."""
Attributes = Mapping[str, str]
Describe = Callable[[Any], Attributes]
"""The attributes of a span, from the result of the work."""


class Tracer(Protocol):
    """Makes spans. No method raises an error of its own."""

    def span(self, name: str, kind: Kind) -> AbstractContextManager[Callable[[Attributes], object]]:
        """A span around a block, which an error of the block marks by its code. Its value adds attributes."""

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


def _ignored(_: Attributes) -> None:
    """Adds attributes to no span."""


def span(name: str, kind: Kind = "internal") -> AbstractContextManager[Callable[[Attributes], object]]:
    """A span around a block, if spans are made."""
    tracer = installed.tracer
    return nullcontext(_ignored) if tracer is None else tracer.span(name, kind)


def traced(
    name: str, kind: Kind = "internal", describe: Describe | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of methods: each call is a span of that name, if spans are made. ``describe`` gives attributes of the
    result."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return cast("Callable[P, R]", _Place(function, name, kind, describe))

    return decorate


class _Place:
    """A method that can be traced. Its class gets the plain function, or one with a span around it."""

    def __init__(self, function: Callable[..., Any], name: str, kind: Kind, describe: Describe | None) -> None:
        self._function, self._name, self._kind, self._describe = function, name, kind, describe

    def __set_name__(self, owner: type, attribute: str) -> None:
        self._owner, self._attribute = owner, attribute
        _places.append(self)
        self.trace_with(installed.tracer)

    def trace_with(self, tracer: Tracer | None) -> None:
        """Let the class have the function for this tracer."""
        setattr(self._owner, self._attribute, self._function if tracer is None else self._traced_by(tracer))

    def _traced_by(self, tracer: Tracer) -> Callable[..., Any]:
        function, describe = self._function, self._describe or _nothing

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with tracer.span(self._name, self._kind) as add:
                result = function(*args, **kwargs)
                add(describe(result))
            return result

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            with tracer.span(self._name, self._kind) as add:
                result = await function(*args, **kwargs)
                add(describe(result))
            return result

        return awaited if iscoroutinefunction(function) else call


def _nothing(_: object) -> Attributes:
    return {}
