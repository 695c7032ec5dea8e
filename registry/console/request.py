"""Who asks: the operator who is signed in, by a cookie; and whether a form is one of ours."""

import logging
from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlsplit

from flask import Flask, current_app, flash, g, request, session
from flask.sessions import SecureCookieSessionInterface
from flask_wtf import CSRFProtect  # type: ignore[import-untyped]
from flask_wtf.csrf import CSRFError  # type: ignore[import-untyped]

from peerseal.errors import MissingToken
from peerseal.protocol.hosts import is_loopback_host
from registry.domain.errors import BadRequest, RoleRefused, StorageUnavailable
from registry.services.access.console_sessions import Session
from registry.services.access.operators import Operator, Role
from registry.web.wire import is_navigation, registry

log = logging.getLogger(__name__)

COOKIE = "peerseal-console"
CSRF = CSRFProtect()
_SECRET, _WANTED = "secret", "wanted"
_STALE = "this form is of an earlier sign-in in this browser: open its page again, and send it from there"
_NO_COOKIE = (
    "the browser sent no cookie with this form: allow cookies of this site, open the console with https unless it is "
    "on this host, and load the page again"
)
_TYPED = ("caller", "scopes", "policy", "settings", "service", "services", "why", "pin", "domain", "urls")
"""Fields with texts that a person typed, and no secrets."""
_LONGEST_WANTED = 1_000  # characters: browsers drop cookies of 4 KiB


class ConsoleCookie(SecureCookieSessionInterface):
    """The cookie of a browser: no script reads it, no other site sends it, and off loopback it needs https."""

    def get_cookie_secure(self, app: Flask) -> bool:
        """See SessionInterface."""
        return needs_https()

    def get_cookie_name(self, app: Flask) -> str:
        """See SessionInterface."""
        return placed(COOKIE, super().get_cookie_path(app))[0]

    def get_cookie_path(self, app: Flask) -> str:
        """See SessionInterface."""
        return placed(COOKIE, super().get_cookie_path(app))[1]


def needs_https() -> bool:
    """Whether browsers may send cookies over https alone: where the console's own URL has https, and off loopback. A
    proxy may ask with the address of this host; what it adds tells that it is there."""
    settings = registry().settings
    own = "" if settings.operator_issuer is None else settings.operator_issuer.console_url
    forwarded = any(name == "Forwarded" or name.startswith("X-Forwarded-") for name, _ in request.headers)
    return own.startswith("https:") or forwarded or not is_loopback_host(urlsplit(f"//{request.host}").hostname)


def placed(name: str, path: str) -> tuple[str, str]:
    """The name and the path of a cookie. With ``__Host-`` no other host of the domain can set it, and it is for the
    whole host; below a prefix, where the host has other programs, its path stays (RFC 6265bis section 4.1.3)."""
    if not needs_https():
        return name, path
    return (f"__Secure-{name}", path) if registry().settings.external_prefix else (f"__Host-{name}", "/")


def signed_in() -> Session | None:
    """The session of this request; None for a stranger."""
    if "console_session" not in g:
        g.console_session = None  # also where the database does not say: the page of that error asks again
        if secret := session.get(_SECRET):
            g.console_session = registry().console_sessions.find(secret)
    found: Session | None = g.console_session
    return found


def arrives_without_cookie() -> bool:
    """Whether a link of another site led here. The browser then keeps our cookie back, and would take a new one in its
    place: the page has to be asked for once more, from a page of ours (RFC 6265bis section 5.2)."""
    foreign = request.headers.get("Sec-Fetch-Site") == "cross-site" and request.method == "GET"
    return foreign and current_app.session_interface.get_cookie_name(current_app) not in request.cookies


def operator(needs: Role = Role.VIEWER) -> Operator:
    """The operator who asks. Raises MissingToken for a stranger, and RoleRefused for too low a role."""
    found = signed_in()
    if found is None:
        raise MissingToken("you are not signed in any more: sign in, and send the form again")
    if found.operator.role < needs:
        raise RoleRefused(f"this needs the role {needs.label}, and yours is {found.operator.role.label}")
    return found.operator


def act(needs: Role = Role.OPERATOR) -> Mapping[str, str]:
    """How the ledger names the operator who acts. Raises as `operator`."""
    return operator(needs).by


def begin(secret: str) -> None:
    """Signs the browser in. Nothing of the session before stays, so that no other can know the new one."""
    end()
    session[_SECRET] = secret


def end() -> None:
    """Signs the browser out. While the database takes no writes the session itself stays until its end, and the browser
    forgets it all the same."""
    secret = session.get(_SECRET)
    session.clear()
    g.console_session = None
    if secret:
        try:
            registry().console_sessions.end(secret)
        except StorageUnavailable as error:
            log.warning("a session of the console cannot be ended now: %s", error)


def address() -> str:
    """The path and the query that the browser asked for: with the prefix that a proxy in front strips."""
    query = request.query_string.decode("ascii", "replace")
    return registry().settings.external_prefix + quote(request.path) + (f"?{query}" if query else "")


def note_wanted() -> None:
    """Notes the page that was asked for, to show it after the sign-in. What a script asked for is no page."""
    if is_navigation():
        wanted = address()
        if len(wanted) <= _LONGEST_WANTED and wanted.isascii():
            session[_WANTED] = wanted


def take_wanted() -> str | None:
    """The path of the page that was asked for, if any. It stays in signed cookies, so no link can set it."""
    wanted: str | None = session.pop(_WANTED, None)
    return wanted


def check_form() -> None:
    """Passes a form that a page of ours sent in this session. Raises BadRequest."""
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if site != "same-origin":
        raise BadRequest("cross_site", f"a form of another site ({site:.20}): use the console's own page")
    try:
        CSRF.protect()
    except CSRFError as error:
        log.info("a form has no token of its session: %s", error.description)
        raise BadRequest("stale_form", _STALE if request.cookies else _NO_COOKIE) from error


def typed_in_vain() -> Sequence[tuple[str, str]]:
    """The names and texts of what a person typed into the form that is refused, for the person to copy them. Of a form
    that another site may have sent, nothing."""
    if request.headers.get("Sec-Fetch-Site") != "same-origin":
        return []
    return [(name, text) for name in _TYPED for text in request.form.getlist(name) if text.strip()]


def is_new_form() -> bool:
    """Whether the form is sent for the first time. A second click, or a reload of the answer, makes no second token:
    the next page says so. The form has a name of its own, in the field ``form``. Raises BadRequest for a form without
    one, and TrustUnavailable where the database takes no writes."""
    if not (name := field("form")):
        raise BadRequest("invalid_parameter", "the form has no name of its own: send it from the console's own page")
    is_new = registry().console_sessions.claim_form(name)
    if not is_new:
        flash("This form was sent before, and its answer was shown once. Send a new one if that is lost.", "notice")
    return is_new


def field(name: str, longest: int = 200) -> str:
    """A field of the form, without blanks around it; empty where it is missing. Raises BadRequest for a longer one."""
    text = request.form.get(name, "").strip()
    if len(text) > longest:
        raise BadRequest("invalid_parameter", f"{name} has more than {longest} characters")
    return text


def number_field(name: str) -> int:
    """A field that is a natural number. Raises BadRequest."""
    text = field(name, 15)
    if not (text.isascii() and text.isdigit()):
        raise BadRequest("invalid_parameter", f"{name} is {text!r}, expected a whole number")
    return int(text)
