"""Signing in with an operator token, and out again, in this browser or everywhere."""

from flask import Blueprint, Response

from registry.console.rendering import link, page, redirect
from registry.console.request import begin as begin_session
from registry.console.request import end, field, operator, signed_in, take_wanted
from registry.domain.errors import OperatorRefused
from registry.web.problems import log_refusal
from registry.web.wire import registry

blueprint = Blueprint("sign_in", __name__)


@blueprint.get("/sign-in")
def show() -> Response:
    """The form."""
    if signed_in() is not None:
        return redirect(link("console.overview.show"))
    return page("sign_in.html")


@blueprint.post("/sign-in")
def begin() -> Response:
    """Signs in. The answer to a wrong token is the same for each reason, and counts against the address."""
    try:
        secret = registry().console_sessions.begin(field("token"))
    except OperatorRefused as error:
        log_refusal(error.status, error.code, str(error), "")
        return page("sign_in.html", error.status, refused=True)
    wanted = take_wanted()
    begin_session(secret)
    return redirect(wanted or link("console.overview.show"))


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """Ends this browser's session."""
    end()
    return redirect(link("console.sign_in.show"))


@blueprint.post("/sign-out-everywhere")
def sign_out_everywhere() -> Response:
    """Ends all sessions of the operator."""
    registry().console_sessions.end_all(operator())
    end()
    return redirect(link("console.sign_in.show"))
