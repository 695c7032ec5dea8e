"""Metrics as values, and in Prometheus' text format (version 0.0.4). No library is needed.

A source is a function that gives metrics, such as `Identity.collect` or an application's own. Labels must have few
values: `Tally` counts values beyond a bound as ``other``.
"""

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from peerseal.errors import ConfigurationError
from peerseal.runtime.forks import in_each_child

OTHER: Final = "other"
"""The label value for everything beyond `MOST`."""
MOST: Final = 100
"""Sets of labels of one metric, at most."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

Sample = tuple[Mapping[str, str], float]
"""The values of the labels, and the number."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with all its samples. A counter only grows, and its ``name`` ends in ``_total``; a gauge is a current
    value. Names carry their unit: ``…_seconds``. Raises ConfigurationError for what Prometheus cannot read."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        """See the class."""
        if not _NAME.fullmatch(self.name) or self.kind not in ("counter", "gauge"):
            raise ConfigurationError(f"{self.name!r:.60}: expected the name of a counter or a gauge")
        if (self.kind == "counter") is not self.name.endswith("_total"):
            raise ConfigurationError(f"{self.name}: a counter's name ends in _total, and no other name does")
        for labels, _ in self.samples:
            for label in labels:
                if not _LABEL.fullmatch(label):
                    raise ConfigurationError(f"{label!r:.60} of {self.name}: expected the name of a label")


Source = Callable[[], Iterable[Metric]]
"""Gives the metrics of one part of a program, as of now."""


def metrics(*sources: Source) -> str:
    """The metrics of all sources as text, for the answer to ``GET /metrics``. Samples of one name and the same labels
    are added up. Raises ConfigurationError where one name is a counter here and a gauge there, and what a source
    raises."""
    found = merged(metric for source in sources for metric in source())
    return "".join(f"{line}\n" for metric in found for line in _lines(metric))


def merged(found: Iterable[Metric]) -> list[Metric]:
    """Each name once, in order of appearance."""
    first: dict[str, Metric] = {}
    numbers: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for metric in found:
        if first.setdefault(metric.name, metric).kind != metric.kind:
            raise ConfigurationError(f"{metric.name} is both a counter and a gauge")
        sums = numbers.setdefault(metric.name, {})
        for labels, number in metric.samples:
            pairs = tuple(labels.items())
            sums[pairs] = sums.get(pairs, 0) + number
    return [replace(metric, samples=tuple(_samples(numbers[name]))) for name, metric in first.items()]


def _samples(numbers: Mapping[tuple[tuple[str, str], ...], float]) -> Iterator[Sample]:
    return ((dict(pairs), number) for pairs, number in numbers.items())


def gauge(name: str, help: str, value: float, labels: Mapping[str, str] = MappingProxyType({})) -> Metric:
    """A gauge with one sample."""
    return Metric(name, "gauge", help, ((labels, value),))


def counted(name: str, help: str, label: str, counts: Mapping[str, int]) -> Metric:
    """A counter with a label, from counts by its values; those after the first hundred together, as ``other``."""
    samples: list[Sample] = [({label: value}, count) for value, count in list(counts.items())[:MOST]]
    beyond = sum(list(counts.values())[MOST:])
    return Metric(name, "counter", help, (*samples, ({label: OTHER}, beyond)) if beyond else tuple(samples))


class Tally:
    """Counts by the values of ``labels``, in this process; a forked child begins at zero. Safe to use from threads."""

    def __init__(self, name: str, help: str, *labels: str) -> None:
        self._name, self._help, self._labels = name, help, labels
        self._begin()
        in_each_child(self._begin)

    def _begin(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    def add(self, *values: str) -> None:
        """One more."""
        with self._lock:
            known = values in self._counts or len(self._counts) < MOST
            self._counts[values if known else tuple(OTHER for _ in values)] += 1

    def metric(self) -> Metric:
        """As of now."""
        with self._lock:
            counts = list(self._counts.items())
        samples = tuple((dict(zip(self._labels, values, strict=True)), float(count)) for values, count in counts)
        return Metric(self._name, "counter", self._help, samples)


def _lines(metric: Metric) -> Iterator[str]:
    help = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {metric.name} {help}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for labels, number in metric.samples:
        pairs = ",".join(f'{label}="{value.translate(_ESCAPED)}"' for label, value in labels.items())
        yield f"{metric.name}{{{pairs}}} {_number(number)}" if pairs else f"{metric.name} {_number(number)}"


def _number(number: float) -> str:
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    return str(int(number)) if number == int(number) else repr(float(number))
