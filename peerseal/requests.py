"""requests: a session that signs its requests to one other service.

::

    session = identity.session("resource-service", "http://resource-service:8080")
    session.get("/profiles/42")

The transport adapter signs each attempt: a token is valid once, for one method, target, body and content type. An
`AuthBase` would run once, and retries and redirects would send its token again.
"""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, Unpack
from urllib.parse import urlsplit
from urllib.request import getproxies
from weakref import WeakSet

import requests
from requests.auth import HTTPBasicAuth
from requests.utils import get_auth_from_url

from peerseal.errors import UnsignableRequest
from peerseal.runtime.limits import CallLimits
from peerseal.session.body import settle_body
from peerseal.session.circuit import Circuits
from peerseal.session.options import MAX_BUFFER as MAX_BUFFER
from peerseal.session.options import PeerSessionOptions, SessionOptions
from peerseal.session.origin import Origin
from peerseal.session.problem import REFUSAL
from peerseal.session.problem import PeerRefusal as PeerRefusal
from peerseal.session.request_ctx import RequestCtx
from peerseal.session.retries import MAX_RETRY_AFTER as MAX_RETRY_AFTER
from peerseal.session.retries import RETRIES as RETRIES
from peerseal.session.retries import cause_of, is_silence
from peerseal.session.signing import Signer
from peerseal.session.signing_adapter import CircuitOpenError as CircuitOpenError
from peerseal.session.signing_adapter import ResponseRefusedError as ResponseRefusedError
from peerseal.session.signing_adapter import SigningAdapter
from peerseal.session.signing_adapter import TooManyCallsError as TooManyCallsError
from peerseal.transport.deadline import no_longer_than, time_left

TIMEOUT: Final = (CallLimits().connect_timeout, CallLimits().read_timeout)
"""Seconds to connect, and to wait for the next bytes of the answer, by default."""

DEADLINE: Final = CallLimits().deadline
"""Seconds for one call, by default."""


def refusal_of(response: requests.Response) -> PeerRefusal | None:
    """Why the callee refused the call; None for an answer that is no refusal, or of another session."""
    refusal: PeerRefusal | None = vars(response).get(REFUSAL)
    return refusal


class _Verb(Protocol):
    """A method of a session such as ``get``."""

    def __call__(
        self, url: str | bytes, *args: Any, ctx: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> requests.Response:
        """See `requests.Session`; ``ctx`` is signed with the request."""


class PeerSession(requests.Session):
    """A `requests.Session` whose requests to ``base_url`` are signed for ``audience``, a service's name or id.

    Paths are below the base URL. Each request carries the token of the `peerseal.current_transaction` and the
    `peerseal.current_request_id` as ``X-Request-Id``, if there are any. A request to another origin is sent without a
    signature, ``Txn-Token`` and request id; so is a redirect to another origin. Redirects within the origin are signed
    again.

    ``limits`` says how long calls may take, how many run at once, and when they fail fast (`CallLimits`). ``timeout``
    and ``deadline`` (seconds) replace its values; ``timeout`` may be a pair, to connect and to read, and a call may
    name its own. ``retries`` is a number or a urllib3 Retry. A call, with its redirects, ends after ``deadline``
    seconds: it raises requests.Timeout. With ``stream=True`` the limits hold up to the head of the answer, and
    ``timeout`` for each read of the body. Otherwise ``Response.elapsed`` includes the body.

    CircuitOpenError and TooManyCallsError mean that a call was not made, because the last calls failed or too many run.
    ``circuits`` counts calls to the origin: the sessions of one `peerseal.Identity` share them, any other session has
    its own.

    ``bind_headers`` names request headers to sign besides content-type and content-encoding; ``header`` carries the
    token. A file or stream is read into memory, up to ``max_buffer`` bytes; one that can be read only once (a
    generator, a pipe) is refused unless ``buffer`` is set. UnsignableRequest means that a request cannot be signed.

    ``ctx`` is data of the application in each token, at most 1 KiB of JSON; the callee reads it as ``Peer.ctx``. A call
    adds or replaces members: ``session.get("/profiles/42", ctx={"purpose": "support"})``. They are sent with every
    attempt and every redirect of that call within the origin.

    With ``require_signed_response`` each answer, also of a redirect, must be signed by the callee for this very
    request, or ResponseRefusedError ends the call before the application sees any of it
    (docs/how-to/signed-responses.md). The body is read at once, up to ``max_buffer`` bytes, also with ``stream=True``.
    ``signed_response_headers`` names headers of answers that count only if they are signed. The headers of a request
    that choose its answer, such as Range and If-None-Match, are signed too. No request is sent to another origin.

    Each answer has the attribute ``peerseal_refusal``: the `PeerRefusal` of a problem document of the callee, or None.
    For type checkers `refusal_of` returns it.
    """

    if TYPE_CHECKING:  # requests' own annotations leave no room for ``ctx``; its methods hand it on to `request`
        delete: "_Verb"
        get: "_Verb"
        head: "_Verb"
        options: "_Verb"
        patch: "_Verb"
        post: "_Verb"
        put: "_Verb"

    def __init__(self, signer: Signer, audience: str, base_url: str, **options: Unpack[PeerSessionOptions]) -> None:
        super().__init__()
        ctx, circuits = options.pop("ctx", None), options.pop("circuits", None)
        self._options = SessionOptions.of(**options)
        self._origin, self._ctx = Origin(base_url), RequestCtx(ctx)
        self._sent_back: WeakSet[requests.PreparedRequest] = WeakSet()
        adapter = SigningAdapter(signer, audience, self._origin, self._options, circuits or Circuits(), self._ctx)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def request(
        self, method: str, url: str | bytes, *args: Any, ctx: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> requests.Response:
        """As Session's; ``ctx`` is signed with the request. Raises UnsignableRequest if ``ctx`` does not fit a token
        or the request is to another origin."""
        with self._ctx.giving(ctx):
            return super().request(method, url, *args, **kwargs)

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """As Session's, with the URL below the base URL, and without credentials of .netrc: it may name every host."""
        ctx = self._ctx.take()
        url = request.url.decode("utf-8") if isinstance(request.url, bytes) else str(request.url)
        request = copy.copy(request)
        request.url = self._origin.resolve(url)
        if request.auth is None and self.auth is None:
            request.auth = _from_url
        prepared = super().prepare_request(request)
        if request.url != url and not self._origin.holds(prepared.url or ""):
            raise UnsignableRequest("the path leads out of the base URL: expected one below it")
        if ctx is not None:
            if self._origin.target(prepared.url or "") is None:
                raise UnsignableRequest("ctx is signed, and requests to another origin are not: call it without ctx")
            self._ctx.keep(prepared, ctx)
        return prepared

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """As Session's, with the default timeout and the deadline, and with a body that can be sent more than once."""
        if request in self._sent_back:
            raise UnsignableRequest("another origin redirects to this service: such a request is not signed")
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._options.default_timeout
        if self._origin.target(request.url or "") is not None:
            settle_body(request, buffer=self._options.buffer, max_buffer=self._options.max_buffer)
        with no_longer_than(self._options.seconds_per_call):  # redirects call this again, within the same deadline
            try:
                response = super().send(request, **kwargs)
            except requests.ConnectionError as error:
                if time_left() > 0 or not is_silence(cause_of(error)):
                    raise
                raise requests.ReadTimeout(*error.args, request=request) from error
        vars(response).setdefault(REFUSAL, None)  # of another origin, which refuses nothing in the callee's name
        return response

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Credentials of a redirect. A redirect from another origin to the callee is not followed: that origin would
        choose what this session signs. A redirect to another origin carries no password of .netrc."""
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
            _ = urlsplit(target or "").port  # requests reads it without handling the error
        except ValueError as error:
            raise requests.exceptions.InvalidURL(f"a Location that is no URL: {error}", response=resp) from error
        return target

    def rebuild_proxies(self, prepared_request: requests.PreparedRequest, proxies: Any) -> dict[str, str]:
        """As Session's, but ``NO_PROXY`` applies to redirects too: Session keeps the environment's proxy for the first
        URL."""
        found = getproxies().values() if self.trust_env else ()
        given = {scheme: proxy for scheme, proxy in (proxies or {}).items() if proxy not in found}
        return super().rebuild_proxies(prepared_request, given)


def _from_url(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An `auth` that uses the user name and password in the URL. Without an `auth`, requests would read .netrc."""
    user, password = get_auth_from_url(str(request.url))
    return HTTPBasicAuth(user, password)(request) if user or password else request
