"""Answers that a caller refuses: each is counted, and a line of the log."""

import logging
from typing import Final

from peerseal.errors import ResponseRefused
from peerseal.runtime.log_lines import fields
from peerseal.runtime.metrics import Metric, Tally

log = logging.getLogger("peerseal")

_HELP: Final = "Answers that were refused because they were not signed as required, by code."


class RefusedAnswers:
    """What all sessions of one identity refuse. Nothing of an answer but its status is logged."""

    def __init__(self) -> None:
        self._tally = Tally("peerseal_responses_refused_total", _HELP, "code")

    def collect(self) -> list[Metric]:
        """The counts."""
        return [self._tally.metric()]

    def note(self, refused: ResponseRefused, callee: str, status: int) -> None:
        """An answer of the service ``callee``, a name or id, with this status, is refused."""
        self._tally.add(refused.code)
        told = fields(code=refused.code, callee=callee, status=status)
        log.warning("refused an answer of %s: %s, status %d", callee, refused.code, status, extra=told)


def refused_answers_of(signer: object) -> RefusedAnswers:
    """The identity's; those of its own for another signer."""
    found = getattr(signer, "refused_answers", None)
    return found if isinstance(found, RefusedAnswers) else RefusedAnswers()
