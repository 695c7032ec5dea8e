"""The ledger: its entries, the newest first, and one entry with its evidence. The browser itself proves what they show.

`static/ledger.js` reads the cells that have ``data-member`` and compares them with the proved entries. So both pages
write them as `textsOf` in `static/verify.js` does.
"""

from typing import Any

from flask import Blueprint, Response

from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.ledger.entries import Entry
from registry.console.rendering import by_text, page
from registry.console.request import operator
from registry.services.documents.ledger_pages import ENTRIES
from registry.web.wire import number, registry

blueprint = Blueprint("ledger", __name__)

EXCERPT = 200
"""Characters of an entry's data in the list, at most."""
_NONE = "–"
_TERMINAL = ("peerseal keep-ledger FOLDER --registry URL --pin PIN --once", "peerseal-registry verify")


@blueprint.get("/ledger")
def show() -> Response:
    """The entries up to ``?at=``."""
    operator()
    found = registry().ledger_pages.page(number("at"))
    entries = [(shown.seq, None if shown.entry is None else texts(shown.entry)) for shown in found.entries]
    return page("ledger.html", found=found, entries=entries, step=ENTRIES, terminal=_TERMINAL)


@blueprint.get("/ledger/<int:seq>")
def entry(seq: int) -> Response:
    """One entry."""
    operator()
    found = registry().ledger_pages.entry(seq)
    return page(
        "ledger_entry.html",
        found=found,
        entry=None if found.entry is None else texts(found.entry),
        body=found.body.decode("utf-8", "replace"),
        evidence=None if found.evidence is None else found.evidence.decode("utf-8", "replace"),
        terminal=_TERMINAL,
    )


def texts(entry: Entry) -> dict[str, Any]:
    """The parts of an entry as the pages show them. ``time`` is in seconds since the epoch."""
    data = canonical_json(entry.data).decode("utf-8")
    return {
        "time": entry.time,
        "type": entry.type,
        "service": entry.service or _NONE,
        "kid": entry.kid or _NONE,
        "thumbprint": (entry.kid or _NONE).rpartition("/")[2],
        "by": by_text(entry.by),
        "data": data,
        "excerpt": data if len(data) <= EXCERPT else f"{data[:EXCERPT]}…",
        "evidence": entry.evidence or _NONE,
    }
