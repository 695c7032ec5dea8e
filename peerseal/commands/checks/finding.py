"""What one check of ``peerseal doctor`` found."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from peerseal.commands.checks.host import Host

OK: Final = "ok"
WARNING: Final = "warning"
ERROR: Final = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check ``found``, its ``level``, and the ``remedy`` if there is something to do."""

    level: str
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Without a ``remedy`` where there is none."""
        remedy = {"remedy": self.remedy} if self.remedy else {}
        return {"level": self.level, "found": self.found, **remedy}


Check = Callable[[Host], Iterator[Finding]]


def ok(found: str) -> Finding:
    """Nothing is to be done."""
    return Finding(OK, found)


def warning(found: str, remedy: str) -> Finding:
    """The service runs, and something may go wrong later."""
    return Finding(WARNING, found, remedy)


def error(found: str, remedy: str) -> Finding:
    """The service cannot start, cannot call, or cannot be called."""
    return Finding(ERROR, found, remedy)
