"""The overview: how the registry is, and what waits for an operator."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from flask import Blueprint, Response

from registry.console.rendering import page
from registry.console.request import operator
from registry.services.authority.authority import RENEW_BEFORE, Authority
from registry.services.insight.overview import COUNTED, Numbers
from registry.services.witnesses.state import WitnessState
from registry.web.metrics import answered, refusals_by_code
from registry.web.wire import registry

blueprint = Blueprint("overview", __name__)

CODES_SHOWN: Final = 12
"""Codes of refusals that have a bar of their own."""
LATE: Final = 180
"""Seconds after which witnesses that have not cosigned are late: each is asked again once a minute."""
BAR: Final = 160
"""The length of the longest bar, in units of the drawing."""


class Bar(NamedTuple):
    """A code, how often it was answered, and the length of its bar."""

    code: str
    number: int
    length: int


class Document(NamedTuple):
    """A signed document or key, and when it ends (seconds since the epoch). ``near`` says whether it has to be renewed
    soon."""

    name: str
    ends: int
    near: bool


class Witness(NamedTuple):
    """What a witness has cosigned last, and how many entries the ledger has more; below 0 where it has fewer."""

    name: str
    state: WitnessState
    behind: int


@blueprint.get("/")
def show() -> Response:
    """The page."""
    operator()
    answered.count()
    refusals, numbers = refusals_by_code(), registry().overview.numbers()
    return page(
        "overview.html",
        numbers=numbers,
        endings=_endings(numbers),
        most=COUNTED,
        bars=bars(refusals),
        refused=sum(refusals.values()),
        ready=registry().readiness(),
        fork=registry().fork_guard.fork,
        unconfirmed=registry().fork_guard.unconfirmed,
        others=registry().watch.others,
        witnesses=_witnesses(numbers.size),
        quorum=registry().cosigning.quorum(),
        late=LATE,
        documents=_documents(registry().authority.in_force(), registry().clock()),
        terminal=("peerseal-registry status", "peerseal-registry services", "peerseal-registry verify"),
    )


def _witnesses(size: int) -> list[Witness]:
    states = registry().cosigning.states()
    return [Witness(name, states[name], size - states[name].size) for name in sorted(states)]


def bars(refusals: Mapping[str, int]) -> list[Bar]:
    """The bars of the most frequent codes, and one of the others together."""
    ordered = sorted(((number, code) for code, number in refusals.items() if number), reverse=True)
    shown = [(code, number) for number, code in ordered[:CODES_SHOWN]]
    if rest := sum(number for number, _ in ordered[CODES_SHOWN:]):
        shown.append(("other codes", rest))
    longest = max((number for _, number in shown), default=1)
    return [Bar(code, number, max(1, number * BAR // longest)) for code, number in shown]


def _endings(numbers: Numbers) -> list[tuple[str, int]]:
    if numbers.keys is None:
        return []
    counts = numbers.keys.counts
    return [("end within a day", counts.within_day), ("end within a week", counts.within_week)]


def _documents(authority: Authority, now: float) -> list[Document]:
    """The signing keys have no end of their own: the document of the root names them."""
    ends = authority.keys.expires_at
    near = now > ends - RENEW_BEFORE
    number = len(authority.keys.signing_keys)
    return [
        Document(f"Root-signed document, version {authority.keys.version}", ends, near),
        Document("Signing key" if number == 1 else f"{number} signing keys", ends, near),
    ]
