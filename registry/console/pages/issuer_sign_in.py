"""Signing in at the operators' OIDC issuer, and coming back from it.

The browser comes back by a link of another site, which carries no ``SameSite=Strict`` cookie. A second cookie, ``Lax``
and for this path alone, therefore binds the attempt to the browser for ten minutes. The page at the end leads on from
our own site, so the browser sends the session's cookie from there on.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping

from flask import Blueprint, Response, current_app, request
from itsdangerous import BadSignature, URLSafeSerializer, want_bytes

from peerseal.errors import TrustUnavailable
from registry.console.rendering import link, page
from registry.console.request import begin as begin_session
from registry.console.request import end, needs_https, placed, take_wanted
from registry.domain.errors import NotFound, OperatorRefused, RoleRefused
from registry.services.access.console_sessions import SIGN_IN_LASTS
from registry.services.access.issuer_sign_in import Attempt, IssuerSignIn
from registry.web.problems import log_refusal
from registry.web.wire import is_navigation, registry

blueprint = Blueprint("issuer_sign_in", __name__)

COOKIE = "peerseal-console-sign-in"
_PURPOSE = "console sign-in"


@blueprint.post("/sign-in/oidc")
def begin() -> Response:
    """Leads to the issuer: by a page, since ``form-action`` in our policy also forbids redirects to another site. A
    session of before ends here, where its cookie is sent."""
    secret, until = secrets.token_urlsafe(32), int(registry().clock()) + SIGN_IN_LASTS
    try:
        address = _issuer().address(_attempt(secret))
    except TrustUnavailable as error:
        log_refusal(error.status, error.code, str(error), "")
        return page("sign_in.html", error.status, issuer_down=True)
    wanted = take_wanted()
    end()
    answer = page("issuer_leave.html", address=address)
    value = want_bytes(_serializer().dumps({"secret": secret, "until": until, "wanted": wanted})).decode("ascii")
    return _with_cookie(answer, value, SIGN_IN_LASTS)


@blueprint.get("/sign-in/oidc/callback")
def finish() -> Response:
    """Signs in as the person whom the issuer names. An attempt counts once, whatever comes of it; an answer that is of
    no attempt of this browser leaves its attempt as it is."""
    try:
        attempt, wanted = _begun()
    except OperatorRefused as error:
        return _refused(error)
    try:
        return _forget(_finished(attempt, wanted))
    except (TrustUnavailable, RoleRefused, OperatorRefused) as error:
        return _forget(_refused(error, wanted))


def _finished(attempt: Attempt, wanted: str | None) -> Response:
    """The page after the sign-in. Raises OperatorRefused, RoleRefused or TrustUnavailable."""
    session = registry().console_sessions.begin_as(*_issuer().person(attempt, _parameters()))
    begin_session(session)
    return page("issuer_arrival.html", address=wanted or link("console.overview.show"))


def _refused(error: TrustUnavailable | RoleRefused | OperatorRefused, wanted: str | None = None) -> Response:
    """A page that says why in general; the log has the details. It has no form: that would set a session's cookie, in
    the place of one that the browser kept back."""
    log_refusal(error.status, error.code, str(error), "")
    return page("issuer_refused.html", error.status, why=error.code, address=wanted or link("console.sign_in.show"))


def _begun() -> tuple[Attempt, str | None]:
    """The attempt that this browser began, and the page that was asked for before. Raises OperatorRefused."""
    if not is_navigation():
        raise OperatorRefused("a part of a page asks, such as a picture: the issuer sends the browser itself")
    try:
        value: Mapping[str, str | int | None] = _serializer().loads(request.cookies.get(_cookie()[0], ""))
    except BadSignature as error:
        raise OperatorRefused("this browser began no sign-in at the issuer") from error
    secret, until, wanted = str(value["secret"]), int(value["until"] or 0), value["wanted"]
    if registry().clock() >= until:
        raise OperatorRefused("the sign-in at the issuer took too long")
    attempt = _attempt(secret)
    if not attempt.is_answered_by(request.args.get("state", "")):
        raise OperatorRefused("the issuer's answer is not of the sign-in that this browser began")
    if not registry().console_sessions.claim_form(f"sign-in {hashlib.sha256(secret.encode()).hexdigest()}"):
        raise OperatorRefused("the sign-in was finished before")
    return attempt, None if wanted is None else str(wanted)


def _parameters() -> Mapping[str, str]:
    """The parameters of the issuer's answer. Raises OperatorRefused for one that is there twice."""
    given = {name: request.args.getlist(name) for name in request.args}
    if any(len(values) > 1 for values in given.values()):
        raise OperatorRefused("the issuer's answer has a parameter twice")
    return {name: values[0] for name, values in given.items()}


def _attempt(secret: str) -> Attempt:
    """What the attempt sends to the issuer, derived from its secret: the cookie holds neither verifier nor nonce."""
    state, nonce, verifier = (_derived(f"{part} {secret}") for part in ("state", "nonce", "verifier"))
    return Attempt(state, nonce, verifier)


def _derived(text: str) -> str:
    return hmac.digest(_key(), f"{_PURPOSE} {text}".encode(), hashlib.sha256).hex()


def _serializer() -> URLSafeSerializer:
    return URLSafeSerializer(_key(), salt=_PURPOSE, signer_kwargs={"digest_method": hashlib.sha256})


def _key() -> bytes:
    """The key of the console's cookies, the same at each node."""
    return want_bytes(current_app.secret_key or b"")


def _issuer() -> IssuerSignIn:
    """Raises NotFound where no issuer is set."""
    found = registry().issuer_sign_in
    if found is None:
        raise NotFound("not_found")
    return found


def _forget(answer: Response) -> Response:
    return _with_cookie(answer, "", 0)


def _with_cookie(answer: Response, value: str, seconds: int) -> Response:
    """Sets the cookie of the attempt, for so many seconds; 0 removes it."""
    name, path = _cookie()
    answer.set_cookie(name, value, seconds, path=path, secure=needs_https(), httponly=True, samesite="Lax")
    return answer


def _cookie() -> tuple[str, str]:
    """The name and the path of that cookie."""
    return placed(COOKIE, link("console.issuer_sign_in.begin"))
