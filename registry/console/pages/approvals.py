"""Approvals: keys that wait for an operator, who compares their thumbprints and admits or rejects them."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, flash

from peerseal.protocol.names import check_service, split_kid
from peerseal.protocol.words import words_of
from registry.console.rendering import link, page, redirect
from registry.console.request import act, field, operator
from registry.domain.errors import BadRequest, NotFound
from registry.web.metrics import count_admission
from registry.web.wire import parameter, registry

blueprint = Blueprint("approvals", __name__)

_PAGE = 10
"""Applicants on a page: each takes a screen, and its proof of possession is verified."""
_GROUP = 4
_LONGEST = 500
"""Characters of a text to compare: 32 words have 350 at most."""


@blueprint.get("/approvals")
def show() -> Response:
    """The applicants, and whether the text ``?said=`` is the thumbprint ``?of=``."""
    operator()
    said = (parameter("said") or "").strip()
    if len(said) > _LONGEST:
        raise BadRequest("invalid_parameter", f"said has {len(said)} characters, expected {_LONGEST} at most")
    after = parameter("after") or ""
    found = registry().applicants.page(after, _PAGE)
    known = registry().records.having_keys({row["service"] for row in found["applicants"]})
    compared = parameter("of")
    return page(
        "approvals.html",
        applicants=[_shown(row, known, said if compared == _thumbprint(row) else "") for row in found["applicants"]],
        after=after,
        next=found["next"],
        on=registry().settings.applicants,
        longest=_LONGEST,
        terminal=(
            "peerseal-registry keys --pending",
            "peerseal-registry approve KID",
            "peerseal-registry reject KID",
        ),
    )


@blueprint.post("/approvals/<service>/<thumbprint:thumbprint>/approve")
def approve(service: str, thumbprint: str) -> Response:
    """Admits an applicant. A second call changes nothing."""
    by = act()
    kid = f"{check_service(service)}/{thumbprint}"
    try:
        admitted = registry().applicants.approve(service, thumbprint, by)
    except NotFound:
        flash(f"{kid} waits no more: it was rejected, or its time is over.", "notice")
    else:
        if admitted.appended is not None:
            count_admission(admitted.record.admitted_by)
        flash(f"{kid} is admitted, by entry {admitted.record.admitted_seq} of the ledger.", "done")
    return redirect(link("console.approvals.show"))


@blueprint.post("/approvals/<service>/<thumbprint:thumbprint>/reject")
def reject(service: str, thumbprint: str) -> Response:
    """Rejects an applicant. The reason goes to the log."""
    by, why = act(), field("why")
    kid = f"{check_service(service)}/{thumbprint}"
    if not why:
        flash(f"{kid} still waits: give a reason to reject it.", "notice")
        return redirect(link("console.approvals.show"))
    try:
        registry().ending.reject(service, thumbprint, by, why)
    except NotFound:
        flash(f"{kid} waits no more: it was admitted or rejected, or its time is over.", "notice")
    else:
        flash(f"{kid} is rejected.", "done")
    return redirect(link("console.approvals.show"))


def is_same(thumbprint: str, said: str) -> bool:
    """Whether a text is the thumbprint: in base64url with or without blanks, as the end of a kid, or in words."""
    letters = "".join(said.split()).rpartition("/")[2]
    spoken = said.casefold().split()
    return letters == thumbprint or spoken == [word.casefold() for word in words_of(thumbprint)]


def _thumbprint(row: Mapping[str, Any]) -> str:
    return split_kid(row["kid"])[1]


def _shown(row: Mapping[str, Any], known: frozenset[str], said: str) -> dict[str, Any]:
    thumbprint = _thumbprint(row)
    return {
        **row,
        "thumbprint": thumbprint,
        "groups": [thumbprint[start : start + _GROUP] for start in range(0, len(thumbprint), _GROUP)],
        "words": words_of(thumbprint),
        "known": row["service"] in known,
        "said": said,
        "same": is_same(thumbprint, said),
    }
