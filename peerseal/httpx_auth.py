"""httpx: signs the requests of a client, one by one. `peerseal.httpx` has the names for applications."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, Self, Unpack

from peerseal.errors import Replayed, ResponseRefused, UnsignableRequest
from peerseal.runtime.extras import missing
from peerseal.runtime.options import check_flag
from peerseal.session.options import SessionOptions, SigningOptions
from peerseal.session.origin import Origin
from peerseal.session.problem import MAX_PROBLEM, code_in, is_problem
from peerseal.session.refused_answers import refused_answers_of
from peerseal.session.request_ctx import RequestCtx
from peerseal.session.retries import is_repeatable
from peerseal.session.signed_answer import NO_ONE_SIGNS, response_verifier, too_long
from peerseal.session.signing import FAILED_FROM, TRANSACTION, AttemptSigner, Signer
from peerseal.verify.response import UNSIGNED, CheckedResponse, ResponseHead, ResponseVerifier, check_asked_for

try:
    import httpx as httpx  # peerseal.httpx has it from here: one place names the extra if it is missing
    from anyio import to_thread  # a part of httpx's own requirements
except ModuleNotFoundError as error:
    raise missing(error, "httpx") from error

CTX: Final = "peerseal_ctx"
"""The extension of a request that holds its ``ctx``: ``client.get(url, extensions={CTX: {"purpose": "support"}})``."""

SIGNED: Final = "peerseal_signed"
"""The extension of an answer to a signed request."""

_CLIENT_FOLLOWED = (
    "the client follows a redirect with the token of the first request: leave follow_redirects of the client off, and"
    " give it to peerseal.httpx.Auth"
)
_TRACE: Final = "trace"
_RAW: Final = "peerseal_raw"  # the body of an answer as it arrived
_PROVEN: Final = "peerseal_proven"
_BEFORE_HEADERS: Final = ".send_request_headers.started"
SENT_BACK: Final = "another origin redirects to this service: such a request is not signed"


class ResponseRefusedError(ResponseRefused, httpx.RequestError):
    """`peerseal.errors.ResponseRefused`, and an exception of httpx for applications that catch those."""

    @classmethod
    def of(cls, refused: ResponseRefused, request: httpx.Request) -> Self:
        """The same refusal, of an answer to this request."""
        error = cls(refused.code, refused.detail, answered=refused.answered)
        error.request = request
        return error


class Auth(httpx.Auth):
    """Signs the requests of an `httpx.Client` or `httpx.AsyncClient` to the origin of ``base_url`` for ``audience``, a
    service's name or id. It is given to the client (``auth=``) or to one call.

    A request to another origin is sent without a signature and ``Txn-Token``. Each request carries the token of the
    `peerseal.current_transaction` and the `peerseal.current_request_id` as ``X-Request-Id``, if there are any.

    Leave the client's ``follow_redirects`` off: httpx would send the token of the first request along with the second.
    UnsignableRequest ends such a call, before a byte is sent where the redirect is to another origin. With
    ``follow_redirects`` of this class, redirects are followed, and signed within the origin. ``ctx`` is data of
    the application in each token; the request extension `CTX` adds or replaces members.

    The other options are those of `peerseal.requests.PeerSession`. ``retries`` says here which methods may be signed
    and sent once more where the callee has seen the token, because a proxy sent it twice. A file is read at once, in
    the thread of the event loop too. UnsignableRequest means that a request cannot be signed.

    With ``require_signed_response`` ResponseRefusedError ends a call whose answer is not signed by the callee for this
    very request, and no request is sent to another origin (docs/how-to/signed-responses.md). httpx calls the response
    hooks of a client, and takes cookies, before the answer is checked: give it no hooks, and rely on no cookie.
    """

    def __init__(
        self,
        signer: Signer,
        audience: str,
        base_url: str,
        *,
        follow_redirects: bool = False,
        ctx: Mapping[str, Any] | None = None,
        **options: Unpack[SigningOptions],
    ) -> None:
        check_flag("follow_redirects", follow_redirects)
        self._options = SessionOptions(**options)
        self._responses = response_verifier(signer, audience, self._options)
        self._refused, self._audience = refused_answers_of(signer), audience
        bound, header, wants = self._options.bind_headers, self._options.header, self._responses is not None
        self._signer = AttemptSigner(signer, audience, bound, header, wants_response=wants)
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
        attempt, again = next(flow), False
        while True:
            with self._answered(attempt):
                response = yield self._kept(attempt, _Trace)
            with self._closed_if_refused(response, request):
                if self._may_read(response):
                    if self._responses is not None:
                        self._raw(response)
                    response.read()
                again = not again and self._was_sent_twice(response)
                if self._responses is not None and not again:
                    token = self._signer.token_in(attempt.headers)
                    check_asked_for(response.status_code, attempt.headers)
                    checked = self._responses.check(_head_of(response), request_token=token)
                    checked.with_content(self._raw(response))
                    _keep_proven_history(response)
            try:
                attempt = flow.send(response)
            except StopIteration:
                return

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        flow = self._flow(await self.settled(request))
        attempt, again = next(flow), False
        while True:
            with self._answered(attempt):
                response = yield self._kept(attempt, _AsyncTrace)
            async with self._aclosed_if_refused(response, request):
                if self._may_read(response):
                    if self._responses is not None:
                        await self._araw(response)
                    await response.aread()
                again = not again and self._was_sent_twice(response)
                if self._responses is not None and not again:
                    token = self._signer.token_in(attempt.headers)
                    check_asked_for(response.status_code, attempt.headers)
                    checked = await _check_in_thread(self._responses, _head_of(response), token)
                    checked.with_content(await self._araw(response))
                    _keep_proven_history(response)
            try:
                attempt = flow.send(response)
            except StopIteration:
                return

    @contextmanager
    def _answered(self, attempt: httpx.Request) -> Iterator[None]:
        """Where the block fails, or httpx ends it for want of an answer, the callee did not accept the attempt."""
        try:
            yield
        except BaseException:
            self._signer.not_accepted(attempt.headers)
            raise

    @contextmanager
    def _closed_if_refused(self, response: httpx.Response, request: httpx.Request) -> Iterator[None]:
        try:
            yield
        except ResponseRefused as refused:
            response.close()
            self._signer.not_accepted(response.request.headers)
            self._refused.note(refused, self._audience, response.status_code)
            raise ResponseRefusedError.of(refused, request) from refused

    @asynccontextmanager
    async def _aclosed_if_refused(self, response: httpx.Response, request: httpx.Request) -> AsyncIterator[None]:
        try:
            yield
        except ResponseRefused as refused:
            await response.aclose()
            self._signer.not_accepted(response.request.headers)
            self._refused.note(refused, self._audience, response.status_code)
            raise ResponseRefusedError.of(refused, request) from refused

    def _may_read(self, response: httpx.Response) -> bool:
        """Whether it is a refusal that is read before it is proven: none that could be long once it is unpacked."""
        return _is_refusal(response) and (self._responses is None or "Content-Encoding" not in response.headers)

    def _raw(self, response: httpx.Response) -> bytes:
        """The body as it arrived, before it is unpacked; the response can be read afterwards. Raises
        ResponseRefused."""
        if _RAW not in response.extensions:
            content = bytearray()
            for piece in response.iter_raw():
                self._keep(content, piece)
            _put_back(response, bytes(content))
        raw: bytes = response.extensions[_RAW]
        return raw

    async def _araw(self, response: httpx.Response) -> bytes:
        """As `_raw`."""
        if _RAW not in response.extensions:
            content = bytearray()
            async for piece in response.aiter_raw():
                self._keep(content, piece)
            _put_back(response, bytes(content))
        raw: bytes = response.extensions[_RAW]
        return raw

    def _keep(self, content: bytearray, piece: bytes) -> None:
        content += piece
        if len(content) > self._options.max_buffer:
            raise too_long(self._options.max_buffer)

    def _flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """The attempts of one request and of its redirects. A redirect from another origin to the callee is not
        followed: that origin would choose what is signed."""
        while True:
            signs = self.signs(request)
            if self._responses is not None and not signs:
                raise ResponseRefusedError(UNSIGNED, NO_ONE_SIGNS)
            attempt = self._signed(request) if signs else stripped(request)
            response = yield attempt
            if signs and self._was_sent_twice(response):
                attempt = self._signed(request)
                response = yield attempt
            if self._responses is None and response.status_code >= FAILED_FROM:
                self._signer.not_accepted(attempt.headers)
            if response.request is not attempt:
                if signs:
                    raise UnsignableRequest(_CLIENT_FOLLOWED)
                return
            response.extensions[SIGNED] = signs
            response.request = request  # without the token
            response.next_request = following = _without_added(response.next_request, request, attempt)
            if following is None or not self._follows:
                return
            if self.signs(following) and not signs:
                raise UnsignableRequest(SENT_BACK)
            request = following

    def _kept(self, attempt: httpx.Request, trace: "type[_Trace]") -> httpx.Request:
        """The attempt, whose headers go to this origin only."""
        if self.signs(attempt):
            given = attempt.extensions.get(_TRACE)
            attempt.extensions = {**attempt.extensions, _TRACE: trace(self._origin, given)}
        return attempt

    def _was_sent_twice(self, response: httpx.Response) -> bool:
        """Whether the callee has seen the token, and the method is idempotent: a proxy may have sent it twice."""
        repeatable = is_repeatable(self._options.retry_policy, response.request.method)
        refused = response.status_code == Replayed.status and self._may_read(response)
        return repeatable and refused and code_in(response.content) == Replayed.code

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


def _head_of(response: httpx.Response) -> ResponseHead:
    pairs = response.headers.raw
    return ResponseHead.of(
        response.status_code, ((name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs)
    )


def _keep_proven_history(response: httpx.Response) -> None:
    """The history of a proven answer without refusals that were not: they were only a reason to sign once more."""
    response.extensions[_PROVEN] = True
    response.history = [earlier for earlier in response.history if _PROVEN in earlier.extensions]


def _put_back(response: httpx.Response, content: bytes) -> None:
    """The response, which was read to its end, can be read once more from its beginning."""
    response.stream = httpx.ByteStream(content)
    response.is_stream_consumed = response.is_closed = False
    response.extensions[_RAW] = content


async def _check_in_thread(verifier: ResponseVerifier, head: ResponseHead, token: str) -> CheckedResponse:
    """What memory can answer is checked in the event loop; a thread waits for the registry."""
    checked = verifier.check_from_memory(head, request_token=token)
    if checked is None:
        checked = await to_thread.run_sync(partial(verifier.check, head, request_token=token))
    return checked


class _Trace:
    """httpx's extension ``trace``: httpcore, which sends all requests of httpx's own transports, calls it before and
    after each step of each of them. The requests of redirects inherit it from the first one."""

    def __init__(self, origin: tuple[bytes, bytes, int | None], given: Callable[..., Any] | None) -> None:
        self._origin = origin
        self._given = given

    def __call__(self, event: str, info: Mapping[str, Any]) -> Any:
        """Raises UnsignableRequest where the headers are about to go to another origin."""
        if event.endswith(_BEFORE_HEADERS) and _destination(info["request"]) not in (None, self._origin):
            raise UnsignableRequest(_CLIENT_FOLLOWED)
        return None if self._given is None else self._given(event, info)


class _AsyncTrace(_Trace):
    """The same for an AsyncClient, whose trace is a coroutine."""

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        """See _Trace."""
        given = super().__call__(event, info)
        if given is not None:
            await given


def _destination(sent: Any) -> tuple[bytes, bytes, int | None] | None:
    """The origin of an httpcore.Request, also at a forward proxy, which gets the whole URL. None for CONNECT, whose
    headers are the proxy's."""
    if sent.method == b"CONNECT":
        return None
    target: bytes = sent.url.target
    if target.startswith(b"/"):
        return sent.url.scheme, sent.url.host, sent.url.port
    return _origin_of(httpx.URL(target.decode("ascii")))


def _is_refusal(response: httpx.Response) -> bool:
    """Whether it is a short problem document that refuses a request."""
    length = response.headers.get("Content-Length", "")
    short = length.isdecimal() and len(length) <= len(str(MAX_PROBLEM)) and int(length) <= MAX_PROBLEM
    return short and response.is_error and is_problem(response.headers.get("Content-Type", ""))


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


def stripped(request: httpx.Request) -> httpx.Request:
    """The copy that goes to another origin."""
    copy = _copy(request, request.headers.raw)
    copy.headers.pop(TRANSACTION, None)
    return copy


def _without_added(
    following: httpx.Request | None, request: httpx.Request, attempt: httpx.Request
) -> httpx.Request | None:
    """The request of a redirect without what signing has added to the attempt, which httpx has copied."""
    if following is not None:
        following.extensions = dict(request.extensions)
        for name in attempt.headers.keys() - request.headers.keys():
            following.headers.pop(name, None)
    return following
