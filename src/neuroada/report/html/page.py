"""Runs to the text of one HTML page."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from neuroada.measure.record import Record
from neuroada.report.html.beside import Beside, beside_published
from neuroada.report.html.charts import Chart, Intervals
from neuroada.report.html.classes import ClassView, class_views
from neuroada.report.html.curves import curves, score_intervals
from neuroada.report.html.deltas import read_deltas
from neuroada.report.html.examples import CHANGES, Examples, read_examples
from neuroada.report.html.run import Run
from neuroada.report.html.studies import StudyPart, study_parts
from neuroada.report.html.tables import Cell, Row, Table, facts, overview, score_table, settings_table
from neuroada.report.html.where import DeltaView, delta_views, size_charts

COLOURS = 8
"""That the page has for runs; more runs use them again."""

HERE = Path(__file__).parent
TEMPLATES = Environment(
    loader=FileSystemLoader(HERE),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def breakable(text: str) -> Markup:
    """A text that may break after the signs inside names and paths."""
    return Markup("<wbr>").join(re.split(r"(?<=[./_-])(?=[^\W\d])", text))


TEMPLATES.filters["breakable"] = breakable


@dataclass(frozen=True)
class Part:
    """All that is shown of runs with the same subject, side by side."""

    id: str
    title: str
    runs: Sequence[Run]
    tiles: list[tuple[str, Cell]]
    overview: Table | None
    scores: Table | None
    intervals: Intervals | None
    classes: list[ClassView]
    beside: Beside | None
    curves: list[Chart]
    deltas: list[DeltaView]
    sizes: list[Chart]
    examples: list[tuple[Run, Examples, Table]]
    settings: list[Table]

    @property
    def tests(self) -> list[str]:
        """That there are examples of."""
        return list(dict.fromkeys(test for _, examples, _ in self.examples for test in examples.counts))


def report_page(runs: Sequence[Run], records: Sequence[Record] = ()) -> str:
    """The page, all in one; the same text for the same runs and the same records of studies.

    Raises:
        ConfigError: a record in a run's folder is broken; the message names file and line.
        AdapterFileError: an adapter's file is damaged.
    """
    subjects: dict[str, list[Run]] = {}
    for run in runs:
        subjects.setdefault(run.subject, []).append(run)
    parts = [_part(f"part{number}", title, members) for number, (title, members) in enumerate(subjects.items(), 1)]
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    studies = study_parts(records)
    text = TEMPLATES.get_template("page.html").render(
        title=_title(runs, studies),
        parts=parts,
        studies=studies,
        changes=CHANGES,
        colours=COLOURS,
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # JSON can hold half a surrogate pair, a file cannot


def _title(runs: Sequence[Run], studies: Sequence[StudyPart]) -> str:
    if len(runs) == 1:
        return runs[0].name
    return f"{len(runs)} runs" if runs else studies[0].title if len(studies) == 1 else f"{len(studies)} studies"


def _part(name: str, title: str, runs: Sequence[Run]) -> Part:
    found = [read_deltas(run.path / "adapter") for run in runs]
    names, cells = facts(runs)
    examples = [(run, each) for run in runs if (each := read_examples(run)) is not None]
    environments = settings_table("Environment", runs, [run.environment for run in runs])
    return Part(
        id=name,
        title=title,
        runs=runs,
        tiles=list(zip(names, cells[0], strict=True)) if len(runs) == 1 else [],
        overview=overview(runs) if len(runs) > 1 else None,
        scores=score_table(runs),
        intervals=score_intervals(runs),
        classes=class_views(runs),
        beside=beside_published(runs),
        curves=curves(runs),
        deltas=delta_views(runs, found),
        sizes=size_charts(runs, found),
        examples=[(run, each, _change_table(each)) for run, each in examples],
        settings=[settings_table("Recipe", runs, [run.recipe for run in runs]), environments],
    )


def _change_table(examples: Examples) -> Table:
    """How many records of each test changed how."""
    kinds = [change for change in CHANGES if any(change in counts for counts in examples.counts.values())]
    rows = [
        Row([Cell(test), *(Cell(f"{counts.get(kind, 0):,}", sort=counts.get(kind, 0)) for kind in kinds)])
        for test, counts in examples.counts.items()
    ]
    return Table("Records by test and change", ["test", *kinds], rows)
