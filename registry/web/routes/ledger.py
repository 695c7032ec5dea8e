"""The ledger over HTTP: C2SP tlog-tiles below ``/ledger``, and proofs."""

import re

from flask import Blueprint, Response, request

from peerseal.protocol.ledger.checkpoint import TILE_WIDTH
from registry.domain.errors import BadRequest, NotFound
from registry.web.wire import number, parameter, private_json, published, registry

blueprint = Blueprint("ledger", __name__, url_prefix="/ledger")

FOR_EVER = "public, max-age=31536000, immutable"
_LEVELS = frozenset("01234567")
"""Level 7 alone would hold more entries than any ledger; each has one spelling."""
_TILE = re.compile(r"((?:x[0-9]{3}/){0,5})([0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@blueprint.get("/checkpoint")
def checkpoint() -> Response:
    """The signed head of the ledger, as of now."""
    return published(registry().ledger.checkpoint(), "no-cache")


@blueprint.get("/tile/<level>/<path:place>")
def tile(level: str, place: str) -> Response:
    """A tile of hashes."""
    if level not in _LEVELS:
        raise NotFound("tile_not_found")
    return published(registry().ledger.tile(int(level), *_place(place)), FOR_EVER)


@blueprint.get("/tile/entries/<path:place>")
def entries(place: str) -> Response:
    """A bundle of entries."""
    return published(registry().ledger.bundle(*_place(place)), FOR_EVER)


@blueprint.get("/proof")
def proof() -> Response:
    """With ``?kid=`` the inclusion proof of a key's admission; with ``?from=M&to=N`` the proof that the ledger of size
    N begins with that of size M."""
    if not request.args.keys() <= {"kid", "from", "to"}:
        raise BadRequest("invalid_parameter", "either kid, or from and to")
    kid = parameter("kid")
    if (kid is None) == (parameter("from") is None):
        raise BadRequest("invalid_parameter", "either kid, or from and to")
    if kid is not None:
        return private_json(registry().ledger.inclusion(kid))
    response = private_json(registry().ledger.consistency(number("from"), number("to")))
    response.headers["Cache-Control"] = FOR_EVER
    return response


def _place(text: str) -> tuple[int, int]:
    """A tile's number and width from its path (C2SP tlog-tiles). Raises NotFound."""
    match = None if request.query_string else _TILE.fullmatch(text)  # with a query it would be kept as another tile
    if match is None or text.startswith("x000/"):
        raise NotFound("tile_not_found")
    found, width = int(match[1].replace("x", "").replace("/", "") + match[2]), int(match[3] or TILE_WIDTH)
    if width > TILE_WIDTH or (match[3] and width == TILE_WIDTH):
        raise NotFound("tile_not_found")
    return found, width
