"""``/``: leads to the console where it is on; else a short page says what this is."""

from functools import cache
from html import escape

from flask import Blueprint, Response

from registry.services.documents.answer_cache import PublicAnswer
from registry.web.published import published
from registry.web.routes.openapi import POLICY, STYLE, rendered
from registry.web.wire import registry

blueprint = Blueprint("front", __name__)


@blueprint.get("/")
def front() -> Response:
    """The page, or a redirection to the console."""
    settings = registry().settings
    if settings.console:
        return Response(status=302, headers={"Location": f"{settings.external_prefix}/console/"})
    response = published(_page(registry().authority.current().domain))
    response.headers = response.headers.copy()
    response.headers["Content-Security-Policy"] = POLICY
    return response


@cache
def _page(domain: str) -> PublicAnswer:
    """The links are relative: a proxy in front may strip a prefix."""
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(domain)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>The key registry of {escape(domain)}</h1>"
        "<p>Services publish their public keys here, and peers fetch them to see who calls. What is published is"
        " signed, and rests on an append-only ledger."
        '<ul><li><a href="docs">The HTTP interface</a>, for people<li><a href="openapi.json">The same for programs</a>'
        '<li><a href=".well-known/peerseal-registry">The keys of this registry</a>, signed by its root key'
        '<li><a href="ledger/checkpoint">The ledger’s newest checkpoint</a></ul>'
        "<p>Operators look at it in a browser where <code>REGISTRY_CONSOLE</code> is on, and else use"
        " <code>peerseal-registry</code>.</html>\n"
    )
    return rendered(page.encode("utf-8"), "text/html; charset=utf-8")
