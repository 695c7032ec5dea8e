"""Flask: every route closed to all but proven, allowed callers.

::

    auth = PeerAuth(app, identity, allow={"client-service": {"profiles:read"}})

    @app.get("/profiles/<id>")
    @auth.require(scope="profiles:read")
    def profile(id):
        return {"caller": current_peer.service}

One check runs as soon as Flask has routed the request. It runs before receivers of the signal ``request_started``,
URL value preprocessors and ``before_request`` functions of the application and its blueprints. It also runs before a
body is parsed, and before a 404, a 405 or a redirect to another spelling of the path. Only what `PeerAuth.public`
marks is open. Earlier than the check run WSGI middleware, the conversion of path parameters (``to_python`` of URL
converters) and the opening of the session (docs/reference/servers.md), which must not tell a stranger anything. The
view, teardown functions and streams run for the request's transaction; between requests the thread has none.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, Unpack, cast

from peerseal.errors import ConfigurationError, PeersealError
from peerseal.refusals import (
    ANY_ALLOWED,
    PUBLIC,
    REFUSALS,
    Need,
    PeerAuthOptions,
    Record,
    check_need,
    check_needed_scope,
    check_options,
    lacking,
    refusal_answer,
)
from peerseal.runtime.extras import missing
from peerseal.runtime.options import check_callable, check_is
from peerseal.signed_responses import SigningApplication
from peerseal.verify.context import begin, carrying, current_transaction, enter_request, leave_request
from peerseal.verify.request import Peer
from peerseal.wsgi import PEER, WsgiGate
from peerseal.wsgi_environ import (
    METHOD_KEY,
    REQUEST_ID_KEY,
    TRACEPARENT_KEY,
    PiecesWithin,
    WholeBody,
    telling,
    within_request,
)

try:
    from flask import Flask, Request, Response, current_app, request
    from werkzeug.local import LocalProxy
except ModuleNotFoundError as error:
    raise missing(error, "flask") from error

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from peerseal.identity.identity import Identity

_EXTENSION: Final = "peerseal"
_MARK: Final = "__peerseal__"
_SERVED: Final = "peerseal.served"
_WHOLE: Final = "peerseal.whole"
_BEFORE: Final = "peerseal.before"
_CHECKED: Final = "_peerseal_checked"  # of a request object and not its environ, which a view may copy

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")


class PeerAuth:
    """Closes a Flask application to all but the callers in ``allow``.

    ``allow`` maps callers (short names, service ids or ``"*"``) to their scopes; by default no caller is allowed.
    ``header`` names the request header with ``Bearer`` and the token, by default Authorization. ``max_body`` is the
    longest body that is read, in bytes, by default 16 MiB. ``external_prefix`` is the path that a proxy in front
    strips; the identity's by default. With ``report_only`` a call that would be refused is logged, counted and served,
    with `current_peer` unbound. ``replay`` is the replay guard, by default the identity's. ``verifier`` replaces the
    one that is made of the identity, ``allow`` and ``replay``. ``audit`` turns the audit of accepted calls on or off,
    the identity's by default; ``on_verified`` is called with the `peerseal.Accepted` of each (docs/how-to/audit.md).

    ``sign_responses`` signs the answers to verified callers (docs/how-to/signed-responses.md): True signs all of them,
    ``"on_request"`` those for which the caller asks. ``bind_response_headers`` names headers to sign besides
    those that are always signed, such as content-type and etag. An answer is held in memory until its end, up to
    ``max_signed_body`` bytes, by default 16 MiB; a longer one, and a stream of events, is sent unsigned. Put middleware
    that changes answers in before this, so that it runs before the answer is signed.

    Nothing is fetched here or in `init_app`, and only the replay guard's folder is opened: both may come before a fork.
    """

    def __init__(
        self,
        app: Flask | None = None,
        identity: "Identity | None" = None,
        **options: Unpack[PeerAuthOptions],
    ) -> None:
        check_options(identity, **options)
        self._identity = identity
        self._options = options
        self._record = Record()
        if app is not None:
            self.init_app(app)

    def init_app(
        self,
        app: Flask,
        identity: "Identity | None" = None,
        *,
        allow: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        """Close all present and future routes of ``app``, and the paths without a route.

        ``identity`` and ``allow`` replace those of the constructor. Raises ConfigurationError where there
        is neither an identity nor a verifier, or the application has a PeerAuth already.
        """
        check_is("app", app, Flask, "a Flask application")
        if _EXTENSION in app.extensions:
            raise ConfigurationError("this application has a PeerAuth already")
        options = self._options if allow is None else self._options | {"allow": allow}
        gate = _FlaskGate(app, identity or self._identity, self._record, **options)
        app.extensions[_EXTENSION] = gate
        _install(app, gate)

    def require(self, *, scope: str, transaction: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """A decorator: the caller needs ``scope`` for this view. Several decorators need each of their scopes. With
        ``transaction`` the call must be made for a user: then there is a `peerseal.current_transaction`.

        It marks the function, so that the check refuses before the body is parsed, and works above and below
        ``@app.route``. Where another decorator hides the mark, the wrapper still refuses.
        """

        check_need(Need(scope, transaction), "require")
        check_needed_scope(scope, "require")

        def decorate(view: Callable[P, R]) -> Callable[P, R]:
            check_callable("what require marks", view)
            is_async = iscoroutinefunction(view)

            @functools.wraps(view)
            def checked(*args: P.args, **kwargs: P.kwargs) -> R:
                _need_scope(scope, transaction)
                call = current_app.ensure_sync(view) if is_async else view
                return call(*args, **kwargs)

            need = Need(scope=scope, transaction=transaction)
            with suppress(AttributeError):  # a bound method takes no mark, and was not registered before
                _set_mark(view, need)
            _set_mark(checked, need)
            return checked

        return decorate

    def public(self, view: F) -> F:
        """A decorator that opens a view to all calls. No caller is verified there, and `current_peer` is unbound.

        It marks the function: each of its routes is open. Raises ConfigurationError for a view that `require` marks.
        """
        try:
            _set_mark(view, PUBLIC)
        except AttributeError as error:
            raise ConfigurationError(f"{view!r} cannot be marked; make it a function") from error
        return view

    @property
    def refusals(self) -> Counter[str]:
        """How many calls were refused (or, with ``report_only``, would have been) in this process, by code: a copy."""
        return self._record.counts


class _FlaskGate(WsgiGate):
    """The check before one Flask application."""

    def __init__(
        self, app: Flask, identity: "Identity | None", record: Record, **options: Unpack[PeerAuthOptions]
    ) -> None:
        super().__init__(identity, record, **options)
        self._views = app.view_functions

    def check(self, current: Request) -> Response | None:
        """Done before the rest of a request: the refusal, or None.

        It answers itself instead of raising: the error handlers of blueprints come before the application's, and one
        for ``Exception`` would turn the refusal into another answer.
        """
        environ = current.environ
        environ.pop(PEER, None)
        if environ.get(_SERVED) != id(environ):
            environ.setdefault(_BEFORE, current_transaction())
        begin(None)
        need = _need_of_view(self._views, current)
        if need.public:
            return None
        refused = self.admit(environ, need, functools.partial(_pattern, current))
        return None if refused is None else self.refuse(refused)

    def refuse(self, error: PeersealError) -> Response:
        """Log, count and answer. Also the error handler for refusals that views raise."""
        answer = refusal_answer(error, self.logged(request.environ, error))
        return Response(answer.body, answer.status, headers=answer.headers)

    def report(self, error: PeersealError) -> None:
        """Log and count what would have been refused."""
        self.logged(request.environ, error, reported=True)


def _install(app: Flask, gate: _FlaskGate) -> None:
    """Install the check before all else of a request, and the end of its transaction after all else."""
    _check_first(app, gate)
    _keep_users(app)
    _end_transactions(app)
    for refusal in REFUSALS:
        app.register_error_handler(refusal, gate.refuse)
    inner = app.wsgi_app
    plain = getattr(inner, "__func__", None) is Flask.wsgi_app  # no middleware, which may make another body
    served = _without_transaction(inner, plain)
    if gate.responses is not None:
        served = SigningApplication(served, gate.responses)
    app.wsgi_app = served  # type: ignore[assignment] # as Flask has middleware put in


def _check_first(app: Flask, gate: _FlaskGate) -> None:
    """Put the check before ``full_dispatch_request``, which begins with a signal, and before ``preprocess_request``,
    which an application may call itself for a context that it pushed. Flask passes no argument, or in later releases
    the context."""
    dispatch, preprocess, finalize = app.full_dispatch_request, app.preprocess_request, app.finalize_request

    @functools.wraps(dispatch)
    def checked_dispatch(*context: Any) -> Response:
        current = _current_request()
        refused = gate.check(current)
        if refused is not None:
            return cast("Callable[..., Response]", finalize)(*context, refused)
        vars(current)[_CHECKED] = True
        return dispatch(*context)

    @functools.wraps(preprocess)
    def checked_preprocess(*context: Any) -> Any:
        current = _current_request()
        checked = vars(current).pop(_CHECKED, False)  # for one round: a second one needs its own token
        refused = None if checked else gate.check(current)
        return preprocess(*context) if refused is None else refused

    app.full_dispatch_request = checked_dispatch  # type: ignore[method-assign]
    app.preprocess_request = checked_preprocess  # type: ignore[method-assign]


def _current_request() -> Request:
    """The request itself: each access through the proxy takes time."""
    current: Request = request._get_current_object()  # type: ignore[attr-defined]
    return current


def _keep_users(app: Flask) -> None:
    """Put `_keep_user` after ``process_response``, which runs the ``after_request`` functions. Applications may call it
    themselves for a context that they pushed."""
    process = app.process_response

    @functools.wraps(process)
    def keeping_process(*arguments: Any) -> Response:
        return _keep_user(process(*arguments), _current_request().environ)

    app.process_response = keeping_process  # type: ignore[assignment, method-assign]


def _keep_user(response: Response, environ: "WSGIEnvironment") -> Response:
    """A streamed body is made after the request, and for its transaction too: further calls of the stream are limited
    to the user's scopes. All ``after_request`` functions have seen the response."""
    environ[_WHOLE] = response.is_sequence
    if response.is_streamed and not response.direct_passthrough:
        peer: Peer | None = environ.get(PEER)
        if peer is not None and peer.transaction is not None:
            response.response = PiecesWithin(response.response, functools.partial(carrying, peer.transaction))
    return response


def _without_transaction(serve: "WSGIApplication", plain: bool) -> "WSGIApplication":
    """Each call of the application begins within its request and without a transaction. Afterwards the transaction
    before is current again, since a view may call the application too."""

    def serve_in_request(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        environ[_SERVED] = id(environ)  # a view may push a copy, which is not served
        before = enter_request(environ.get(REQUEST_ID_KEY), environ.get(TRACEPARENT_KEY), environ.get(METHOD_KEY))
        try:
            body = serve(environ, telling(before[-1], environ, start_response))
            whole = environ.pop(_WHOLE, False) and plain
            return WholeBody(body) if whole else within_request(body, environ)
        finally:
            leave_request(before)

    return serve_in_request


def _end_transactions(app: Flask) -> None:
    """For a request whose context an application pushed, and which was checked: its transaction ends with the context.
    A context that was left open ends while another request is served, whose transaction stays."""
    tear_down = app.do_teardown_request

    @functools.wraps(tear_down)
    def ending_tear_down(*arguments: Any) -> None:
        environ = _current_request().environ
        try:
            tear_down(*arguments)
        finally:
            if _BEFORE in environ:
                begin(environ.pop(_BEFORE))

    app.do_teardown_request = ending_tear_down  # type: ignore[assignment, method-assign]


def _set_mark(view: Any, need: Need) -> None:
    if isinstance(view, type):
        raise ConfigurationError("mark a class's methods, or put the mark into its `decorators`")
    marked = getattr(view, _MARK, None)
    if marked is not None and marked.public != need.public:
        raise ConfigurationError(f"{view!r} is marked as public and as needing a scope")
    setattr(view, _MARK, need)


def _pattern(current: Request) -> str | None:
    """The rule that the request was routed by, such as ``/profiles/<id>``; None where there is none."""
    return current.url_rule.rule if current.url_rule is not None else None


def _need_of_view(views: Mapping[str, Any], current: Request) -> Need:
    """The mark of the view that this request was routed to. A request without a route is not public."""
    rule = current.url_rule
    if rule is None:
        return ANY_ALLOWED
    view: Any = views.get(rule.endpoint)
    need: Need | None = getattr(view, _MARK, None)
    if hasattr(view, "view_class"):
        need = getattr(_method_of(view.view_class, current.method.lower()), _MARK, need)
    return need or ANY_ALLOWED


def _method_of(view_class: type, method: str) -> object:
    """The method of a flask.views.MethodView that handles this request, which may have a mark."""
    handler = getattr(view_class, method, None)
    return getattr(view_class, "get", None) if handler is None and method == "head" else handler


def _need_scope(scope: str, transaction: bool) -> None:
    """The check in the wrapper of a marked view."""
    peer: Peer | None = _current_request().environ.get(PEER)
    error = lacking(peer, scope, transaction)
    if error is None:
        return
    gate: _FlaskGate | None = current_app.extensions.get(_EXTENSION)
    if gate is None or not gate.report_only:
        raise error
    if peer is not None:  # else the check before the view has reported it
        gate.report(error)


def _find_peer() -> Peer:
    peer: Peer | None = _current_request().environ.get(PEER)
    if peer is None:
        raise RuntimeError("no verified caller: the route is public, or the check reports only")
    return peer


current_peer: Peer = LocalProxy(_find_peer)  # type: ignore[assignment]
"""The verified caller of the current request. Unbound (false, and a RuntimeError on use) where there is none.

It is kept with the request and not on ``flask.g``, which outlives a request where an application context is pushed
around it: the next request would have the peer of the one before.
"""
