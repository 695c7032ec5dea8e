"""Percentiles: in a benchmark of latencies the slow answers matter, not the median."""

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of the values, by the nearest rank."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
