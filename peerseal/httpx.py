"""httpx: an `Auth` that signs the requests of a client, and a whole asynchronous session.

::

    session = identity.async_session("resource-service", "http://resource-service:8080")
    await session.get("/profiles/42")

    client = httpx.Client(auth=Auth(identity, "resource-service", "http://resource-service:8080"))  # or an AsyncClient

A token is valid once, for one method, target, body and content type. Therefore each attempt and each redirect is
signed. httpx asks an `httpx.Auth` once for each call and not for each redirect, so that `Auth` and the session follow
redirects themselves.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, Unpack

from requests.utils import unquote_unreserved
from urllib3 import HTTPResponse
from urllib3.exceptions import ConnectTimeoutError, ProtocolError

from peerseal.errors import (
    CallNotMade,
    CircuitOpen,
    ConfigurationError,
    ResponseRefused,
    TooManyCalls,
    UnsignableRequest,
)
from peerseal.httpx_auth import CTX, SENT_BACK, SIGNED, Auth, ResponseRefusedError, httpx, stripped
from peerseal.protocol.hosts import is_this_machine
from peerseal.runtime.limits import CallLimits
from peerseal.runtime.options import check_callable
from peerseal.session.circuit import Attempt, Circuit, Circuits
from peerseal.session.options import CallOptions, SessionOptions, SigningOptions
from peerseal.session.origin import Origin
from peerseal.session.problem import MAX_PROBLEM, PeerRefusal, refusal_from
from peerseal.session.retries import Attempts
from peerseal.session.signed_answer import other_origin
from peerseal.session.signing import Signer

__all__ = [
    "CTX",
    "AsyncPeerSession",
    "Auth",
    "CircuitOpenError",
    "PeerRefusal",
    "ResponseRefusedError",
    "TooManyCallsError",
    "refusal_of",
]

T = TypeVar("T")

_HOOKED: Final = (
    "event_hooks: httpx calls response hooks before the answer is checked; with require_signed_response give none"
)
_IDLE: Final = 10  # connections that a session keeps, as PeerSession does
_NO_ANSWER = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError, httpx.ProxyError)


def refusal_of(response: httpx.Response) -> PeerRefusal | None:
    """Why the callee refused the call; None for an answer that is no refusal, or whose request was not signed. Raises
    httpx.ResponseNotRead for a problem document that is streamed, says no length and is not read yet."""
    if not response.extensions.get(SIGNED):
        return None
    return refusal_from(response.status_code, response.headers, lambda: response.content[:MAX_PROBLEM])


class CircuitOpenError(CircuitOpen, httpx.ConnectError):
    """`peerseal.errors.CircuitOpen`, and an exception of httpx for applications that catch those."""


class TooManyCallsError(TooManyCalls, httpx.ConnectError):
    """`peerseal.errors.TooManyCalls`, and an exception of httpx for applications that catch those."""


class AsyncSessionOptions(CallOptions, total=False):
    """The options of an `AsyncPeerSession`: those of all sessions, and those of httpx.AsyncClient."""

    sleep: Callable[[float], Awaitable[None]]
    params: Any
    headers: Any
    cookies: Any
    verify: ssl.SSLContext | str | bool
    cert: Any
    http1: bool
    http2: bool
    proxy: Any
    mounts: Mapping[str, httpx.AsyncBaseTransport | None] | None
    follow_redirects: bool
    max_redirects: int
    event_hooks: Mapping[str, list[Callable[..., Any]]] | None
    transport: httpx.AsyncBaseTransport | None
    trust_env: bool
    default_encoding: str | Callable[[bytes], str]


class _ProvenCookies(httpx.Cookies):
    """Cookies of a session that requires signed answers: httpx takes those of each answer before it is checked."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Takes none; see `take`."""

    def take(self, response: httpx.Response) -> None:
        """Takes those of an answer that is checked."""
        super().extract_cookies(response)


class AsyncPeerSession(httpx.AsyncClient):
    """An `httpx.AsyncClient` whose requests to ``base_url`` are signed for ``audience``, a service's name or id, with
    the limits, retries and circuits of `peerseal.requests.PeerSession`. It works with asyncio.

    Paths are below the base URL. ``limits``, ``timeout``, ``retries``, ``deadline``, ``bind_headers``, ``buffer``,
    ``max_buffer``, ``header``, ``ctx`` and ``circuits`` are those of `PeerSession`; the request extension `CTX` adds or
    replaces members of ``ctx`` for one call. All further options are those of AsyncClient, such as ``verify``,
    ``headers`` and ``follow_redirects``. Redirects, which are followed only if that is asked for, are signed within
    the origin; other origins get no signature and no ``Txn-Token``.

    A call, with its redirects, ends after ``deadline`` seconds with httpx.ReadTimeout. With ``stream`` the limits hold
    up to the head of the answer, and ``timeout`` for each read of the body. CircuitOpenError and TooManyCallsError mean
    that a call was not made. UnsignableRequest means that a request cannot be signed.

    ``require_signed_response`` and ``signed_response_headers`` are those of `PeerSession`, with ResponseRefusedError.
    Response hooks are not allowed then, because httpx calls them before the answer is checked.
    """

    def __init__(self, signer: Signer, audience: str, base_url: str, **options: Unpack[AsyncSessionOptions]) -> None:
        client: dict[str, Any] = {**options}
        given = {name: client.pop(name) for name in CallOptions.__optional_keys__ & client.keys()}
        ctx, circuits, sleep = given.pop("ctx", None), given.pop("circuits", None), client.pop("sleep", asyncio.sleep)
        self._settings = SessionOptions.of(**given)
        check_callable("sleep", sleep)
        if client.get("auth") is not None:
            raise ConfigurationError("auth: this session signs its requests itself; send other credentials in headers")
        signing: Any = {name: given[name] for name in SigningOptions.__optional_keys__ & given.keys()}
        self._signing = Auth(signer, audience, base_url, ctx=ctx, **signing)
        self._callee = Origin(base_url)
        self._circuits = circuits or Circuits()
        self._sleep = sleep
        super().__init__(**_client_options(self._callee, self._settings, client))
        self._proven_cookies = _ProvenCookies(client.get("cookies"))

    @property
    def cookies(self) -> httpx.Cookies:
        """As AsyncClient's. With ``require_signed_response`` only answers that are proven set cookies."""
        return self._proven_cookies if self._settings.require_signed_response else super().cookies

    @cookies.setter
    def cookies(self, cookies: Any) -> None:
        self._proven_cookies = _ProvenCookies(cookies)
        httpx.AsyncClient.cookies.fset(self, cookies)  # type: ignore[attr-defined]  # mypy takes it for a value

    def build_request(self, method: str, url: httpx.URL | str, **options: Any) -> httpx.Request:
        """As AsyncClient's, with the URL below the base URL."""
        resolved = self._callee.resolve(str(url))
        request = super().build_request(method, resolved, **options)
        if resolved != str(url) and not self._callee.holds(unquote_unreserved(str(request.url))):
            raise UnsignableRequest("the path leads out of the base URL: expected one below it")
        return request

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        """As AsyncClient's, within the deadline. ``auth`` is for requests to another origin."""
        follows = self.follow_redirects if follow_redirects is httpx.USE_CLIENT_DEFAULT else follow_redirects
        if auth not in (None, httpx.USE_CLIENT_DEFAULT) and self._signing.signs(request):
            raise UnsignableRequest("auth: this session signs the request itself; send other credentials in headers")
        if self._settings.require_signed_response and self.event_hooks["response"]:
            raise ConfigurationError(_HOOKED)
        until = asyncio.get_running_loop().time() + self._settings.seconds_per_call
        request = await self._in_time(until, request, self._signing.settled(request))
        history: list[httpx.Response] = []
        while True:
            response = await self._answer(request, until, stream, auth)
            response.history = list(history)
            following = response.next_request if follows else None
            if following is None:
                return response
            await self._read(until, response)
            history.append(response)
            if len(history) > self.max_redirects:
                raise httpx.TooManyRedirects(f"more than {self.max_redirects} redirects", request=request)
            if self._signing.signs(following) and not self._signing.signs(request):
                raise UnsignableRequest(SENT_BACK)
            request, auth = following, None

    async def _answer(self, request: httpx.Request, until: float, stream: bool, auth: Any) -> httpx.Response:
        """The answer of one origin, after one or more attempts."""
        if not self._signing.signs(request):
            if self._settings.require_signed_response:
                raise ResponseRefusedError.of(other_origin(), request)
            response = await self._in_time(until, request, self._send(stripped(request), auth))
            return response if stream else await self._read(until, response)
        circuit = self._circuits.of(self._callee.name)
        try:
            async with _place(circuit, self._settings.limits, until):
                return await self._attempts(request, until, circuit, stream)
        except CallNotMade as error:
            kind = CircuitOpenError if isinstance(error, CircuitOpen) else TooManyCallsError
            refusal = kind(str(error), error.retry_after)
            refusal.request = request
            raise refusal from None

    async def _attempts(self, request: httpx.Request, until: float, circuit: Circuit, stream: bool) -> httpx.Response:
        """The last answer or error, after as many attempts as the policy, the deadline and the circuit allow."""
        limits = self._settings.limits
        attempts = Attempts(self._settings.retry_policy, circuit, limits, request.method, str(request.url))
        while True:
            with circuit.attempt(limits) as attempt:
                try:
                    response = await self._in_time(until, request, self._send(request, self._signing))
                except ResponseRefused as refused:
                    pause = attempts.after_refused(attempt, refused.answered)
                    if pause is None or not await self._goes_on(attempts, pause, until):
                        raise
                except httpx.TransportError as error:
                    error.request = request  # without the token
                    if isinstance(error, _NO_ANSWER):
                        circuit.failed(attempt, type(error).__name__)
                    pause = attempts.after_error(_cause_of(error))
                    if pause is None or not await self._goes_on(attempts, pause, until):
                        raise
                else:
                    pause = attempts.after_answer(attempt, _head_of(response))
                    try:
                        goes_on = pause is not None and await self._goes_on(attempts, pause, until)
                    except BaseException:  # such as a cancellation in the pause
                        await response.aclose()
                        raise
                    if not goes_on:
                        self._proven_cookies.take(response)
                        return await self._whole(response, circuit, attempt, until, stream)
                    await response.aclose()

    async def _send(self, request: httpx.Request, auth: Any) -> httpx.Response:
        return await super().send(request, stream=True, auth=auth, follow_redirects=False)

    async def _goes_on(self, attempts: Attempts, pause: float, until: float) -> bool:
        """Wait for the pause, if the deadline and the circuit allow one more attempt after it."""
        if asyncio.get_running_loop().time() + pause >= until or not attempts.may_go_on():
            return False
        await self._sleep(pause)
        return attempts.may_go_on()

    async def _whole(
        self, response: httpx.Response, circuit: Circuit, attempt: Attempt, until: float, stream: bool
    ) -> httpx.Response:
        """The answer with its body, unless the caller streams it."""
        if not stream:
            try:
                await self._read(until, response)
            except httpx.TransportError as error:
                circuit.failed(attempt, type(error).__name__)
                raise
        circuit.succeeded(attempt)
        return response

    async def _read(self, until: float, response: httpx.Response) -> httpx.Response:
        try:
            await self._in_time(until, response.request, response.aread())
        except BaseException:
            await response.aclose()
            raise
        return response

    async def _in_time(self, until: float, request: httpx.Request, step: Awaitable[T]) -> T:
        """The result of one step of a call. Raises httpx.ReadTimeout if the deadline of the call passes before."""
        try:
            async with asyncio.timeout_at(until):
                return await step
        except TimeoutError:
            seconds = self._settings.seconds_per_call
            raise httpx.ReadTimeout(f"no whole answer within the deadline of {seconds:g} s", request=request) from None


@asynccontextmanager
async def _place(circuit: Circuit, limits: CallLimits, until: float) -> AsyncIterator[None]:
    """Reserve a place for one call; this task may have to wait. Raises CircuitOpen or TooManyCalls."""
    asked = circuit.ask(limits)
    try:
        if not asked.done():
            ends = min(until, asyncio.get_running_loop().time() + limits.longest_wait)
            try:
                async with asyncio.timeout_at(ends):  # asyncio.wait_for may swallow a cancellation in Python 3.11
                    await asyncio.wrap_future(asked)
            except TimeoutError:
                raise circuit.no_place(limits) from None
        yield
    finally:
        circuit.leave(asked)


def _client_options(origin: Origin, options: SessionOptions, client: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the AsyncClient. A host on loopback is called without a proxy."""
    timeout = options.default_timeout
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    pool = httpx.Limits(max_connections=None, max_keepalive_connections=_IDLE)
    host = httpx.URL(origin.url).host
    direct = {origin.url: None} if is_this_machine(host) else {}
    mounts = {**direct, **(client.get("mounts") or {})}
    return {"timeout": httpx.Timeout(read, connect=connect), "limits": pool, **client, "mounts": mounts}


def _cause_of(error: httpx.TransportError) -> Exception | None:
    """The error of urllib3 that stands for it in a retry policy; None where an attempt would end in the same way."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return None if _is_of_tls(error) else ConnectTimeoutError(str(error))
    return ProtocolError(str(error)) if isinstance(error, _NO_ANSWER) else None


def _is_of_tls(error: BaseException | None) -> bool:
    """Whether TLS failed, such as for a certificate."""
    return error is not None and (isinstance(error, ssl.SSLError) or _is_of_tls(error.__cause__ or error.__context__))


def _head_of(response: httpx.Response) -> HTTPResponse:
    """The head of an answer, for a retry policy of urllib3."""
    headers = {name: response.headers[name] for name in ("Retry-After", "Location") if name in response.headers}
    return HTTPResponse(headers=headers, status=response.status_code)
