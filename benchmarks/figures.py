"""The result of a benchmark: a figure, the peer's figure from the same run, and the goal."""

from dataclasses import dataclass
from typing import Any, Literal

OF_RATIO = "×"


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit of the ratio, or of the value itself where ``unit`` is the value's."""

    sign: Literal["≤", "<", "≥"]
    limit: float
    unit: str = OF_RATIO

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g} {self.unit}"

    def is_met(self, number: float) -> bool:
        """Whether the ratio, or the value, keeps within the limit."""
        return {"≤": number <= self.limit, "<": number < self.limit, "≥": number >= self.limit}[self.sign]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. ``against`` has the peer's name and figure; ``ratio`` is value to peer's value."""

    figure: str
    value: float
    unit: str
    against: str | None = None
    ratio: float | None = None
    goal: Goal | None = None

    @property
    def measured(self) -> float | None:
        """The number that the goal bounds: the ratio or the value."""
        return self.ratio if self.goal is not None and self.goal.unit == OF_RATIO else self.value

    @property
    def met(self) -> bool | None:
        """None where there is no goal."""
        if self.goal is None or self.measured is None:
            return None
        return self.goal.is_met(self.measured)

    def to_json(self) -> dict[str, Any]:
        """As results.json has it."""
        return {
            "figure": self.figure,
            "value": round(self.value, 4),
            "unit": self.unit,
            "against": self.against,
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "goal": None if self.goal is None else str(self.goal),
            "met": self.met,
        }
