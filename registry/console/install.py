"""Adds the console to the registry's application."""

from datetime import timedelta

from flask import Blueprint, Flask, Response, request
from werkzeug.exceptions import HTTPException

from peerseal.errors import PeersealError
from registry.console.pages import PAGES, PLACES, issuer_sign_in
from registry.console.rendering import error_page, link, page, redirect, set_up
from registry.console.request import (
    COOKIE,
    CSRF,
    ConsoleCookie,
    address,
    arrives_without_cookie,
    check_form,
    note_wanted,
    operator,
    signed_in,
)
from registry.services.setup.keyfiles import read_sealer
from registry.settings import Settings
from registry.web.problems import http_error
from registry.web.wire import WRITING

_BACK = "console.issuer_sign_in.finish"
_OPEN = frozenset(
    ("console.static", "console.sign_in.show", "console.sign_in.begin", "console.issuer_sign_in.begin", _BACK)
)
"""What strangers see."""


def install_console(app: Flask, settings: Settings) -> None:
    """Serves the console at ``/console``. Raises ConfigurationError where the sealing key is missing."""
    app.secret_key = read_sealer(settings.sealing_key_file).derived("console cookies")
    app.session_interface = ConsoleCookie()
    app.config.update(
        SESSION_COOKIE_NAME=COOKIE,
        SESSION_COOKIE_PATH=f"{settings.external_prefix}/console",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        PERMANENT_SESSION_LIFETIME=timedelta(hours=12),
        WTF_CSRF_CHECK_DEFAULT=False,  # programs' calls carry no cookie
        WTF_CSRF_SSL_STRICT=False,  # `check_form` looks at what proxies do not change
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session
    )
    CSRF.init_app(app)
    app.register_blueprint(_console(app, settings))
    for status in (404, 405):
        app.register_error_handler(status, _without_route)


def _console(app: Flask, settings: Settings) -> Blueprint:
    """A new blueprint for each application, since it carries functions of that application."""
    console = Blueprint("console", __name__, url_prefix="/console", template_folder="templates", static_folder="static")
    console.before_request(_admit)
    console.register_error_handler(PeersealError, error_page)
    console.register_error_handler(HTTPException, error_page)
    console.register_error_handler(Exception, error_page)
    for each in PAGES if settings.operator_issuer is None else (*PAGES, issuer_sign_in.blueprint):
        console.register_blueprint(each)
    console.add_url_rule("", view_func=_front)
    set_up(app, console, PLACES)
    return console


def _without_route(error: HTTPException) -> Response:
    """The answer where no route has the path or the method: Flask knows no blueprint then."""
    if not f"{request.path}/".startswith("/console/"):
        return http_error(error)
    try:
        signed_in()  # the page has the navigation of the operator
    except PeersealError as unavailable:
        return error_page(unavailable)
    return error_page(error)


def _front() -> Response:
    """The address without its last slash. Flask would lead to the Host that the caller names, without the prefix."""
    return redirect(link("console.overview.show"))


def _admit() -> Response | None:
    """Sends strangers to the sign-in, and checks each form before anything reads it."""
    if arrives_without_cookie() and request.endpoint not in ("console.static", _BACK):
        return page("arrival.html", address=address())  # without a fragment: with one the browser stays here
    if request.method in WRITING:
        check_form()
    if request.endpoint in _OPEN or signed_in() is not None:
        return None
    if request.method in WRITING:
        operator()  # raises: a form is not repeated after the sign-in
    note_wanted()
    return redirect(link("console.sign_in.show"))
