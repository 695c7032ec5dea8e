"""What peers told and this process has still to compare, in a bounded number of places.

Places belong to keys (kids), not to services: the false key of an impostor takes no place of the honest key. Where all
places are taken, the service with the most of them gives one up, and among equals the one that was heard of last. So a
registry that mints services, or keys of one service, displaces what it minted itself.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_MOST_KNOWN: Final = 1_000
"""Services whose order is remembered. All later ones count as heard of last."""


@dataclass(frozen=True, slots=True)
class HeardNote:
    """What a key told (``cp``) at the time ``at`` (seconds since the epoch). It is looked at from ``due_at`` on
    (monotonic seconds), once ``size`` entries were seen; it was looked at ``attempts`` times. What the key tells later
    takes its place, unless it is ``kept``."""

    cp: str
    kid: str
    at: float
    due_at: float = 0.0
    size: int = 0
    attempts: int = 0
    kept: bool = False

    @property
    def place(self) -> tuple[str, bool]:
        """Each key has two: what it told last, and the smallest that this process has not seen yet."""
        return self.kid, self.kept

    @property
    def service(self) -> str:
        """The id of the service that told it."""
        return self.kid.rpartition("/")[0]


class HeardNotes:
    """The notes, at most ``most``. One thread at a time may change them; others may read meanwhile."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._of = dict[str, dict[tuple[str, bool], HeardNote]]()  # by service, each from the oldest place on
        self._order = dict[str, int]()

    def __iter__(self) -> Iterator[HeardNote]:
        """All of them, as of now: first those of the services that were heard of first."""
        services = sorted(self._of, key=self._rank)
        return iter([note for service in services for note in list(self._of.get(service, {}).values())])

    def at(self, kid: str, *, kept: bool) -> HeardNote | None:
        """The note in this place."""
        return self._of.get(kid.rpartition("/")[0], {}).get((kid, kept))

    def put(self, note: HeardNote) -> None:
        """Put it in its place, in place of the one there; or forget it, where its service has to give one up."""
        service = note.service
        if service not in self._order and len(self._order) < _MOST_KNOWN:
            self._order[service] = len(self._order)
        places = self._of.get(service, {})
        if note.place not in places:
            if self._count >= self._most:
                donor = self._donor(service)
                if donor == service:
                    return
                self.remove(self._youngest(donor))
            self._count += 1
        self._of.setdefault(service, {})[note.place] = note

    def remove(self, note: HeardNote) -> bool:
        """Remove this one, and return whether it was in its place."""
        places = self._of.get(note.service, {})
        if places.get(note.place) is not note:
            return False
        del places[note.place]
        self._count -= 1
        if not places:
            del self._of[note.service]
        return True

    def _donor(self, newcomer: str) -> str:
        """The service that gives up a place, so that the newcomer gets one. It may be the newcomer's own."""

        def rank(service: str) -> tuple[int, float]:
            return len(self._of.get(service, ())) + (service == newcomer), self._rank(service)

        return max((newcomer, *self._of), key=rank)

    def _rank(self, service: str) -> float:
        return self._order.get(service, math.inf)

    def _youngest(self, service: str) -> HeardNote:
        """The note that the service gives up: the youngest, and one that is kept only where there is no other."""
        notes = list(reversed(self._of[service].values()))
        return next((note for note in notes if not note.kept), notes[0])
