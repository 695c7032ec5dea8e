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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Generator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypedDict, TypeVar, Unpack

from requests.utils import unquote_unreserved
from urllib3 import HTTPResponse, Retry
from urllib3.exceptions import ConnectTimeoutError, ProtocolError

from peerseal.errors import CallNotMade, CircuitOpen, ConfigurationError, Replayed, TooManyCalls, UnsignableRequest
from peerseal.protocol.hosts import is_this_machine
from peerseal.runtime.extras import missing
from peerseal.runtime.limits import CallLimits
from peerseal.runtime.options import check_callable, check_flag
from peerseal.session.circuit import Attempt, Circuit, Circuits
from peerseal.session.options import MAX_BUFFER, SessionOptions
from peerseal.session.origin import Origin
from peerseal.session.problem import MAX_PROBLEM, code_in, is_problem
from peerseal.session.request_ctx import RequestCtx
from peerseal.session.retries import RETRIES, Attempts, is_repeatable
from peerseal.session.signing import TRANSACTION, AttemptSigner, Signer

try:
    import httpx
except ModuleNotFoundError as error:
    raise missing(error, "httpx") from error

T = TypeVar("T")

CTX: Final = "peerseal_ctx"
"""The extension of a request that holds its ``ctx``: ``client.get(url, extensions={CTX: {"purpose": "support"}})``."""

_IDLE: Final = 10  # connections that a session keeps, as PeerSession does
_NO_ANSWER = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError, httpx.ProxyError)


class AuthOptions(TypedDict, total=False):
    """The options of an `Auth`; `peerseal.requests.PeerSession` describes them."""

    bind_headers: Collection[str]
    buffer: bool
    max_buffer: int
    header: str
    retries: int | Retry


class CircuitOpenError(CircuitOpen, httpx.ConnectError):
    """`peerseal.errors.CircuitOpen`, and an exception of httpx for applications that catch those."""


class TooManyCallsError(TooManyCalls, httpx.ConnectError):
    """`peerseal.errors.TooManyCalls`, and an exception of httpx for applications that catch those."""


class Auth(httpx.Auth):
    """Signs the requests of an `httpx.Client` or `httpx.AsyncClient` to the origin of ``base_url`` for ``audience``, a
    service's name or id. It is given to the client (``auth=``) or to one call.

    A request to another origin is sent without a signature and ``Txn-Token``. Each request carries the token of the
    `peerseal.current_transaction` and the `peerseal.current_request_id` as ``X-Request-Id``, if there are any.

    Leave the client's ``follow_redirects`` off: httpx would send the token of the first request along with the second.
    With ``follow_redirects`` of this class, redirects are followed, and signed within the origin. ``ctx`` is data of
    the application in each token; the request extension `CTX` adds or replaces members.

    The other options are those of `peerseal.requests.PeerSession`. ``retries`` says here which methods may be signed
    and sent once more where the callee has seen the token, because a proxy sent it twice. A file is read at once, in
    the thread of the event loop too. UnsignableRequest means that a request cannot be signed.
    """

    def __init__(
        self,
        signer: Signer,
        audience: str,
        base_url: str,
        *,
        follow_redirects: bool = False,
        ctx: Mapping[str, Any] | None = None,
        **options: Unpack[AuthOptions],
    ) -> None:
        check_flag("follow_redirects", follow_redirects)
        self._options = SessionOptions(**options)
        self._signer = AttemptSigner(signer, audience, self._options.bind_headers, self._options.header)
        self._origin = _origin_of(httpx.URL(Origin(base_url).url))
        self._follows = follow_redirects
        self._ctx = RequestCtx(ctx)

    def signs(self, request: httpx.Request) -> bool:
        """Whether the request is to the origin. Raises UnsignableRequest for a URL with a user name."""
        if _origin_of(request.url) != self._origin:
            return False
        if request.url.userinfo:
            raise UnsignableRequest("the URL has a user name: signed requests carry none, remove it")
        return True

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`."""
        flow = self._flow(self._settled(request))
        attempt = next(flow)
        while True:
            response = yield attempt
            if _is_refusal(response):
                response.read()
            try:
                attempt = flow.send(response)
            except StopIteration:
                return

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        flow = self._flow(await self.settled(request))
        attempt = next(flow)
        while True:
            response = yield attempt
            if _is_refusal(response):
                await response.aread()
            try:
                attempt = flow.send(response)
            except StopIteration:
                return

    def _flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """The attempts of one request and of its redirects. A redirect from another origin to the callee is not
        followed: that origin would choose what is signed."""
        while True:
            signs = self.signs(request)
            attempt = self._signed(request) if signs else _stripped(request)
            response = yield attempt
            if signs and self._was_sent_twice(response):
                attempt = self._signed(request)
                response = yield attempt
            if response.request is not attempt:
                if signs:
                    raise UnsignableRequest(_CLIENT_FOLLOWED)
                return
            response.request = request  # without the token
            response.next_request = following = _without_added(response.next_request, request, attempt)
            if following is None or not self._follows:
                return
            if self.signs(following) and not signs:
                raise UnsignableRequest(_SENT_BACK)
            request = following

    def _was_sent_twice(self, response: httpx.Response) -> bool:
        """Whether the callee has seen the token, and the method is idempotent: a proxy may have sent it twice."""
        repeatable = is_repeatable(self._options.retry_policy, response.request.method)
        return repeatable and _is_refusal(response) and code_in(response.content) == Replayed.code

    def _signed(self, request: httpx.Request) -> httpx.Request:
        target: bytes = request.extensions.get("target", request.url.raw_path)
        if not target.startswith(b"/") or not target.isascii():
            raise UnsignableRequest(
                f"the request-target {target!r:.60} cannot be signed: expected ASCII, from a slash on"
            )
        added = self._signer.headers(
            self._given_headers(request),
            method=request.method,
            target=target.decode("ascii"),
            body=request.read(),
            ctx=self._ctx_of(request),
        )
        names = {name.lower() for name in added}
        headers = [(name, value) for name, value in request.headers.raw if name.decode("ascii").lower() not in names]
        headers += [(name.encode("ascii"), value.encode("latin-1")) for name, value in added.items()]
        return _copy(request, headers)

    def _ctx_of(self, request: httpx.Request) -> Mapping[str, Any] | None:
        given = request.extensions.get(CTX)
        return self._ctx.of(request) if given is None else self._ctx.merged(given) or None

    def _given_headers(self, request: httpx.Request) -> dict[str, bytes]:
        """The headers by lower-case name. Raises UnsignableRequest for two values of a bound one: a callee refuses
        them."""
        given: dict[str, bytes] = {}
        for raw_name, value in request.headers.raw:
            name = raw_name.decode("ascii").lower()
            if name in given and name in self._signer.bound:
                raise UnsignableRequest(f"the header {name!r} has two values: a bound header has one")
            given[name] = value
        return given

    # ---- bodies

    def _settled(self, request: httpx.Request) -> httpx.Request:
        """The request with its body in memory, so that every attempt sends what was signed."""
        if not self._must_read(request):
            return request
        if not isinstance(request.stream, httpx.SyncByteStream):
            raise UnsignableRequest("the body is asynchronous: send it with an AsyncClient, or give bytes")
        content = bytearray()
        for piece in request.stream:
            self._append(content, piece)
        return _with_content(request, bytes(content))

    async def settled(self, request: httpx.Request) -> httpx.Request:
        """The request with its body in memory, so that every attempt sends what was signed. Raises
        UnsignableRequest."""
        if not self._must_read(request):
            return request
        if not isinstance(request.stream, httpx.AsyncByteStream):
            return self._settled(request)  # a file
        content = bytearray()
        async for piece in request.stream:
            self._append(content, piece)
        return _with_content(request, bytes(content))

    def _must_read(self, request: httpx.Request) -> bool:
        if not self.signs(request):
            if CTX in request.extensions:
                raise UnsignableRequest("ctx is signed, and requests to another origin are not: call it without ctx")
            return False
        if isinstance(request.stream, httpx.ByteStream):
            return False
        if "Transfer-Encoding" in request.headers and not self._options.buffer:
            raise UnsignableRequest("the body can be read only once: give bytes or a file, or set buffer=True")
        return True

    def _append(self, content: bytearray, piece: bytes | str) -> None:
        content += piece.encode("utf-8") if isinstance(piece, str) else piece  # a text file, which httpx cannot send
        if len(content) > self._options.max_buffer:
            raise UnsignableRequest(f"the body is longer than max_buffer, {self._options.max_buffer} bytes")


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
    """

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
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **client: Any,
    ) -> None:
        given = CallLimits() if limits is None else limits
        self._settings = SessionOptions(limits=given, timeout=timeout, deadline=deadline, retries=retries)
        check_callable("sleep", sleep)
        if client.get("auth") is not None:
            raise ConfigurationError("auth: this session signs its requests itself; send other credentials in headers")
        self._signing = Auth(
            signer,
            audience,
            base_url,
            retries=retries,
            bind_headers=bind_headers,
            buffer=buffer,
            max_buffer=max_buffer,
            header=header,
            ctx=ctx,
        )
        self._callee = Origin(base_url)
        self._circuits = circuits or Circuits()
        self._sleep = sleep
        super().__init__(**_client_options(self._callee, self._settings, client))

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
                raise UnsignableRequest(_SENT_BACK)
            request, auth = following, None

    async def _answer(self, request: httpx.Request, until: float, stream: bool, auth: Any) -> httpx.Response:
        """The answer of one origin, after one or more attempts."""
        if not self._signing.signs(request):
            response = await self._in_time(until, request, self._send(_stripped(request), auth))
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
                except httpx.TransportError as error:
                    error.request = request  # without the token
                    if isinstance(error, _NO_ANSWER):
                        circuit.failed(attempt, type(error).__name__)
                    pause = attempts.after_error(_cause_of(error))
                    if pause is None or not await self._goes_on(attempts, pause, until):
                        raise
                else:
                    pause = attempts.after_answer(attempt, _head_of(response))
                    if pause is None or not await self._goes_on(attempts, pause, until):
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


_CLIENT_FOLLOWED = (
    "the client followed a redirect with the token of the first request: leave follow_redirects of the client off, and"
    " give it to peerseal.httpx.Auth"
)
_SENT_BACK = "another origin redirects to this service: such a request is not signed"


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


def _is_refusal(response: httpx.Response) -> bool:
    """Whether it is a short problem document that refuses a token."""
    length = response.headers.get("Content-Length", "")
    short = length.isdecimal() and len(length) <= len(str(MAX_PROBLEM)) and int(length) <= MAX_PROBLEM
    refused = response.status_code == Replayed.status and is_problem(response.headers.get("Content-Type", ""))
    return refused and short


def _origin_of(url: httpx.URL) -> tuple[bytes, bytes, int | None]:
    """Scheme, host and port; httpx has no port where it is the scheme's."""
    return url.raw_scheme, url.raw_host, url.port


def _copy(request: httpx.Request, headers: list[tuple[bytes, bytes]]) -> httpx.Request:
    return httpx.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )


def _with_content(request: httpx.Request, content: bytes) -> httpx.Request:
    of_the_body = (b"transfer-encoding", b"content-length")
    headers = [(name, value) for name, value in request.headers.raw if name.lower() not in of_the_body]
    headers.append((b"Content-Length", str(len(content)).encode("ascii")))
    copy = _copy(request, headers)
    copy.stream = httpx.ByteStream(content)
    return copy


def _stripped(request: httpx.Request) -> httpx.Request:
    """The copy that goes to another origin."""
    copy = _copy(request, request.headers.raw)
    copy.headers.pop(TRANSACTION, None)
    return copy


def _without_added(
    following: httpx.Request | None, request: httpx.Request, attempt: httpx.Request
) -> httpx.Request | None:
    """The request of a redirect without the headers that signing has added to the attempt, which httpx has copied."""
    if following is not None:
        for name in attempt.headers.keys() - request.headers.keys():
            following.headers.pop(name, None)
    return following
