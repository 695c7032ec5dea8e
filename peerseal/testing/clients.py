"""Test clients of web frameworks whose calls are signed: of Flask, Django, Starlette and FastAPI, and of httpx."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote, unquote_to_bytes

from peerseal.errors import ConfigurationError
from peerseal.identity.identity import Identity
from peerseal.protocol.plain import kind_of
from peerseal.protocol.tokens.request import ALWAYS_BOUND
from peerseal.verify.context import current_transaction
from peerseal.verify.transaction import TRANSACTION_HEADER
from peerseal.wsgi_environ import EnvironHeaders, environ_key, read_body

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

C = TypeVar("C")

_AUTHORIZATION = "authorization"
_BOUND = (*ALWAYS_BOUND, TRANSACTION_HEADER)
_SIGNED = "peerseal.signed"  # in the extensions of an httpx request, which its redirects share
_UNESCAPED = "/:@!$&'()*+,;=-._~"  # RFC 3986 section 3.3


def sign_calls(client: C, caller: Identity, audience: str) -> C:
    """The same test client. From now on it signs each call by ``caller`` for ``audience``, a service's name or id. Each
    redirect that it follows gets a token of its own. A call carries the `peerseal.current_transaction`, if there is
    one. A call with an Authorization header of its own is sent as it is.

    ``client`` is a test client of Flask or Werkzeug, one of Starlette or FastAPI, an httpx Client or AsyncClient, or
    Django's Client or RequestFactory. Any other is a ConfigurationError. For tests only: it signs calls to any host.
    """
    signer = _Signer(caller, audience)
    for module, name, sign in _KINDS:
        kind = getattr(sys.modules.get(module), name, None)  # what is not imported has no instance
        if kind is not None and isinstance(client, kind):
            sign(client, signer)
            return client
    raise ConfigurationError(
        f"the test client is {kind_of(client)}; expected one of Flask, Starlette, FastAPI, httpx or Django (not async)"
    )


class SignedClient(Protocol):
    """What the fixture ``signed_client`` gives: `sign_calls`, where ``caller`` may be the name of a service."""

    def __call__(self, client: C, caller: str | Identity, audience: str) -> C:
        """The same client, whose calls are signed."""


@dataclass(frozen=True, slots=True)
class _Signer:
    caller: Identity
    audience: str

    def headers(
        self, method: str, target: str, body: Callable[[], bytes], headers: Mapping[str, str]
    ) -> dict[str, str]:
        """The headers to add to a request. ``headers`` are its own, by lower-case name."""
        if _AUTHORIZATION in headers:
            return {}
        transaction = current_transaction()
        carried = {} if transaction is None else {TRANSACTION_HEADER: transaction.carry()}
        found = {name: headers.get(name) or carried.get(name) for name in _BOUND}
        bound = {name: value for name, value in found.items() if value}
        token = self.caller.sign_request(self.audience, method=method, target=target, body=body(), headers=bound)
        return {**carried, **bound, _AUTHORIZATION: f"Bearer {token}"}

    def environ(self, environ: "WSGIEnvironment") -> "WSGIEnvironment":
        """A copy of the environ with these headers, as it is sent. Its body can be read again."""
        signed = _as_sent(environ)
        method, target = signed["REQUEST_METHOD"], signed["REQUEST_URI"]
        added = self.headers(method, target, lambda: read_body(signed), EnvironHeaders(environ))
        return signed | {environ_key(name): value for name, value in added.items()}


def _as_sent(environ: "WSGIEnvironment") -> "WSGIEnvironment":
    """A copy of the environ, with the path from a slash on, and the target as clients send it: in ASCII. Flask's test
    client keeps how a path was written (``%2F``), without the prefix in SCRIPT_NAME. Django's does not keep it."""
    path = _from_slash(environ.get("PATH_INFO", ""))
    written = _from_slash(_escaped(environ.get("REQUEST_URI", "").partition("?")[0], "%"))
    same = unquote_to_bytes(written) == path.encode("latin-1")
    target = _escaped(environ.get("SCRIPT_NAME", "")) + (written if same else _escaped(path))
    if query := environ.get("QUERY_STRING"):
        target = f"{target}?{_escaped(query, '?%')}"
    return {**environ, "PATH_INFO": path, "REQUEST_URI": target, "RAW_URI": target}


def _from_slash(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def _escaped(text: str, more: str = "") -> str:
    """A text of WSGI (bytes as latin-1) in which all but the characters of a path, and ``more``, is escaped."""
    return quote(text.encode("latin-1"), safe=_UNESCAPED + more)


class _SigningApplication:
    """A WSGI application that signs each request on the way to ``application``. Its attributes are those of
    ``application``, which Flask's test client reads."""

    def __init__(self, application: "WSGIApplication", signer: _Signer) -> None:
        self._application = application
        self._signer = signer

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        return self._application(self._signer.environ(environ), start_response)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._application, name)


def _sign_werkzeug(client: Any, signer: _Signer) -> None:
    client.application = _SigningApplication(client.application, signer)


def _sign_django(client: Any, signer: _Signer) -> None:
    """Django's test client gives the application an environ without the raw target, which `peerseal.wsgi` needs."""
    send = client.request

    def request(**environ: Any) -> Any:
        whole = {"SERVER_PROTOCOL": "HTTP/1.1", **client.defaults, **environ}
        return send(**signer.environ(whole))

    client.request = request


def _sign_httpx(client: Any, signer: _Signer) -> None:
    def sign(request: Any) -> None:
        request.read()
        _sign_request(request, signer)

    client.event_hooks["request"].append(sign)


def _sign_async_httpx(client: Any, signer: _Signer) -> None:
    async def sign(request: Any) -> None:
        await request.aread()
        _sign_request(request, signer)

    client.event_hooks["request"].append(sign)


def _sign_request(request: Any, signer: _Signer) -> None:
    if request.extensions.get(_SIGNED):
        request.headers.pop(_AUTHORIZATION, None)  # httpx removes it for another host
    target = request.url.raw_path.decode("ascii")
    added = signer.headers(request.method, target, lambda: request.content, request.headers)
    request.headers.update(added)
    request.extensions[_SIGNED] = bool(added)


def _refuse_async(client: object, _: _Signer) -> None:
    raise ConfigurationError(f"{kind_of(client)} cannot be signed; use Django's Client, which calls async views too")


_KINDS: tuple[tuple[str, str, Callable[[Any, _Signer], None]], ...] = (
    ("werkzeug.test", "Client", _sign_werkzeug),
    ("httpx", "Client", _sign_httpx),
    ("httpx", "AsyncClient", _sign_async_httpx),
    ("httpx2", "Client", _sign_httpx),
    ("httpx2", "AsyncClient", _sign_async_httpx),
    ("django.test", "AsyncRequestFactory", _refuse_async),
    ("django.test", "RequestFactory", _sign_django),
)
"""Modules, their classes, and what signs the calls of their instances. Subclasses come first."""
