"""``GET /``: every route, with an HTTPie line to type as it is, after the first line was typed.

No line has a double quote or a backslash, which JSON would escape. The shell inserts the secrets
``CLIENT_DEMO_PASSWORD`` and ``CLIENT_OPERATOR_SECRET``. ``make up`` prints lines that set them, and in the container
``httpservice`` they are set.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Blueprint, Flask, request

import peerseal

View = TypeVar("View", bound=Callable[..., Any])

LOGIN = "TOKEN=$(http --ignore-stdin -b POST {url}/authenticate user=ada password=$CLIENT_DEMO_PASSWORD | {token})"
"""A line for the shell that logs in, and keeps the user's token for the lines after it."""
TOKEN = "sed 's/.*access_token.: *.//;s/[^A-Za-z0-9._-].*//'"
"""Cuts the token out of a JSON answer."""
EXCHANGE = (
    "ORDER=$(date +%s%N)",
    "http --ignore-stdin --offline --print=B POST : eventID=e-$ORDER transactionID=t-$ORDER"
    " utcTime=$(date -u +%FT%TZ) 'items[0][itemID]=pen' 'items[0][quantity]:=2' 'items[0][price]:=250'"
    " >/tmp/order.json",
    "EVENT_TOKEN=$(http --ignore-stdin -b --form POST $PEERSEAL_REGISTRY_URL/oauth2/token"
    " grant_type=urn:ietf:params:oauth:grant-type:token-exchange"
    " client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    " client_assertion=$(peerseal assertion)"
    " subject_token=$TOKEN subject_token_type=urn:ietf:params:oauth:token-type:access_token"
    " scope=trigger_invoicing audience=jobs.example.com topic=OrderCreated event_id=e-$ORDER transaction_id=t-$ORDER"
    f" event_payload_hash=$(sha256sum </tmp/order.json | cut -c-64) | {TOKEN})",
)
"""Shell lines for a program without the SDK: they write an order, and exchange the user's token at the registry for the
order's event token. ``PEERSEAL_SERVICE`` and the variables with it name the service."""
AS_USER = "-A bearer -a $TOKEN"
"""HTTPie's arguments for a user's token, which the shell puts in."""

_ARGUMENTS = "__httpie__"


def httpie(arguments: str) -> Callable[[View], View]:
    """A decorator: what a call of this route needs, after its URL."""

    def mark(view: View) -> View:
        setattr(view, _ARGUMENTS, arguments)
        return view

    return mark


def blueprint(app: Flask, identity: peerseal.Identity) -> Blueprint:
    """The index of ``app``."""
    routes = Blueprint("index", __name__)

    @routes.get("/")
    def index() -> dict[str, Any]:
        """Every route of this service, with a line to try it; before them ``login``, which sets ``$TOKEN``."""
        url = request.host_url.rstrip("/")
        login = LOGIN.format(url=url, token=TOKEN)
        return {"service": identity.id, "login": login, "routes": described(app, url), "exchange": EXCHANGE}

    return routes


def described(app: Flask, url: str) -> list[dict[str, str]]:
    """Method, path, meaning and an HTTPie line of every route."""
    found = []
    for rule in app.url_map.iter_rules():
        if rule.endpoint == "static":
            continue
        view = app.view_functions[rule.endpoint]
        method = "POST" if "POST" in (rule.methods or ()) else "GET"
        line = f"http {method} {url}{rule.rule.replace('<id>', '1')} {getattr(view, _ARGUMENTS, '')}".rstrip()
        line += " --ignore-stdin" if method == "POST" else ""  # or HTTPie in a script sends standard input
        found.append({"method": method, "path": rule.rule, "what": (view.__doc__ or "").strip(), "try": line})
    return found
