"""Studies as parts of the page: what was found in words, a figure, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from neuroada.measure.record import Record
from neuroada.report.findings import CLAIMS, findings
from neuroada.report.html.charts import BOTTOM, LEFT, RIGHT, TOP, Chart, Line, Scale
from neuroada.report.html.tables import Cell, Row, Table
from neuroada.report.study import study_cells, study_header, study_heading
from neuroada.report.study_rows import StudyResults, StudyRow, studies_of


@dataclass(frozen=True)
class StudyPart:
    """One study. claim: what the paper says of it, or nothing. chart: where it has an axis."""

    id: str
    title: str
    heading: str
    sentences: list[str]
    claim: str
    methods: list[str]
    chart: Chart | None
    table: Table


def study_parts(records: Sequence[Record]) -> list[StudyPart]:
    """A part for each study among the records."""
    return [
        StudyPart(
            id=f"study{number}",
            title=f"Study {study.name}",
            heading=study_heading(study),
            sentences=findings(study),
            claim=CLAIMS.get(study.name, ""),
            methods=study.methods,
            chart=_chart(study),
            table=_table(study),
        )
        for number, study in enumerate(studies_of(records), 1)
    ]


def _table(study: StudyResults) -> Table:
    colours = {method: number for number, method in enumerate(study.methods)}
    rows = [Row(_cells(study, row), colour=colours[row.method]) for row in study.rows]
    return Table(f"Study {study.name}", study_header(study), rows)


def _cells(study: StudyResults, row: StudyRow) -> list[Cell]:
    texts = study_cells(study, row)
    first_score = 3 + (row.point is not None)
    numbers = [*(row.mean(test) for test in study.shown), mean(row.losses) if row.losses else None]
    values = dict(enumerate(numbers, first_score))
    return [Cell(text, sort=values.get(number)) for number, text in enumerate(texts)]


def _chart(study: StudyResults) -> Chart | None:
    """Means over the points, which stand at equal distances; None for fewer than two."""
    points, test = study.points, study.shown[-1] if study.shown else ""
    places = {point: float(number) for number, point in enumerate(points)}
    scored = [row for row in study.rows if row.mean(test) is not None and row.point is not None]
    if len({row.point for row in scored}) < 2:
        return None
    ends = [
        value + sign * row.deviation(test) for row in scored for value in [row.mean(test) or 0.0] for sign in (-1, 1)
    ]
    room = 0.05 * (max(ends) - min(ends)) or 0.01
    x, y = Scale(0.0, len(points) - 1.0, LEFT + 8, RIGHT - 8), Scale(min(ends) - room, max(ends) + room, BOTTOM, TOP)
    lines = []
    for number, method in enumerate(study.methods):
        dots = [
            (
                x(places[row.point]),
                y(row.mean(test) or 0.0),
                f"{row.label}: {row.mean(test):.3f} ± {row.deviation(test):.3f}",
            )
            for row in sorted(scored, key=lambda row: row.point or 0.0)
            if row.method == method and row.point is not None
        ]
        path = "L".join(f"{place},{height}" for place, height, _ in dots)
        lines.append(Line(method, number, f"M{path}" if dots else "", dots))
    ticks = [(x(place), f"{point:g}") for point, place in places.items()]
    return Chart(study.tests[test], study.axis or "", ticks, y.ticks(6), lines, "mean over seeds")
