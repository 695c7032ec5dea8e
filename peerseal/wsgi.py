"""WSGI: a whole application closed to all but proven, allowed callers: Django, Pyramid, Bottle, or a bare function.

::

    application = PeerAuth(
        get_wsgi_application(),
        identity,
        allow={"client-service": {"profiles:read"}},
        needs={"/profiles": Need("profiles:read"), "/healthz": PUBLIC},
    )

The check runs before the application sees any part of a request. With ``needs``, a path that it does not name is
always refused; without it, each path is open to each allowed caller. `peerseal.flask` checks with the same gate, and
reads the needs from the views.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Unpack

from peerseal.checked_call import CheckedCall, calls, current_peer, require_scope
from peerseal.errors import PeersealError
from peerseal.path_needs import Needs, PathNeeds
from peerseal.protocol.tokens.bearer import bearer_token
from peerseal.refusals import (
    ANY_ALLOWED,
    PUBLIC,
    REFUSALS,
    Gate,
    Need,
    PeerAuthOptions,
    Record,
    lacking_scope,
    lacking_user,
    refusal_answer,
)
from peerseal.runtime.options import check_callable
from peerseal.signed_responses import SigningApplication, prove, wanted_signing
from peerseal.verify.context import begin, carrying, current_trace, current_transaction, enter_request, leave_request
from peerseal.verify.context import within as within_trace
from peerseal.verify.request import Peer
from peerseal.wsgi_environ import MAX_BODY as MAX_BODY  # these names were in this module before
from peerseal.wsgi_environ import METHOD_KEY, TRACEPARENT_KEY, is_file, path_info, received_target, telling
from peerseal.wsgi_environ import REQUEST_ID_KEY as REQUEST_ID_KEY
from peerseal.wsgi_environ import EnvironHeaders as EnvironHeaders
from peerseal.wsgi_environ import PiecesWithin as PiecesWithin
from peerseal.wsgi_environ import WholeBody as WholeBody
from peerseal.wsgi_environ import environ_key as environ_key
from peerseal.wsgi_environ import read_body as read_body
from peerseal.wsgi_environ import within_request as within_request
from peerseal.wsgi_environ import wsgi_target as wsgi_target

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from peerseal.identity.identity import Identity

__all__ = ["ANY_ALLOWED", "PEER", "PUBLIC", "Need", "PeerAuth", "current_peer", "require_scope"]

PEER: Final = "peerseal.peer"
"""The key of the verified caller in an environ: a `peerseal.Peer`. It is missing where there is none."""


class WsgiGate(Gate):
    """The check of WSGI requests, which the adapters of all frameworks share."""

    def __init__(self, identity: "Identity | None", record: Record, **options: Unpack[PeerAuthOptions]) -> None:
        super().__init__(identity, record, **options)
        self._header_key = environ_key(self.header)

    def logged(self, environ: "WSGIEnvironment", error: PeersealError, *, reported: bool = False) -> str:
        """Log and count a refusal, or one that is only ``reported``. Returns the request id."""
        method, authorization = environ["REQUEST_METHOD"], environ.get(self._header_key)
        return self.refused(error, method, received_target(environ), authorization, reported=reported)

    def admit(self, environ: "WSGIEnvironment", need: Need, route: Callable[[], str | None]) -> PeersealError | None:
        """Verify the caller, who is in the environ afterwards, and begin the transaction. Gives the refusal, or None;
        also None where refusals are reported only. ``route`` gives the pattern of the route for the audit."""
        try:
            peer = environ[PEER] = self._verified(environ, need)
        except REFUSALS as error:
            if not self.report_only:
                return error
            self.logged(environ, error, reported=True)
        else:
            if peer.transaction is not None:
                begin(peer.transaction)
            self.audit.call(peer, scope=need.scope, method=environ["REQUEST_METHOD"], route=route)
        return None

    def _verified(self, environ: "WSGIEnvironment", need: Need) -> Peer:
        token, signing = bearer_token(environ.get(self._header_key)), wanted_signing(environ, self.responses)
        peer = self.verifier.verify(
            token,
            method=environ["REQUEST_METHOD"],
            target=wsgi_target(environ, self.external_prefix),
            body=partial(read_body, environ, self.max_body),
            headers=EnvironHeaders(environ),
            scope=need.scope if signing is None else None,  # a refusal that is signed spends the token first
        )
        if signing is not None:
            prove(environ, signing, token, peer)
            if error := lacking_scope(peer, need.scope):
                raise error
        if need.transaction and (error := lacking_user(peer)):
            raise error
        return peer


class PeerAuth:
    """Closes ``app`` to all but the callers in ``allow``. It is a WSGI application itself.

    ``needs`` says what each path needs, as in `peerseal.path_needs.PathNeeds`; the path is ``PATH_INFO``. The other
    options are those of `peerseal.flask.PeerAuth`. Nothing is fetched before the first request.

    The caller is `current_peer`, and ``environ["peerseal.peer"]``.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        identity: "Identity | None" = None,
        *,
        needs: Needs | None = None,
        **options: Unpack[PeerAuthOptions],
    ) -> None:
        check_callable("app", app)
        self._app = app
        self._needs = PathNeeds(needs)
        self._record = Record()
        self._gate = WsgiGate(identity, self._record, **options)
        signing = self._gate.responses
        self._answer = self._checked if signing is None else SigningApplication(self._checked, signing)

    @property
    def refusals(self) -> Counter[str]:
        """How many calls were refused (or, with ``report_only``, would have been) in this process, by code: a copy."""
        return self._record.counts

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """One request."""
        return self._answer(environ, start_response)

    def _checked(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        environ.pop(PEER, None)
        before = enter_request(environ.get(REQUEST_ID_KEY), environ.get(TRACEPARENT_KEY), environ.get(METHOD_KEY))
        call = _Call(environ, telling(before[-1], environ, start_response), self._gate)
        outer = calls.set(call)
        try:
            path = path_info(environ)
            need = self._needs.need(environ["REQUEST_METHOD"], path)
            if not need.public:
                refused = self._gate.admit(environ, need, partial(self._needs.covering, path))
                if refused is not None:
                    call.refuse(refused)
                    return call.answer(refused)
                call.peer = environ.get(PEER)
            return call.serve(self._app)
        finally:
            leave_request(before)
            calls.reset(outer)


class _Call(CheckedCall):
    """One request. The application's head is held until the first byte of its body, so that a handler, and a stream
    before its first piece, can refuse."""

    def __init__(self, environ: "WSGIEnvironment", start_response: "StartResponse", gate: WsgiGate) -> None:
        super().__init__(gate)
        self._wsgi_gate = gate
        self._environ = environ
        self._start_response = start_response
        self._head: tuple[Any, ...] | None = None

    def logged(self, error: PeersealError, *, reported: bool = False) -> str:
        """See CheckedCall."""
        return self._wsgi_gate.logged(self._environ, error, reported=reported)

    def serve(self, app: "WSGIApplication") -> Iterable[bytes]:
        """The application's answer; or the refusal, if a handler refused before the answer began. What the application
        would answer then is not sent: frameworks make a 500 of errors that they do not know."""
        try:
            body = self._begun(app(self._environ, self._start))
        except Exception as error:
            if self.refused is None and isinstance(error, REFUSALS):
                self.refuse(error)
            if self.began or self.refused is None:
                raise
            return self.answer(self.refused)
        if self.refused is not None and not self.began:
            getattr(body, "close", lambda: None)()
            return self.answer(self.refused)
        self._send_head()
        return body

    def answer(self, error: PeersealError) -> Iterable[bytes]:
        """The problem document of a refused request."""
        problem = refusal_answer(error, self.request_id)
        headers = [*problem.headers.items(), ("Content-Length", str(len(problem.body)))]
        self._start_response(f"{problem.status} {HTTPStatus(problem.status).phrase}", headers)
        return [problem.body]

    def _begun(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """The body, whose pieces are made within this call: servers ask for them after the application has returned. A
        list, and a file that the server sends itself, are returned as they are. The first piece is made at once."""
        if isinstance(body, list | tuple) or is_file(body, self._environ):
            return body
        pieces = PiecesWithin(body, self._within())
        if self.refused is not None:
            return pieces
        try:
            return _Resumed(pieces)
        except BaseException:
            pieces.close()
            raise

    def _within(self) -> Callable[[], Any]:
        trace, transaction = current_trace(), current_transaction()

        @contextmanager
        def within() -> Iterator[None]:
            outer = calls.set(self)
            try:
                with within_trace(trace), carrying(transaction):
                    yield
            finally:
                calls.reset(outer)

        return within

    def _start(self, *head: Any) -> Callable[[bytes], object]:
        """The application's ``start_response``."""
        if self.began:
            return self._start_response(*head)
        self._head = head
        return self._write

    def _write(self, data: bytes) -> object:
        """What an imperative application writes (PEP 3333); nothing of it is sent once a handler has refused."""
        if self.refused is not None and not self.began:
            return None
        if not self.began:
            self._send_head()
        return self._write_on(data)

    def _send_head(self) -> None:
        if self._head is not None and not self.began:
            self.began = True
            self._write_on = self._start_response(*self._head)


class _Resumed(Iterator[bytes]):
    """The pieces of a body whose first piece with a byte was made: some applications begin to answer, or refuse, only
    then."""

    def __init__(self, pieces: PiecesWithin) -> None:
        self._first: bytes | None = next(filter(None, pieces), None)
        self._pieces = pieces

    def __next__(self) -> bytes:
        first, self._first = self._first, None
        piece: bytes = next(self._pieces) if first is None else first
        return piece

    def close(self) -> None:
        """Close the body (PEP 3333)."""
        self._pieces.close()
