"""Tables of studies: what each method scored with its best learning rate, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median, stdev

from neuroada.measure.record import Record
from neuroada.report.rows import machine_text, source_text
from neuroada.report.study_rows import FEW, StudyResults, StudyRow, studies_of
from neuroada.report.text import NONE, NOT_MEASURED, markdown, mebibytes, seconds_text


def study_table(records: Sequence[Record]) -> str:
    """One table for each study, and of many tests another one with each."""
    return "\n\n".join(_study(study) for study in studies_of(records)) or NOT_MEASURED


def study_header(study: StudyResults) -> list[str]:
    """Of the table that `study_cells` fills."""
    axis = [] if study.axis is None else [study.axis]
    tests = study.tests
    titles = [tests[name] for name in study.shown]
    return ["method", *axis, "trained", "learning rate", *titles, "held-out loss", "training", "peak memory"]


def study_cells(study: StudyResults, row: StudyRow) -> list[str]:
    """Of one row."""
    names = [row.method, *([] if row.point is None else [f"{row.point:g}"])]
    best, tests = row.best, study.shown
    if not best:
        return [*names, row.cells[0].status, NONE, *(NONE for _ in tests), NONE, NONE, NONE]
    tried = [f"{rate:g}{'' if trained else ' (failed)'}" for rate, trained in row.tried.items()]
    trained = best[0].measurements["trained_parameters"].p50
    return [
        *names,
        f"{trained:,.0f}",
        f"{best[0].settings['learning_rate']:g} of {', '.join(tried)}",
        *(spread_text(row.values(name)) for name in tests),
        spread_text(row.losses),
        seconds_text(median(cell.measurements["training_time"].p50 for cell in best)),
        mebibytes(row.peak_memory),
    ]


def spread_text(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return NONE
    if len(values) == 1:
        return f"{values[0]:.3f} (one seed)"
    return f"{mean(values):.3f} ± {stdev(values):.3f} ({len(values)} seeds)"


def study_heading(study: StudyResults) -> str:
    """What was trained, where and when."""
    cells = study.cells
    first, machines = cells[0], dict.fromkeys(machine_text(cell.machine) for cell in cells)
    sentences = []
    if any(len(row.tried) > 1 for row in study.rows):
        sentences.append("Learning rate chosen on the held-out part with the first seed, of equal ones the lowest.")
    if any(len(row.best) > 1 for row in study.rows):
        sentences.append("Mean ± standard deviation over seeds, the median of training times, the most memory.")
    return " ".join(
        [
            f"recipe {first.notes['recipe']}, {first.shape.name}, {first.dtype}. {'; '.join(machines)}; "
            f"{source_text(cells)}.",
            *sentences,
        ]
    )


def _study(study: StudyResults) -> str:
    table = markdown(study_header(study), [study_cells(study, row) for row in study.rows])
    parts = [f"**{study.name}**: {study_heading(study)}", table]
    if len(study.tests) > FEW:
        parts += ["Each test, mean over seeds:", _each_test(study)]
    return "\n\n".join(parts)


def _each_test(study: StudyResults) -> str:
    rows = []
    for row in study.rows:
        means = [row.mean(name) for name in study.tests]
        rows.append([row.label, *(NONE if value is None else f"{value:.3f}" for value in means)])
    return markdown(["method", *study.tests], rows)
