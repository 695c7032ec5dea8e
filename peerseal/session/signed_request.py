"""A request of `requests` that is signed when its headers are read: for programs that have a session of their own and
change a request after its authentication, as HTTPie does."""

from collections.abc import Callable
from typing import Final

import requests
from requests.auth import AuthBase
from requests.structures import CaseInsensitiveDict

from peerseal.errors import UnsignableRequest
from peerseal.protocol.names import check_name_or_id
from peerseal.session.body import settle_body
from peerseal.session.options import MAX_BUFFER
from peerseal.session.origin import Origin, origin_url
from peerseal.session.signing import BOUND, AttemptSigner, Signer
from peerseal.session.signing_adapter import sign_attempt
from peerseal.verify.transaction import TRANSACTION_HEADER

_AUTHORIZATION: Final = "Authorization"


class RequestSigner(AuthBase):
    """The authentication of one request to the service ``audience``, and of its redirects.

    A redirect within the origin of the first request gets a token of its own. A redirect to another origin gets none;
    a redirect from there to the first origin raises UnsignableRequest, since the other origin would choose what is
    signed. ``signer`` is called once, for the identity that signs.
    """

    def __init__(self, audience: str, signer: Callable[[], Signer]) -> None:
        self._audience = audience
        self._identify = signer
        self._token: str | bytes | None = None
        self._left = False

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Reads the body into memory, and makes the request one that signs itself. Raises UnsignableRequest,
        ConfigurationError or InvalidName, or as ``signer``."""
        if _AUTHORIZATION in request.headers:
            raise UnsignableRequest("the request has a value of its own for Authorization, where the token goes")
        if "Transfer-Encoding" in request.headers:
            raise UnsignableRequest("a signed request is sent with its length, not in chunks: leave out --chunked")
        settle_body(request, buffer=True, max_buffer=MAX_BUFFER)
        check_name_or_id(self._audience)
        self._origin = Origin(origin_url(request.url or ""))
        self._signer = AttemptSigner(self._identify(), self._audience)
        request.url = self.spelled(request.url or "")
        return self.signing(request)

    def signing(self, request: requests.PreparedRequest, **members: object) -> requests.PreparedRequest:
        """The same request, which signs itself from now on. Libraries hold it already, so its class changes."""
        request.__class__ = SignedRequest
        request.__dict__.update(signer=self, **members)
        return request

    def spelled(self, url: str) -> str:
        """The URL in the one spelling that is signed and sent, if it belongs to the origin."""
        target = self._origin.target(url)
        return url if target is None else self._origin.url + target

    def sign(self, attempt: requests.PreparedRequest) -> None:
        """Put a new token into the headers, or remove the old one from a request to another origin."""
        target = self._origin.target(attempt.url or "")
        if target is None:
            self._left = True
            attempt.headers.pop(TRANSACTION_HEADER, None)
            if self._token is not None and attempt.headers.get(_AUTHORIZATION) == self._token:
                del attempt.headers[_AUTHORIZATION]
            return
        if self._left:
            raise UnsignableRequest("another origin redirects to this service: such a request is not signed")
        if attempt.url != self._origin.url + target:
            raise UnsignableRequest("clients and proxies change this path on the way: leave out --path-as-is")
        attempt.headers.pop(_AUTHORIZATION, None)  # the last token, or a value of .netrc
        sign_attempt(self._signer, attempt, target)
        self._token = attempt.headers[_AUTHORIZATION]


class SignedRequest(requests.PreparedRequest):
    """A request whose headers hold a token for its present method, URL, body and bound headers."""

    signer: RequestSigner
    signed: tuple[object, ...] | None = None
    """The content for which there is a token in the headers."""
    redirected = False
    """Whether the URL is a Location, in any spelling."""

    @property
    def headers(self) -> CaseInsensitiveDict[str | bytes]:
        """The headers, signed again if the request has changed."""
        headers: CaseInsensitiveDict[str | bytes] = self.__dict__["headers"]
        if self.redirected:
            self.url, self.redirected = self.signer.spelled(self.url or ""), False
        if self.signed != self._content(headers):
            attempt = requests.PreparedRequest()
            attempt.method, attempt.url, attempt.headers, attempt.body = self.method, self.url, headers, self.body
            self.signer.sign(attempt)
            self.signed = self._content(headers)
        return headers

    @headers.setter
    def headers(self, headers: CaseInsensitiveDict[str | bytes]) -> None:
        self.__dict__["headers"] = headers

    def _content(self, headers: CaseInsensitiveDict[str | bytes]) -> tuple[object, ...]:
        """What the token is for, and the token, which .netrc may have replaced."""
        return (self.method, self.url, self.body, *(headers.get(name) for name in (*BOUND, _AUTHORIZATION)))

    def copy(self) -> requests.PreparedRequest:
        """A copy, such as requests makes for a redirect, with a token of its own."""
        return self.signer.signing(super().copy(), redirected=True)
