"""requests: a session that signs what it sends to one other service.

::

    session = identity.session("resource-service", "http://resource-service:8080")
    session.get("/profiles/42")

Signing happens in the transport adapter, anew for every attempt: a token is good once, for one method, target, body and
content type. An `AuthBase` would run once, while retries and redirects send its token again.
"""

import copy
import functools
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

from peerseal.errors import CallNotMade, CircuitOpen, ConfigurationError, Replayed, TooManyCalls, UnsignableRequest
from peerseal.peers.circuit import Attempt, Circuit, Circuits
from peerseal.peers.context import REQUEST_ID, current_request_id, current_transaction
from peerseal.peers.forks import in_each_child, notice_fork
from peerseal.peers.limits import CallLimits
from peerseal.peers.origin import Origin
from peerseal.peers.patience import no_longer_than, time_left
from peerseal.peers.problem import problem_code
from peerseal.peers.request_ctx import RequestCtx
from peerseal.peers.retries import MAX_RETRY_AFTER as MAX_RETRY_AFTER
from peerseal.peers.retries import RETRIES as RETRIES
from peerseal.peers.retries import after_answer, after_error, cause_of, is_silence, pause_asked_for
from peerseal.peers.timed import TimedAdapter
from peerseal.peers.transactions import TRANSACTION_HEADER
from peerseal.protocol.names import check_peer_name
from peerseal.protocol.tokens import ALWAYS_BOUND, BLANKS
from peerseal.runtime.options import check_flag, check_header_name, check_is, check_number, check_whole

MAX_BUFFER: Final = 16 * 1024 * 1024
"""Bytes of the longest body that is read into memory: what a callee takes by default."""

TIMEOUT: Final = (CallLimits().connect_timeout, CallLimits().read_timeout)
"""Seconds to connect, and to wait for the next bytes of the answer, where nothing else is said."""

DEADLINE: Final = CallLimits().deadline
"""Seconds for one call, where nothing else is said."""

_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"))  # RFC 9110 section 9.2.2
_UNSEEN = frozenset(("authorization", "connection", "content-length", "host", "te", "trailer", "transfer-encoding"))
_TRANSACTION_HEADER = "Txn-Token"
_OVERLOADED = (502, 503, 504)
_NO_ANSWER = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_PIECE = 1 << 16  # bytes read at once
_Send = Callable[[requests.PreparedRequest], requests.Response]


class Signer(Protocol):
    """What a session needs of a `peerseal.Identity`."""

    def sign_request(
        self,
        audience: str,
        *,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        ctx: Mapping[str, Any] | None = None,
    ) -> str:
        """A request token for one attempt."""


class _Verb(Protocol):
    """A method of a session such as ``get``."""

    def __call__(
        self, url: str | bytes, *args: Any, ctx: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> requests.Response:
        """See `requests.Session`; ``ctx`` goes into the request's tokens."""


class CircuitOpenError(CircuitOpen, requests.ConnectionError):
    """`peerseal.errors.CircuitOpen`, for applications that catch what requests raises, too."""


class TooManyCallsError(TooManyCalls, requests.ConnectionError):
    """`peerseal.errors.TooManyCalls`, for applications that catch what requests raises, too."""


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
        for seconds in timeout if isinstance(timeout, tuple) else (timeout,):
            if seconds is not None:  # requests waits as long as it takes, and here until the deadline
                check_number("timeout", seconds)
        if not isinstance(retries, Retry):
            check_whole("retries", retries)
        check_number("deadline", deadline)
        check_flag("buffer", buffer)
        check_header_name("header", header)
        check_whole("max_buffer", max_buffer)
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


class SigningAdapter(TimedAdapter):
    """Signs each attempt of each request to one origin, and makes the attempts: urllib3 would send a token twice.

    A proxy may do so too: nginx sends a request whose connection broke to the next server. A callee that did the first
    copy's work, and whose answer got lost, refuses the second as ``replayed``. Such an attempt is signed and sent once
    more, however many ``retries`` there are, where the method is idempotent.
    """

    def __init__(
        self,
        signer: Signer,
        audience: str,
        origin: Origin,
        *,
        retries: int | Retry,
        bind_headers: Collection[str],
        header: str,
        limits: CallLimits,
        circuits: Circuits,
        ctx: RequestCtx,
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(max_retries=0)
        in_each_child(self._forget_connections)
        self._signer = signer
        self._audience = check_peer_name(audience)
        self._origin = origin
        self._policy = retries if isinstance(retries, Retry) else RETRIES.new(total=retries)
        self._bound = (*ALWAYS_BOUND, TRANSACTION_HEADER, *_checked_names(bind_headers))
        self._header = header
        self._limits = limits
        self._circuits = circuits
        self._ctx = ctx
        self._sleep = sleep

    def _forget_connections(self) -> None:
        """Connections must not cross a fork: two processes would read each other's answers."""
        self.init_poolmanager(self._pool_connections, self._pool_maxsize, block=self._pool_block)
        self.proxy_manager = {}

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        """One answer, after as many attempts as it takes; what HTTPAdapter raises where there is none."""
        notice_fork()
        send_in_time = functools.partial(super().send, stream=stream, verify=verify, cert=cert, proxies=proxies)

        def send(attempt: requests.PreparedRequest) -> requests.Response:
            return send_in_time(attempt, timeout=_connecting_in_time(timeout))

        target = self._origin.target(request.url or "")
        if target is None:
            return send(_stripped(request))
        if self._header in request.headers:
            raise UnsignableRequest(f"the request has a value of its own for {self._header}, where the token goes")
        circuit = self._circuits.of(self._origin.name)
        try:
            with circuit.place(self._limits):
                return self._answer(send, request, target, circuit, stream)
        except CallNotMade as error:
            kind = CircuitOpenError if isinstance(error, CircuitOpen) else TooManyCallsError
            refusal = kind(str(error), error.retry_after)
            refusal.request = request
            raise refusal from None

    def _answer(
        self, send: _Send, request: requests.PreparedRequest, target: str, circuit: Circuit, stream: bool
    ) -> requests.Response:
        """The last answer, or the last error, of as many attempts as the policy, the time and the circuit allow."""
        policy = self._policy
        while True:
            with circuit.attempt(self._limits) as attempt:
                try:
                    response = self._attempt(send, request, target)
                except requests.RequestException as error:
                    error.request = request  # not the one with the token
                    if isinstance(error, _NO_ANSWER):
                        circuit.failed(attempt, type(error).__name__)
                    policy = after_error(policy, request, error)
                    if not self._goes_on(circuit, policy.get_backoff_time()):
                        raise
                else:
                    response.request = request
                    if response.status_code in _OVERLOADED:
                        asked = pause_asked_for(policy, response)
                        circuit.failed(attempt, f"HTTP {response.status_code}", asked)
                    again = after_answer(policy, request, response)
                    if again is None or not self._goes_on(circuit, again[1]):
                        return _whole(response, circuit, attempt, stream)
                    policy = again[0]
                    response.close()

    def _goes_on(self, circuit: Circuit, pause: float) -> bool:
        """Whether time and circuit allow one more attempt after the pause, which is over then."""
        if pause >= time_left() or not circuit.lets_through:
            return False
        self._sleep(pause)
        return circuit.lets_through

    def _attempt(self, send: _Send, request: requests.PreparedRequest, target: str) -> requests.Response:
        """One attempt, with a second token where the first was refused as one that the callee had seen before."""
        response = send(self._signed(request, target))
        if not self._may_repeat(str(request.method)) or response.status_code != Replayed.status:
            return response
        if problem_code(response) != Replayed.code:
            return response
        response.close()
        return send(self._signed(request, target))

    def _may_repeat(self, method: str) -> bool:
        """Whether doing the request's work twice does no harm, by the standard and by the application's policy."""
        allowed = self._policy.allowed_methods
        return method in _IDEMPOTENT and (not allowed or method in allowed)

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        """As HTTPAdapter's; but to an HTTP proxy it would send a target without its last ``;``."""
        url = super().request_url(request, proxies)
        target = None if url.startswith("/") else self._origin.target(request.url or "")
        return url if target is None else self._origin.url + target

    def _signed(self, request: requests.PreparedRequest, target: str) -> requests.PreparedRequest:
        """The copy of the request that one attempt sends, to our origin whatever another parser reads in the URL."""
        attempt = request.copy()
        attempt.url = self._origin.url + target
        transaction = current_transaction()
        if transaction is not None and _TRANSACTION_HEADER not in attempt.headers:
            attempt.headers[_TRANSACTION_HEADER] = transaction.carry()
        request_id = current_request_id()
        if request_id is not None:
            attempt.headers.setdefault(REQUEST_ID, request_id)
        _check_characters(attempt.headers)
        bound = self._bound_headers(attempt.headers)
        token = self._signer.sign_request(
            self._audience,
            method=str(request.method),
            target=target,
            body=_settled(request.body),
            headers=bound,
            ctx=self._ctx.of(request),
        )
        changed = {name: value for name, value in bound.items() if attempt.headers[name] != value}
        attempt.headers.update(changed)  # what is sent is what was signed: some servers keep blanks around a value
        attempt.headers[self._header] = f"Bearer {token}"
        return attempt

    def _bound_headers(self, headers: Mapping[str, str | bytes]) -> dict[str, str]:
        """The headers to sign as a server will read them (RFC 9110 section 5.5)."""
        bound = {}
        for name in self._bound:
            value = headers.get(name)
            if value is not None:
                text = value.decode("latin-1") if isinstance(value, bytes) else value
                bound[name] = text.strip(BLANKS)
        if not bound.get("content-type"):
            bound.pop("content-type", None)  # WSGI knows no empty one (PEP 3333)
        return bound


def _whole(response: requests.Response, circuit: Circuit, attempt: Attempt, stream: bool) -> requests.Response:
    """The answer with its body, unless that is the caller's to read, or a redirect's, which requests reads."""
    if not (stream or response.is_redirect):
        try:
            _ = response.content
        except _NO_ANSWER as error:
            circuit.failed(attempt, type(error).__name__)
            raise
    circuit.succeeded(attempt)
    return response


def _connecting_in_time(timeout: Any) -> Any:
    """The timeout of one attempt, with no longer to connect than is left; a urllib3 Timeout is taken as it is. Reads
    look to it themselves, so that those of a stream have their whole timeout."""
    if not (timeout is None or isinstance(timeout, tuple | int | float)):
        return timeout
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    left = max(time_left(), 0.001)
    return min(connect or left, left), read


def _stripped(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """The copy that goes to another origin."""
    attempt = request.copy()
    attempt.headers.pop(_TRANSACTION_HEADER, None)
    return attempt


def _settled(body: Any) -> bytes:
    if body is None:
        return b""
    if not isinstance(body, bytes):
        raise UnsignableRequest("the body was not read before it was sent")
    return body


def _pieces(body: Any) -> Iterator[bytes | str]:
    if not hasattr(body, "read"):
        yield from body
        return
    while piece := body.read(_PIECE):
        yield piece


def _check_characters(headers: Mapping[str, str | bytes]) -> None:
    """Raises UnsignableRequest for a header that http.client cannot encode."""
    for name, value in headers.items():
        if not name.isascii() or (isinstance(value, str) and max(value, default="") > "\xff"):
            raise UnsignableRequest(f"the header {name!r} cannot be sent: names are ASCII, values latin-1")


def _checked_names(names: Collection[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ConfigurationError("bind_headers is one string; give a tuple of names")
    check_is("bind_headers", names, Collection, "a tuple of names")
    for name in names:
        check_header_name("bind_headers", name)
    lower = tuple(name.lower() for name in names)
    if unseen := _UNSEEN.intersection(lower):
        raise ConfigurationError(f"headers that only the transport knows cannot be bound: {', '.join(sorted(unseen))}")
    return lower


def _from_url(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An `auth` that adds what stands in the URL, and nothing else: with none, requests would look into .netrc."""
    user, password = get_auth_from_url(str(request.url))
    return HTTPBasicAuth(user, password)(request) if user or password else request
