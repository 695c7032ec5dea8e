"""The picture: one bar for each goal, drawn by hand so that no library is needed.

A bar's length is the figure as a part of its goal, so one line marks all goals: a bar for "at most" has to end before
it, a bar for "at least" has to reach it.
"""

from collections.abc import Sequence
from html import escape

from benchmarks.figures import OF_RATIO, Figure

_ROW, _LABELS, _BARS, _NUMBERS, _TOP = 26, 430, 300, 190, 58  # pixels
_LONGEST = 1.6  # goals: a longer bar is cut off
_GOAL_AT = _LABELS + _BARS / _LONGEST
_MET, _MISSED = "#2f7d4f", "#b3402e"


def draw(figures: Sequence[Figure]) -> str:
    """An SVG of the figures that have a goal."""
    shown = [figure for figure in figures if figure.goal is not None and figure.measured is not None]
    width, height = _LABELS + _BARS + _NUMBERS, _TOP + _ROW * len(shown) + 14
    bars = "\n".join(_bar(figure, _TOP + _ROW * row) for row, figure in enumerate(shown))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"
  font-family="system-ui, sans-serif" font-size="12">
<rect width="{width}" height="{height}" fill="#ffffff"/>
<text x="12" y="22" font-size="15" font-weight="bold">Peerseal: every figure in parts of its goal</text>
<text x="12" y="42" fill="#555555">≤ and &lt; have to end before the line, ≥ has to reach it</text>
<line x1="{_GOAL_AT}" y1="{_TOP - 8}" x2="{_GOAL_AT}" y2="{height - 8}" stroke="#333333" stroke-dasharray="4 3"/>
<text x="{_GOAL_AT}" y="{_TOP - 14}" text-anchor="middle" fill="#333333">goal</text>
{bars}
</svg>
"""


def _bar(figure: Figure, top: int) -> str:
    assert figure.goal is not None
    assert figure.measured is not None
    parts = figure.measured / figure.goal.limit
    length = min(parts, _LONGEST) / _LONGEST * _BARS
    text = top + 14
    number = f"{figure.measured:.2f} {figure.goal.unit}"
    verdict = "✓" if figure.met else "✗"
    return (
        f'<text x="{_LABELS - 8}" y="{text}" text-anchor="end">{escape(_label(figure))}</text>'
        f'<rect x="{_LABELS}" y="{top}" width="{length:.1f}" height="{_ROW - 8}" rx="2"'
        f' fill="{_MET if figure.met else _MISSED}" fill-opacity="0.85"/>'
        f'<text x="{_LABELS + _BARS + 10}" y="{text}">{verdict} {number} (goal {escape(str(figure.goal))})</text>'
    )


def _label(figure: Figure) -> str:
    """The figure, and the peer's name where the goal is about the ratio to it."""
    label = figure.figure
    if figure.against is not None and figure.goal is not None and figure.goal.unit == OF_RATIO:
        label = f"{label} / {figure.against.rpartition(':')[0]}"
    return label if len(label) <= 66 else label[:65] + "…"
