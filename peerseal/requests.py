"""requests: a session that signs what it sends to one other service.

::

    session = identity.session("resource-service", "http://resource-service:8080")
    session.get("/profiles/42")

Signing happens in the transport adapter, anew for every attempt: a token is good once, for one method, target, body and
content type. An `AuthBase` would run once, while retries and redirects send its token again.
"""

import copy
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies
from weakref import WeakSet

import requests
from requests.auth import HTTPBasicAuth
from requests.utils import get_auth_from_url
from urllib3 import Retry

from peerseal.errors import UnsignableRequest
from peerseal.runtime.limits import CallLimits
from peerseal.runtime.options import check_is
from peerseal.session.circuit import Circuits
from peerseal.session.options import check_session
from peerseal.session.origin import Origin
from peerseal.session.request_ctx import RequestCtx
from peerseal.session.retries import MAX_RETRY_AFTER as MAX_RETRY_AFTER
from peerseal.session.retries import RETRIES as RETRIES
from peerseal.session.retries import cause_of, is_silence
from peerseal.session.signing_adapter import CircuitOpenError as CircuitOpenError
from peerseal.session.signing_adapter import Signer, SigningAdapter
from peerseal.session.signing_adapter import TooManyCallsError as TooManyCallsError
from peerseal.transport.deadline import no_longer_than, time_left

MAX_BUFFER: Final = 16 * 1024 * 1024
"""Bytes of the longest body that is read into memory: what a callee takes by default."""

TIMEOUT: Final = (CallLimits().connect_timeout, CallLimits().read_timeout)
"""Seconds to connect, and to wait for the next bytes of the answer, where nothing else is said."""

DEADLINE: Final = CallLimits().deadline
"""Seconds for one call, where nothing else is said."""

_PIECE = 1 << 16  # bytes read at once


class _Verb(Protocol):
    """A method of a session such as ``get``."""

    def __call__(
        self, url: str | bytes, *args: Any, ctx: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> requests.Response:
        """See `requests.Session`; ``ctx`` goes into the request's tokens."""


class PeerSession(requests.Session):
    """A `requests.Session` whose requests to ``base_url`` are signed for ``audience``, a service's name or id.

    Paths are taken below the base URL. Each request carries the token of the `peerseal.current_transaction`, and the
    `peerseal.current_request_id` as ``X-Request-Id``, if there is one. An absolute URL of another origin is called
    unsigned, and no token of ours, ``Txn-Token`` or request id goes there, redirects included. Redirects within the
    origin are signed anew.

    ``limits`` says how long calls may take, how many run at once, and when they fail fast (`CallLimits`); ``timeout``
    (seconds, or connect and read apart) and ``deadline`` stand in for its own. ``timeout`` holds where a call names
    none. ``retries`` is a number or a urllib3 Retry. A call ends ``deadline`` seconds after it began, redirects
    included, however slowly an answer comes in: it raises requests.Timeout. Of a call with ``stream=True`` that holds
    for the head, and so do the other limits; the body is the caller's, each read of which waits as long as ``timeout``
    says. Otherwise ``Response.elapsed`` includes the body.

    A call that is not made, since the last ones failed or too many run, raises CircuitOpenError or TooManyCallsError.
    ``circuits`` counts that: the sessions of one `peerseal.Identity` share theirs, any other session has its own. Calls
    to other origins do not count.

    ``bind_headers`` names request headers to sign, where they are set,
    besides content-type and content-encoding; ``header`` is the one that the token goes into. A stream or file is read
    into memory, ``max_buffer`` bytes at most; what can be read only once (a generator, a pipe) is refused unless
    ``buffer`` is set. A request that cannot be signed as it stands raises UnsignableRequest.

    ``ctx`` is what the application says in each token, 1 KiB of JSON at most; the callee reads it as ``Peer.ctx``. A
    call adds its own members, or replaces some: ``session.get("/profiles/42", ctx={"purpose": "support"})``. It goes
    with every attempt and every redirect of that call within the origin, and nowhere else.
    """

    if TYPE_CHECKING:  # requests' own annotations leave no room for ``ctx``; its methods hand it on to `request`
        delete: "_Verb"
        get: "_Verb"
        head: "_Verb"
        options: "_Verb"
        patch: "_Verb"
        post: "_Verb"
        put: "_Verb"

    def __init__(
        self,
        signer: Signer,
        audience: str,
        base_url: str,
        *,
        limits: CallLimits | None = None,
        timeout: float | tuple[float | None, float | None] | None = None,
        retries: int | Retry = RETRIES,
        deadline: float | None = None,
        bind_headers: Collection[str] = (),
        buffer: bool = False,
        max_buffer: int = MAX_BUFFER,
        header: str = "Authorization",
        ctx: Mapping[str, Any] | None = None,
        circuits: Circuits | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        limits = CallLimits() if limits is None else limits
        check_is("limits", limits, CallLimits, "a peerseal.CallLimits")
        timeout = (limits.connect_timeout, limits.read_timeout) if timeout is None else timeout
        deadline = limits.deadline if deadline is None else deadline
        check_session(
            timeout, retries, deadline=deadline, buffer=buffer, max_buffer=max_buffer, header=header, sleep=sleep
        )
        self._origin = Origin(base_url)
        self._ctx = RequestCtx(ctx)
        self._timeout = timeout
        self._deadline = deadline
        self._buffer = buffer
        self._max_buffer = max_buffer
        self._sent_back: WeakSet[requests.PreparedRequest] = WeakSet()
        adapter = SigningAdapter(
            signer,
            audience,
            self._origin,
            retries=retries,
            bind_headers=bind_headers,
            header=header,
            limits=limits,
            circuits=Circuits() if circuits is None else circuits,
            ctx=self._ctx,
            sleep=sleep,
        )
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def request(
        self, method: str, url: str | bytes, *args: Any, ctx: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> requests.Response:
        """As Session's. ``ctx`` goes into the request's tokens, see above. Raises UnsignableRequest for one that does
        not fit there, or that is meant for another origin."""
        with self._ctx.giving(ctx):
            return super().request(method, url, *args, **kwargs)

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """As Session's, with the URL taken below the base URL, and without what .netrc says: it may name every host."""
        ctx = self._ctx.take()
        url = request.url.decode("utf-8") if isinstance(request.url, bytes) else str(request.url)
        request = copy.copy(request)
        request.url = self._origin.resolve(url)
        if request.auth is None and self.auth is None:
            request.auth = _from_url
        prepared = super().prepare_request(request)
        if request.url != url and not self._origin.holds(prepared.url or ""):
            raise UnsignableRequest("a path below the base URL leads out of it")
        if ctx is not None:
            if self._origin.target(prepared.url or "") is None:
                raise UnsignableRequest("ctx is signed, and requests to another origin are not: call it without ctx")
            self._ctx.keep(prepared, ctx)
        return prepared

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """As Session's, with the default timeout, within the deadline, with a body that can be sent more than once."""
        if request in self._sent_back:
            raise UnsignableRequest("another origin redirects to a service whose requests are signed")
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._timeout
        if self._origin.target(request.url or "") is not None:
            self._settle_body(request)
        with no_longer_than(self._deadline):  # a redirect's comes here again, and has what is left
            try:
                return super().send(request, **kwargs)
            except requests.ConnectionError as error:
                if time_left() > 0 or not is_silence(cause_of(error)):
                    raise
                raise requests.ReadTimeout(*error.args, request=request) from error

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """What a redirect means for credentials. One from another origin back to our callee must not be followed: a
        stranger would choose what we sign. One to another origin brings no password from .netrc there."""
        url = prepared_request.url or ""
        if self._origin.target(url) is None:
            if self.should_strip_auth(response.request.url or "", url):
                prepared_request.headers.pop("Authorization", None)
        elif self._origin.target(response.url) is None:
            self._sent_back.add(prepared_request)
        else:
            self._ctx.follow(response.request, prepared_request)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """As Session's. Raises requests' InvalidURL for a Location that cannot be read."""
        try:
            target = super().get_redirect_target(resp)
            _ = urlsplit(target or "").port  # requests reads it, with no care for what it raises
        except ValueError as error:
            raise requests.exceptions.InvalidURL(f"a Location that is no URL: {error}", response=resp) from error
        return target

    def rebuild_proxies(self, prepared_request: requests.PreparedRequest, proxies: Any) -> dict[str, str]:
        """As Session's, which keeps the proxy that the environment named for the URL before: ``NO_PROXY`` counts for
        where a redirect leads, too."""
        found = getproxies().values() if self.trust_env else ()
        given = {scheme: proxy for scheme, proxy in (proxies or {}).items() if proxy not in found}
        return super().rebuild_proxies(prepared_request, given)

    def _settle_body(self, request: requests.PreparedRequest) -> None:
        """Make the body bytes: what is signed is then what every attempt sends, whatever becomes of a file."""
        body: Any = request.body
        if body is None or isinstance(body, bytes):
            return
        if isinstance(body, str):
            request.body = body.encode("utf-8")  # as urllib3 sends it, and requests counted it
            return
        content = bytes(body) if isinstance(body, bytearray | memoryview) else self._read(body, request._body_position)
        request.body = content
        request._body_position = None  # bytes need no rewinding
        request.headers.pop("Transfer-Encoding", None)
        request.headers["Content-Length"] = str(len(content))

    def _read(self, body: Any, position: object) -> bytes:
        """A file from where it stood when the request was made; another stream, if that is asked for."""
        if isinstance(position, int) and hasattr(body, "seek"):
            body.seek(position)
        elif not self._buffer:
            raise UnsignableRequest("the body can be read only once: give bytes or a file, or set buffer=True")
        content = bytearray()
        for piece in _pieces(body):
            content += piece.encode("utf-8") if isinstance(piece, str) else piece
            if len(content) > self._max_buffer:
                raise UnsignableRequest(f"the body is longer than max_buffer, {self._max_buffer} bytes")
        return bytes(content)


def _pieces(body: Any) -> Iterator[bytes | str]:
    if not hasattr(body, "read"):
        yield from body
        return
    while piece := body.read(_PIECE):
        yield piece


def _from_url(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An `auth` that adds what stands in the URL, and nothing else: with none, requests would look into .netrc."""
    user, password = get_auth_from_url(str(request.url))
    return HTTPBasicAuth(user, password)(request) if user or password else request
