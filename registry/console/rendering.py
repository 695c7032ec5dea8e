"""Pages from templates: what all of them need, and how times, names and thumbprints look."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, current_app, g, render_template, request
from markupsafe import Markup
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from peerseal.errors import CodedError, MissingToken, PeersealError
from peerseal.protocol.encoding import canonical_json
from peerseal.runtime.times import utc
from registry.console.request import signed_in, typed_in_vain
from registry.services.access.operators import Role
from registry.web.problems import code_of, log_failure, log_refusal
from registry.web.wire import registry

POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{what}-src 'self'" for what in ("script", "style", "img", "connect")),
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
"""The pages' Content-Security-Policy: nothing inline, nothing from elsewhere, no frames."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_IN_VAIN = (MissingToken.code, "stale_form")
"""Errors after which a form cannot be sent again as it is."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the navigation: the endpoint of its page, its name, and the role that may see it.

    ``parts`` are further blueprints whose pages belong to it.
    """

    endpoint: str
    name: str
    needs: Role = Role.VIEWER
    parts: tuple[str, ...] = ()

    def has(self, endpoint: str | None) -> bool:
        """Whether the page of that endpoint is one of this place."""
        blueprints = (self.endpoint.rpartition(".")[0], *(f"console.{part}" for part in self.parts))
        return endpoint is not None and endpoint.rpartition(".")[0] in blueprints


def page(template: str, status: int = 200, **values: Any) -> Response:
    """A page. ``terminal`` among the values has the commands that do the same in a terminal."""
    return Response(
        render_template(f"console/{template}", **values), status, HEADERS, content_type="text/html; charset=utf-8"
    )


def link(endpoint: str, **values: Any) -> str:
    """The path of a page as the browser sees it: with the prefix that a proxy in front strips. A page has hundreds of
    links, so one adapter builds all of a request: `flask.url_for` takes four times as long for each."""
    if "console_links" not in g:
        g.console_links = current_app.create_url_adapter(request)
    return f"{registry().settings.external_prefix}{g.console_links.build(endpoint, values)}"


def json_answer(value: Any) -> Response:
    """An answer for a script of a page."""
    return Response(canonical_json(value), headers=HEADERS, content_type="application/json")


def redirect(path: str) -> Response:
    """To a page of ours, after an act: 303, so that a reload does not act again."""
    return Response(status=303, headers={**HEADERS, "Location": path})


def time_text(seconds: float | None) -> str:
    """A time as ``2026-11-30 08:15:00Z``; a dash for none."""
    try:
        return "–" if seconds is None else utc(seconds)
    except (ValueError, OverflowError, OSError):  # an altered row has it, and no calendar
        return "–"


def time_element(seconds: float | None) -> str:
    """A time that a script shows in the reader's zone."""
    text = time_text(seconds)
    return text if text == "–" else Markup('<time datetime="{}">{}</time>').format(text.replace(" ", "T"), text)


def duration_text(seconds: float) -> str:
    """A duration in its two largest units, such as ``6 d 23 h``."""
    left, parts = int(abs(seconds)), list[str]()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2])


def by_text(by: Mapping[str, str]) -> str:
    """Who allowed a change, as the ledger names it."""
    names = {
        "join_token": "join token",
        "kid": "key",
        "oidc": "platform",
        "self": "the key itself",
        "local": "this host",
    }
    return ", ".join(f"{names.get(ground, ground)} {value}" for ground, value in by.items())


def error_page(error: Exception) -> Response:
    """An error as a page, with its code, cause and remedy; it is counted and logged as that of a program's call is."""
    if isinstance(error, PeersealError):
        status, code = error.status, error.code
        detail = error.detail if isinstance(error, CodedError) else str(error)
    elif isinstance(error, HTTPException):
        status, detail = error.code or 500, _detail(error)
        code = code_of(status)
    else:
        status, code, detail = 500, "internal_error", "the registry's log has the cause"
    expected = isinstance(error, PeersealError | HTTPException)
    request_id = log_refusal(status, code, detail, "") if expected else log_failure(error)
    title = HTTPStatus(status).phrase
    typed = typed_in_vain() if code in _IN_VAIN else ()
    answer = page("error.html", status, title=title, code=code, detail=detail, request_id=request_id, typed=typed)
    for name, value in error.get_headers() if isinstance(error, HTTPException) else ():
        if name in ("Allow", "Retry-After"):
            answer.headers[name] = value
    return answer


def _detail(error: HTTPException) -> str:
    """What a person has to know; of a body that is too long, werkzeug tells neither the bound nor what to do."""
    if isinstance(error, RequestEntityTooLarge):
        sent, most = request.content_length, registry().settings.limits.body
        size = f"{sent:,} bytes" if sent else "too many bytes"
        remedy = "shorten what you typed, or run the command in a terminal on the registry's host"
        return f"the form has {size}, expected {most:,} at most: nothing was changed; {remedy}"
    return error.description or ""


def set_up(app: Flask, console: Blueprint, places: tuple[Place, ...]) -> None:
    """Gives the templates what they need."""
    for name, function in (
        ("time", time_element),
        ("time_text", time_text),
        ("duration", duration_text),
        ("by", by_text),
    ):
        app.jinja_env.filters[name] = function

    @console.app_context_processor  # a path or method without a route is of no blueprint, and its page needs them too
    def known() -> dict[str, object]:
        session = signed_in()
        role = session.operator.role if session else None
        issuer = registry().settings.operator_issuer
        return {
            "link": link,
            "by_issuer": issuer and urlsplit(issuer.issuer).netloc,
            "new_form": lambda: secrets.token_urlsafe(12),
            "session": session,
            "domain": registry().authority.in_force().domain if session else None,
            "places": [place for place in places if role is not None and place.needs <= role],
            "here": request.endpoint,
            "may": lambda needs: role is not None and Role.of(needs) <= role,
            "now": registry().clock(),
        }
