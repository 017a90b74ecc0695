"""Figures of studies with an axis: a line for each method, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuroada.measure.record import Record
from neuroada.report.study_rows import StudyResults, studies_of

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999999", "#000000")
"""Okabe and Ito's, which most people can tell apart."""


def study_points(records: Sequence[Record], name: str) -> dict[str, Any]:
    """What is drawn, as JSON can hold it: for each method x, mean and standard deviation."""
    study = next((each for each in studies_of(records) if each.name == name), None)
    if study is None or study.axis is None or not study.shown:
        return {"axis": "", "title": "", "lines": {}}
    test = study.shown[-1]
    lines = {method: _line(study, method, test) for method in study.methods}
    return {"axis": study.axis, "title": study.tests[test], "lines": lines}


def _line(study: StudyResults, method: str, test: str) -> list[tuple[float, float, float]]:
    rows = [study.row(method, point) for point in study.points]
    return [
        (row.point, mean, row.deviation(test))
        for row in rows
        if row is not None and row.point is not None and (mean := row.mean(test)) is not None
    ]


def draw_study(pyplot: Any, data: dict[str, Any]) -> Any:
    """Onto a new matplotlib figure; lines lie a little beside each other, so that spreads can be seen."""
    figure, panel = pyplot.subplots(figsize=(8, 4.2))
    points = sorted({x for line in data["lines"].values() for x, _, _ in line})
    if not points:
        panel.text(0.5, 0.5, "not measured", ha="center", transform=panel.transAxes)
        panel.set_axis_off()
        return figure
    places = dict(zip(points, range(len(points)), strict=True))
    for number, (method, line) in enumerate(data["lines"].items()):
        aside = 0.3 * ((number + 0.5) / len(data["lines"]) - 0.5)
        x = [places[point] + aside for point, _, _ in line]
        y, spread = [mean for _, mean, _ in line], [deviation for _, _, deviation in line]
        colour = COLOURS[number % len(COLOURS)]
        panel.errorbar(x, y, spread, label=method, color=colour, marker="o", markersize=4, capsize=2, linewidth=1.2)
    panel.set_xticks(range(len(points)), [f"{point:g}" for point in points])
    panel.set_xlabel(data["axis"])
    panel.set_ylabel(data["title"])
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, ncols=2 if len(data["lines"]) > 4 else 1)
    figure.tight_layout()
    return figure
