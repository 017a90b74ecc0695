"""Tables of studies: what each method scored with its best learning rate, over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from neuroada.measure.record import Record, RecordedScore
from neuroada.report.rows import machine_text, source_text
from neuroada.report.text import NONE, NOT_MEASURED, markdown, mebibytes

FEW = 3
"""As many tests have columns of their own beside the learning rate."""


def study_table(records: Sequence[Record]) -> str:
    """One table for each study and machine, in the order in which their first cells were trained."""
    studies: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        if record.kind == "study":
            key = record.notes["study"], machine_text(record.machine)
            studies.setdefault(key, {})[record.notes["cell"]] = record
    return "\n\n".join(_study(list(cells.values())) for cells in studies.values()) or NOT_MEASURED


def _study(cells: list[Record]) -> str:
    titles = {score.name: f"{score.name}, {score.metric}" for cell in cells for score in _after(cell)}
    shown = list(titles) if len(titles) <= FEW else list(titles)[-1:]  # of many tests their average
    header = ("method", "trained", "learning rate", *(titles[name] for name in shown), "peak memory")
    first = cells[0]
    heading = (
        f"**{first.notes['study']}**: recipe {first.notes['recipe']}, {first.shape.name}, {first.dtype}. "
        f"{machine_text(first.machine)}; {source_text(cells)}. Learning rate chosen on the held-out part "
        "with the first seed; mean ± standard deviation over seeds."
    )
    methods = [list(group) for group in _by_method(cells)]
    parts = [heading, markdown(header, [_row(group, shown) for group in methods])]
    if len(titles) > FEW:
        each = [[group[0].method, *_means(best_cells(group), titles)] for group in methods]
        parts += ["Each test, mean over seeds:", markdown(["method", *titles], each)]
    return "\n\n".join(parts)


def _after(cell: Record) -> list[RecordedScore]:
    return [score for score in cell.scores if score.when == "after"]


def _values(cells: Sequence[Record], test: str) -> list[float]:
    return [score.value for cell in cells for score in _after(cell) if score.name == test]


def _means(cells: Sequence[Record], tests: Iterable[str]) -> list[str]:
    found = [_values(cells, test) for test in tests]
    return [f"{mean(values):.3f}" if values else NONE for values in found]


def _by_method(cells: Iterable[Record]) -> Iterable[list[Record]]:
    methods: dict[str, list[Record]] = {}
    for cell in cells:
        methods.setdefault(cell.method, []).append(cell)
    return methods.values()


def best_cells(cells: Sequence[Record]) -> list[Record]:
    """Those of a method's best learning rate by the held-out part with the first seed; none where all failed."""
    trained = [cell for cell in cells if cell.status == "ok"]
    if not trained:
        return []
    first = [cell for cell in trained if cell.seed == trained[0].seed]
    best = max(first, key=lambda cell: cell.measurements["selection"].p50).settings["learning_rate"]
    return [cell for cell in trained if cell.settings["learning_rate"] == best]


def _row(cells: list[Record], tests: Sequence[str]) -> list[str]:
    best = best_cells(cells)
    if not best:
        return [cells[0].method, cells[0].status, NONE, *(NONE for _ in tests), NONE]
    tried = sorted({cell.settings["learning_rate"] for cell in cells})
    rate = f"{best[0].settings['learning_rate']:g} of {', '.join(f'{each:g}' for each in tried)}"
    trained = best[0].measurements["trained_parameters"].p50
    peaks = [cell.measurements["peak_memory"].p50 for cell in best]
    return [
        best[0].method,
        f"{trained:,.0f}",
        rate,
        *(_spread(_values(best, name)) for name in tests),
        mebibytes(max(peaks)),
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return NONE
    if len(values) == 1:
        return f"{values[0]:.3f} (one seed)"
    return f"{mean(values):.3f} ± {stdev(values):.3f} ({len(values)} seeds)"
