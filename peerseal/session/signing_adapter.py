"""The transport adapter of a session: asks the circuit, signs and sends each attempt."""

from collections.abc import Callable, Mapping
from typing import Any

import requests
from requests.adapters import DEFAULT_POOLBLOCK, DEFAULT_POOLSIZE

from peerseal.errors import (
    CallNotMade,
    CircuitOpen,
    Replayed,
    ResponseRefused,
    TooManyCalls,
    UnsignableRequest,
)
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.runtime.tracing import Attributes, of_answer, of_call, traced
from peerseal.session.circuit import Attempt, Circuit, Circuits
from peerseal.session.options import SessionOptions
from peerseal.session.origin import Origin
from peerseal.session.problem import REFUSAL, PeerRefusal, refusal_in
from peerseal.session.refused_answers import refused_answers_of
from peerseal.session.request_ctx import RequestCtx
from peerseal.session.retries import Attempts, cause_of, is_repeatable
from peerseal.session.signed_answer import other_origin, proven, response_verifier
from peerseal.session.signing import FAILED_FROM, TRANSACTION, AttemptSigner, Signer
from peerseal.transport.deadline import time_left
from peerseal.transport.deadline_adapter import TimedAdapter

_NO_ANSWER = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_Send = Callable[[requests.PreparedRequest], requests.Response]


def _of_call(adapter: "SigningAdapter", request: requests.PreparedRequest, *_: object, **__: object) -> Attributes:
    return of_call(request.method, str(request.url))


def _of_answer(response: requests.Response) -> Attributes:
    return of_answer(response.status_code)


class CircuitOpenError(CircuitOpen, requests.ConnectionError):
    """`peerseal.errors.CircuitOpen`, and an exception of requests for applications that catch those."""


class TooManyCallsError(TooManyCalls, requests.ConnectionError):
    """`peerseal.errors.TooManyCalls`, and an exception of requests for applications that catch those."""


class ResponseRefusedError(ResponseRefused, requests.RequestException):
    """`peerseal.errors.ResponseRefused`, and an exception of requests for applications that catch those. It has no
    ``response``: what arrived is not to be used."""


class SigningAdapter(TimedAdapter):
    """Signs and sends each attempt of each request to one origin; retries of urllib3 would send a token twice.

    A proxy may send a token twice as well: nginx sends a request again to the next server if the connection breaks. The
    callee refuses the second copy as ``replayed``, even if its answer to the first one was lost. If the method is
    idempotent, the adapter signs and sends such a request once more, in addition to ``retries``.
    """

    def __init__(
        self,
        signer: Signer,
        audience: str,
        origin: Origin,
        options: SessionOptions,
        circuits: Circuits,
        ctx: RequestCtx,
    ) -> None:
        super().__init__(max_retries=0)
        in_each_child(self._forget_connections)
        self._responses = response_verifier(signer, audience, options)
        self._refused, self._audience = refused_answers_of(signer), audience
        wants = self._responses is not None
        self._signer = AttemptSigner(signer, audience, options.bind_headers, options.header, wants_response=wants)
        self._origin = origin
        self._policy = options.retry_policy
        self._longest_answer = options.max_buffer
        self._limits = options.limits
        self._sleep = options.sleep
        self._circuits = circuits
        self._ctx = ctx

    def _forget_connections(self) -> None:
        """A forked child opens its own connections: otherwise it would read answers to requests of its parent."""
        self.init_poolmanager(DEFAULT_POOLSIZE, DEFAULT_POOLSIZE, block=DEFAULT_POOLBLOCK)
        self.proxy_manager = {}

    @traced("peerseal.call", "client", describe=_of_answer, ask=_of_call)
    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, *more: Any, **options: Any
    ) -> requests.Response:
        """The answer, after one or more attempts. Raises as HTTPAdapter's does."""
        notice_fork()
        send_in_time = super().send

        def send(attempt: requests.PreparedRequest) -> requests.Response:
            return send_in_time(attempt, stream, _connecting_in_time(timeout), *more, **options)

        target = self._origin.target(request.url or "")
        if target is None:
            if self._responses is not None:
                raise _refused(other_origin(), request)
            return send(_stripped(request))
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
        """The last answer or error, after as many attempts as the policy, the deadline and the circuit allow."""
        attempts = Attempts(self._policy, circuit, self._limits, str(request.method), str(request.url))
        while True:
            with circuit.attempt(self._limits) as attempt:
                try:
                    response = self._attempt(send, request, target)
                except ResponseRefused as refused:
                    pause = attempts.after_refused(attempt, refused.answered)
                    if pause is None or not self._goes_on(attempts, pause):
                        raise _refused(refused, request) from refused
                except requests.RequestException as error:
                    error.request = request  # without the token
                    if isinstance(error, _NO_ANSWER):
                        circuit.failed(attempt, type(error).__name__)
                    pause = attempts.after_error(cause_of(error))
                    if pause is None or not self._goes_on(attempts, pause):
                        raise
                else:
                    response.request = request
                    pause = attempts.after_answer(attempt, response.raw)
                    if pause is None or not self._goes_on(attempts, pause):
                        return _whole(response, circuit, attempt, stream)
                    response.close()

    def _goes_on(self, attempts: Attempts, pause: float) -> bool:
        """Wait for the pause, if the deadline and the circuit allow one more attempt after it."""
        if pause >= time_left() or not attempts.may_go_on():
            return False
        self._sleep(pause)
        return attempts.may_go_on()

    def _attempt(self, send: _Send, request: requests.PreparedRequest, target: str) -> requests.Response:
        """One attempt, and a second one with a new token if the callee refuses the first token as replayed. Raises
        ResponseRefused for an answer that is not signed as the session requires."""
        signed = self._signed(request, target)
        response, refusal = self._sent(send, signed)
        replayed = refusal is not None and (refusal.status, refusal.code) == (Replayed.status, Replayed.code)
        if replayed and is_repeatable(self._policy, str(request.method)):
            response.close()
            signed = self._signed(request, target)
            response = self._sent(send, signed)[0]
        if self._responses is not None:
            try:
                proven(response, self._responses, self._signer.token_in(signed.headers), self._longest_answer)
            except BaseException as error:
                response.close()
                self._signer.not_accepted(signed.headers)
                if isinstance(error, ResponseRefused):
                    self._refused.note(error, self._audience, response.status_code)
                raise
        return response

    def _sent(self, send: _Send, signed: requests.PreparedRequest) -> tuple[requests.Response, PeerRefusal | None]:
        """The answer to one attempt, and the refusal in it."""
        try:
            response, refusal = _read(send(signed))
        except BaseException:
            self._signer.not_accepted(signed.headers)
            raise
        if self._responses is None and response.status_code >= FAILED_FROM:
            self._signer.not_accepted(signed.headers)
        return response, refusal

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        """As HTTPAdapter's, which however drops the last ``;`` of a target to an HTTP proxy."""
        url = super().request_url(request, proxies)
        target = None if url.startswith("/") else self._origin.target(request.url or "")
        return url if target is None else self._origin.url + target

    def _signed(self, request: requests.PreparedRequest, target: str) -> requests.PreparedRequest:
        """The signed copy of the request, with the URL of this origin even if another parser reads another one."""
        attempt = request.copy()
        attempt.url = self._origin.url + target
        sign_attempt(self._signer, attempt, target, self._ctx.of(request))
        return attempt


def sign_attempt(
    signer: AttemptSigner, attempt: requests.PreparedRequest, target: str, ctx: Mapping[str, Any] | None = None
) -> None:
    """Put a token for this attempt into its headers, and what else it carries (`AttemptSigner.headers`).

    ``target`` is what is sent (origin form), and the body is bytes or None. Raises UnsignableRequest, or as the signer
    does.
    """
    added = signer.headers(
        attempt.headers, method=str(attempt.method), target=target, body=_settled(attempt.body), ctx=ctx
    )
    attempt.headers.update(added)


def _refused(refused: ResponseRefused, request: requests.PreparedRequest) -> ResponseRefusedError:
    """The same refusal, as an exception of requests too."""
    error = ResponseRefusedError(refused.code, refused.detail, answered=refused.answered)
    error.request = request
    return error


def _read(response: requests.Response) -> tuple[requests.Response, PeerRefusal | None]:
    """The answer, which keeps its refusal, and the refusal. Raises requests.ConnectionError if no body comes."""
    refusal = vars(response)[REFUSAL] = refusal_in(response)
    return response, refusal


def _whole(response: requests.Response, circuit: Circuit, attempt: Attempt, stream: bool) -> requests.Response:
    """The answer with its body, unless the caller streams it. Requests reads the body of a redirect itself."""
    if not (stream or response.is_redirect):
        try:
            _ = response.content
        except _NO_ANSWER as error:
            circuit.failed(attempt, type(error).__name__)
            raise
    circuit.succeeded(attempt)
    return response


def _connecting_in_time(timeout: Any) -> Any:
    """The timeout of one attempt, with the time to connect limited by the deadline. A urllib3 Timeout stays as it is.
    `TimedAdapter` limits the reads, so that the reads of a stream keep their whole timeout."""
    if not (timeout is None or isinstance(timeout, tuple | int | float)):
        return timeout
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    left = max(time_left(), 0.001)
    return min(connect or left, left), read


def _stripped(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """The copy that goes to another origin."""
    attempt = request.copy()
    attempt.headers.pop(TRANSACTION, None)
    return attempt


def _settled(body: Any) -> bytes:
    if body is None:
        return b""
    if not isinstance(body, bytes):
        raise UnsignableRequest(f"the body is {type(body).__name__}; expected bytes, as PeerSession reads it")
    return body
