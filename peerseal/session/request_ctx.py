"""The ``ctx`` of the calls of a session: data of the application in a request token."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from peerseal.errors import ConfigurationError, UnsignableRequest
from peerseal.protocol.tokens.request import plain_ctx

_given: ContextVar[Mapping[str, Any] | None] = ContextVar("peerseal_request_ctx", default=None)
"""The ``ctx`` of the call that is prepared next: `requests.Session.request` has no parameter for it."""


class RequestCtx:
    """The ``ctx`` of each prepared request of one session.

    ``default`` is signed with every request; a call may replace its members. Raises ConfigurationError for a default
    that does not fit into a token.
    """

    def __init__(self, default: Mapping[str, Any] | None) -> None:
        try:
            self._default = plain_ctx({} if default is None else default)
        except Exception as error:  # also an error of a value's own methods
            raise ConfigurationError(f"ctx: {error}") from error
        self._by_request: WeakKeyDictionary[object, dict[str, Any]] = WeakKeyDictionary()

    def of(self, request: object) -> Mapping[str, Any] | None:
        """The ``ctx`` to sign with the request; None if it is empty."""
        return self._by_request.get(request, self._default) or None

    def keep(self, request: object, given: Mapping[str, Any]) -> None:
        """Keep a copy of the ``ctx`` of a request: retries sign the same. Raises UnsignableRequest if it does not fit
        into a token."""
        self._by_request[request] = self.merged(given)

    def merged(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The default with the members of ``given`` added or replaced. Raises UnsignableRequest if it does not fit into
        a token."""
        try:
            return plain_ctx({**self._default, **plain_ctx(given)})
        except Exception as error:
            raise UnsignableRequest(str(error)) from error

    def follow(self, request: object, redirected: object) -> None:
        """Sign the redirected request with the ``ctx`` of the first one."""
        if request in self._by_request:
            self._by_request[redirected] = self._by_request[request]

    @staticmethod
    @contextmanager
    def giving(ctx: Mapping[str, Any] | None) -> Iterator[None]:
        """Prepare the next request in this block with that ``ctx``."""
        token = _given.set(ctx)
        try:
            yield
        finally:
            _given.reset(token)

    @staticmethod
    def take() -> Mapping[str, Any] | None:
        """The ``ctx`` for the request that is being prepared. A second request, such as one of a hook, has none."""
        ctx = _given.get()
        _given.set(None)
        return ctx
