"""requests: a session that signs what it sends to one other service.

::

    session = identity.session("resource-service", "http://resource-service:8080")
    session.get("/profiles/42")

Signing happens in the transport adapter, anew for every attempt: a token is good once, for one method, target, body and
content type. An `AuthBase` would run once, while retries and redirects send its token again.
"""

import copy
import functools
import math
import re
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
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
)

from peerseal.errors import Replayed, UnsignableRequest
from peerseal.peers.context import current_transaction
from peerseal.peers.forks import in_each_child, notice_fork
from peerseal.peers.origin import Origin
from peerseal.peers.patience import no_longer_than, time_left
from peerseal.peers.problem import problem_code
from peerseal.peers.request_ctx import RequestCtx
from peerseal.peers.session_options import check_session, names_to_bind
from peerseal.peers.timed import TimedAdapter
from peerseal.peers.transactions import TRANSACTION_HEADER
from peerseal.protocol.names import check_peer_name
from peerseal.protocol.numbers import natural
from peerseal.protocol.tokens import ALWAYS_BOUND, BLANKS

TIMEOUT: Final = (3.05, 10.0)
"""Seconds to connect, and to wait for the next bytes of the answer."""

DEADLINE: Final = 60.0
"""Seconds for one call: all its attempts, the pauses between them, and its redirects."""

MAX_BUFFER: Final = 16 * 1024 * 1024
"""Bytes of the longest body that is read into memory: what a callee takes by default."""

MAX_RETRY_AFTER: Final = 30.0
"""Seconds that an answer may ask us to wait for another attempt. Where it asks for more, it is the answer."""

RETRIES: Final = Retry(
    total=3,
    status_forcelist=(502, 503, 504),
    allowed_methods=Retry.DEFAULT_ALLOWED_METHODS,  # the idempotent ones, RFC 9110 section 9.2.2
    backoff_factor=0.1,
    backoff_max=2,
    backoff_jitter=0.1,
)
"""A connection that was not made is tried again for every method; one that broke, and 502, 503 and 504, where the
method is idempotent."""

_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"))  # RFC 9110 section 9.2.2
_TRANSACTION_HEADER = "Txn-Token"
_LONG_NUMBER = re.compile(r"[0-9]{5}")
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


class PeerSession(requests.Session):
    """A `requests.Session` whose requests to ``base_url`` are signed for ``audience``, a service's name or id.

    Paths are taken below the base URL. Each request carries the token of the `peerseal.current_transaction`, if there
    is one. An absolute URL of another origin is called unsigned, and neither a token of ours nor a ``Txn-Token`` goes
    there, redirects included. Redirects within the origin are signed anew.

    ``timeout`` (seconds, or connect and read apart) holds where a call names none. ``retries`` is a number or a urllib3
    Retry. A call ends ``deadline`` seconds after it began, redirects included, however slowly an answer comes in: it
    raises requests.Timeout. Of a call with ``stream=True`` that holds for the head; the body is the caller's, each read
    of which waits as long as ``timeout`` says. ``bind_headers`` names request headers to sign, where they are set,
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
        timeout: float | tuple[float, float] = TIMEOUT,
        retries: int | Retry = RETRIES,
        deadline: float = DEADLINE,
        bind_headers: Collection[str] = (),
        buffer: bool = False,
        max_buffer: int = MAX_BUFFER,
        header: str = "Authorization",
        ctx: Mapping[str, Any] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
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
                if time_left() > 0 or not _is_silence(_cause(error)):
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
        ctx: RequestCtx,
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(max_retries=0)
        in_each_child(self._forget_connections)
        self._signer = signer
        self._audience = check_peer_name(audience)
        self._origin = origin
        self._policy = retries if isinstance(retries, Retry) else RETRIES.new(total=retries)
        self._bound = (*ALWAYS_BOUND, TRANSACTION_HEADER, *names_to_bind(bind_headers))
        self._header = header
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
        policy = self._policy
        while True:
            try:
                response = self._attempt(send, request, target)
            except requests.RequestException as error:
                error.request = request  # not the one with the token
                policy = _after_error(policy, request, error)
                pause = policy.get_backoff_time()
                if pause >= time_left():
                    raise
            else:
                response.request = request
                again = _after_answer(policy, request, response)
                if again is None or again[1] >= time_left():
                    return response
                policy, pause = again
                response.close()
            self._sleep(pause)

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


def _after_error(policy: Retry, request: requests.PreparedRequest, error: requests.RequestException) -> Retry:
    """The policy for one more attempt after an attempt without an answer; raises the error where there is none.

    A connection that was not made is safe to try again. One that broke may have done its work, so the policy asks
    whether the method is idempotent. Anything else (certificates, a proxy that says no) would only happen again.
    """
    cause = _cause(error)
    if isinstance(cause, ProxyError):
        cause = cause.original_error
    if not isinstance(cause, ConnectTimeoutError | NewConnectionError | ReadTimeoutError | ProtocolError):
        raise error
    try:
        return policy.increment(request.method, request.url, error=cause)
    except HTTPError:
        raise error from cause


def _after_answer(
    policy: Retry, request: requests.PreparedRequest, response: requests.Response
) -> tuple[Retry, float] | None:
    """The policy for one more attempt and the seconds to wait before it; None where this answer is the one to give."""
    if not policy.is_retry(str(request.method), response.status_code):
        return None
    try:
        policy = policy.increment(request.method, request.url, response=response.raw)
        asked = _retry_after(policy, response) if policy.respect_retry_after_header else None
    except (MaxRetryError, InvalidHeader, OverflowError, ValueError):
        return None
    if asked is not None and asked > MAX_RETRY_AFTER:
        return None
    return policy, asked or policy.get_backoff_time()


def _retry_after(policy: Retry, response: requests.Response) -> float | None:
    """How many seconds the answer asks us to wait (RFC 9110 section 10.2.3); None where it does not say. Raises
    ValueError, OverflowError or InvalidHeader for what is no number of seconds and no time of this calendar."""
    text = response.headers.get("Retry-After", "").strip(BLANKS)
    if not text:
        return None
    if text.isdigit():
        seconds = natural(text.lstrip("0") or "0")
        return math.inf if seconds is None else seconds
    if _LONG_NUMBER.search(text):
        raise ValueError("a time with a number that is none of a calendar")
    return policy.get_retry_after(response.raw)


def _cause(error: requests.RequestException) -> object:
    """What urllib3 raised."""
    cause = error.args[0] if error.args else None
    return cause.reason if isinstance(cause, MaxRetryError) else cause


def _is_silence(cause: object) -> bool:
    """Whether nothing of a body came, or of ours was taken, in time."""
    aborted_by = cause.args[-1] if isinstance(cause, ProtocolError) else None
    return isinstance(cause, ReadTimeoutError) or isinstance(aborted_by, TimeoutError)


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


def _from_url(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An `auth` that adds what stands in the URL, and nothing else: with none, requests would look into .netrc."""
    user, password = get_auth_from_url(str(request.url))
    return HTTPBasicAuth(user, password)(request) if user or password else request
