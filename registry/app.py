"""The composition root: the use cases, and the routes that call them."""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from flask import Flask, Response, request

from registry.console.install import install_console
from registry.services.registry import Registry
from registry.settings import Settings
from registry.storage.engine import connection_counts
from registry.web.limiting import limit_refusals
from registry.web.metrics import CACHES, DATABASE, WAITING_LIMIT, WORKERS, note, timed
from registry.web.problems import answer_errors
from registry.web.published import SECURITY, Published, WarmAnswers
from registry.web.routes import BLUEPRINTS
from registry.web.tracing import continuing
from registry.web.wire import EXTENSION, WRITING, ThumbprintConverter, TokenIdConverter, registry

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def watching(app: Flask) -> Flask:
    """The application for a server: each process watches the ledger, and has witnesses cosign it, from its first
    request on."""
    use_cases: Registry = app.extensions[EXTENSION]
    watch, cosigning = use_cases.watch, use_cases.cosigning
    application = app.wsgi_app

    def watched(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        watch.start()
        cosigning.start()
        return application(environ, start_response)

    app.wsgi_app = watched  # type: ignore[method-assign]
    return app


def create_app(settings: Settings, clock: Callable[[], float] = time.time) -> Flask:
    """The registry as a WSGI application. It connects to its database at the first request. So it starts while the
    database is down, and may be made before a fork.

    ``clock`` returns seconds since the epoch. Raises ConfigurationError where a key file is missing.
    """
    app = Flask("registry", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.limits.body + 1  # see `registry.web.wire.body`
    app.extensions[EXTENSION] = use_cases = Registry(settings, clock)
    app.url_map.merge_slashes = False  # routes match the path that was signed
    app.url_map.converters.update(thumbprint=ThumbprintConverter, token_id=TokenIdConverter)
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    app.after_request(_complete)
    if settings.console:
        install_console(app, settings)
    limit_refusals(app, settings)
    answer_errors(app)
    WORKERS.share_in(settings.home)
    CACHES.read_from(use_cases.cached_bytes)
    DATABASE.read_from(lambda: connection_counts(use_cases.store.engine))
    WAITING_LIMIT.set_function(lambda: use_cases.changes.waiting.most)
    routes = {rule.endpoint: rule.rule for rule in app.url_map.iter_rules()}
    app.wsgi_app = timed(continuing(WarmAnswers(app.wsgi_app, use_cases), routes))  # type: ignore[assignment, method-assign]
    return app


def _complete(response: Response) -> Response:
    """Completes an answer other than `Published`: adds the headers of every answer, and notes the request for the
    metrics. A `Published` has both."""
    if not isinstance(response, Published):
        for name, value in SECURITY:
            response.headers.setdefault(name, value)  # the console's pages have a policy of their own
        response.headers.setdefault("Cache-Control", "no-store")
        if request.method in WRITING and response.status_code < 300:
            registry().housekeeping.now_and_then()
        note(request.environ, request.endpoint, response.status_code)
    return response
