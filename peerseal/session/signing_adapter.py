"""The transport adapter of a session: it signs each attempt, makes the attempts, and asks the circuit before each."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import requests
from urllib3 import Retry

from peerseal.errors import CallNotMade, CircuitOpen, Replayed, TooManyCalls, UnsignableRequest
from peerseal.protocol.names import check_peer_name
from peerseal.protocol.tokens.bearer import BLANKS
from peerseal.protocol.tokens.request import ALWAYS_BOUND
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.runtime.limits import CallLimits
from peerseal.session.circuit import Attempt, Circuit, Circuits
from peerseal.session.options import names_to_bind
from peerseal.session.origin import Origin
from peerseal.session.problem import problem_code
from peerseal.session.request_ctx import RequestCtx
from peerseal.session.retries import RETRIES, after_answer, after_error, pause_asked_for
from peerseal.transport.deadline import time_left
from peerseal.transport.deadline_adapter import TimedAdapter
from peerseal.verify.context import REQUEST_ID, current_request_id, current_transaction
from peerseal.verify.transaction import TRANSACTION_HEADER

_TRANSACTION_HEADER = "Txn-Token"
_OVERLOADED = (502, 503, 504)
_NO_ANSWER = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
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


class CircuitOpenError(CircuitOpen, requests.ConnectionError):
    """`peerseal.errors.CircuitOpen`, for applications that catch what requests raises, too."""


class TooManyCallsError(TooManyCalls, requests.ConnectionError):
    """`peerseal.errors.TooManyCalls`, for applications that catch what requests raises, too."""


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
        self._bound = (*ALWAYS_BOUND, TRANSACTION_HEADER, *names_to_bind(bind_headers))
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
        if pause >= time_left() or not circuit.lets_through(self._limits):
            return False
        self._sleep(pause)
        return circuit.lets_through(self._limits)

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
        return method in Retry.DEFAULT_ALLOWED_METHODS and (not allowed or method in allowed)

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


def _check_characters(headers: Mapping[str, str | bytes]) -> None:
    """Raises UnsignableRequest for a header that http.client cannot encode."""
    for name, value in headers.items():
        if not name.isascii() or (isinstance(value, str) and max(value, default="") > "\xff"):
            raise UnsignableRequest(f"the header {name!r} cannot be sent: names are ASCII, values latin-1")
