"""The output of a run: the table, results.json and the picture."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.picture import draw

FOLDER = Path(__file__).parent
_COLUMNS = ("figure", "value", "peer's figure", "ratio", "goal", "met")


def write(figures: Sequence[Figure]) -> None:
    """Write results.json and results.svg next to this module."""
    results = [figure.to_json() for figure in figures]
    (FOLDER / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (FOLDER / "results.svg").write_text(draw(figures), encoding="utf-8")


def table(figures: Sequence[Figure]) -> str:
    """A Markdown table, its columns aligned."""
    rows = [_COLUMNS, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.figure,
        f"{_short(figure.value)} {figure.unit}",
        figure.against or "–",
        "–" if figure.ratio is None else f"{figure.ratio:.2f}",
        "–" if figure.goal is None else str(figure.goal),
        {True: "yes", False: "NO", None: "–"}[figure.met],
    )


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
