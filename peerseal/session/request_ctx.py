"""The ``ctx`` of a session's calls: what the application says in a request token, beside what the protocol says."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from peerseal.errors import ConfigurationError, UnsignableRequest
from peerseal.protocol.tokens.request import plain_ctx

_given: ContextVar[Mapping[str, Any] | None] = ContextVar("peerseal_request_ctx", default=None)
"""What the call that is about to be prepared was given: `requests.Session.request` has no other way to pass it on."""


class RequestCtx:
    """Which ``ctx`` goes with which prepared request of one session.

    ``default`` goes with every request; of a member that a call gives too, the call's value counts. Raises
    ConfigurationError for a default that does not fit into a token.
    """

    def __init__(self, default: Mapping[str, Any] | None) -> None:
        try:
            self._default = plain_ctx({} if default is None else default)
        except Exception as error:  # what a value's own methods raise, too
            raise ConfigurationError(f"ctx: {error}") from error
        self._by_request: WeakKeyDictionary[object, dict[str, Any]] = WeakKeyDictionary()

    def of(self, request: object) -> Mapping[str, Any] | None:
        """What is signed with the request; None where that is nothing."""
        return self._by_request.get(request, self._default) or None

    def keep(self, request: object, given: Mapping[str, Any]) -> None:
        """The request was made with that ``ctx``, of which a copy is kept: retries sign what the call was given.
        Raises UnsignableRequest for what does not fit into a token."""
        try:
            self._by_request[request] = plain_ctx({**self._default, **plain_ctx(given)})
        except Exception as error:
            raise UnsignableRequest(str(error)) from error

    def follow(self, request: object, redirected: object) -> None:
        """The request leads on to another one, which is made for the same call."""
        if request in self._by_request:
            self._by_request[redirected] = self._by_request[request]

    @staticmethod
    @contextmanager
    def giving(ctx: Mapping[str, Any] | None) -> Iterator[None]:
        """The next request that is prepared in this block is made with that ``ctx``."""
        token = _given.set(ctx)
        try:
            yield
        finally:
            _given.reset(token)

    @staticmethod
    def take() -> Mapping[str, Any] | None:
        """What the request that is being prepared was given. Another one, such as a hook makes, was given nothing."""
        ctx = _given.get()
        _given.set(None)
        return ctx
