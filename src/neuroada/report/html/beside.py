"""Our scores among the published ones of the same tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuroada.report.html.run import Run, Score
from neuroada.report.html.tables import EMPTY, Cell, Row, Table, interval_text, percent, share_text
from neuroada.report.paper.published import TASKS, Found, find, model_key


@dataclass(frozen=True)
class Beside:
    """sentences: what must be known to read the table. notes: what its sources have wrong or unclear."""

    table: Table
    sentences: list[str]
    notes: list[str]


def beside_published(runs: Sequence[Run]) -> Beside | None:
    """None where nothing published is of these tests."""
    ours = [run for run in runs if run.scores.get("after")]
    if not ours or runs[0].task not in TASKS:
        return None
    family = runs[0].task
    there = {score.name for run in ours for score in run.scores["after"]}
    tests = [test for test in TASKS[family] if test in there]
    keys = {model_key(run.model) for run in ours}
    found = [each for each in find(family=family) if set(tests) & set(each.row.scores)]
    found.sort(key=lambda each: model_key(each.table.model) not in keys)
    if not found:
        return None
    averaged = any(run.is_average(score) for run in ours for score in run.scores["after"])
    rows = [_our_row(run, number, tests, averaged) for number, run in enumerate(runs) if run in ours]
    rows += [_published_row(each, tests, averaged) for each in found]
    header = ["method", "model", "trained", *tests, *(["average"] if averaged else [])]
    table = Table("Published scores, ours first", header, rows)
    return Beside(table, _sentences(ours, found, tests, averaged), _notes(found))


def _our_row(run: Run, colour: int, tests: Sequence[str], averaged: bool) -> Row:
    scores = {score.name: score for score in run.scores["after"]}
    average = next((score for score in run.scores["after"] if run.is_average(score)), None)
    cells = [_ours(scores.get(test)) for test in tests] + ([_ours(average)] if averaged else [])
    return Row([Cell(run.method, f"ours: {run.name}"), Cell(run.model_name), _share(run), *cells], "ours", colour)


def _ours(score: Score | None) -> Cell:
    if score is None:
        return EMPTY
    return Cell(percent(score.value) + ("†" if score.note else ""), interval_text(score), 100 * score.value)


def _share(run: Run) -> Cell:
    summary = run.summary
    if summary is None or not summary.trainable_parameters or not summary.parameters:
        return EMPTY
    share = summary.trainable_parameters / summary.parameters
    return Cell(share_text(share, 3), sort=100 * share)


def _published_row(found: Found, tests: Sequence[str], averaged: bool) -> Row:
    table, row = found
    cells = []
    for test in tests:
        score = row.scores.get(test)
        spread = f"± {row.spread[test]:g}" if test in row.spread else ""
        cells.append(EMPTY if score is None else Cell(f"{score:.{row.decimals}f}", spread, score))
    mark = "*" if row.note else ""
    average = [Cell(f"{row.average:.{row.decimals}f}{mark}", sort=row.average)] if averaged else []
    share = (
        EMPTY
        if row.trained_percent is None
        else Cell(share_text(row.trained_percent / 100, 3), sort=row.trained_percent)
    )
    if row.trained_percent is None and row.trained_parameters is not None:
        share = Cell(f"{row.trained_parameters:,} values")
    source = f"{table.source}, {table.table}" + (f", from {row.taken_from}" if row.taken_from else "")
    return Row([Cell(row.label + ("" if averaged else mark), source), Cell(table.model), share, *cells, *average])


def _sentences(ours: Sequence[Run], found: Sequence[Found], tests: Sequence[str], averaged: bool) -> list[str]:
    models = list(dict.fromkeys(each.table.model for each in found))
    keys = {model_key(model) for model in models}
    other = list(dict.fromkeys(run.model_name for run in ours if model_key(run.model) not in keys))
    sentences = []
    if other:
        sentences.append(
            f"The models differ: no published row is of {' or '.join(other)}; the rows are of {', '.join(models)}. "
            "They show what the papers report, and say nothing about which method is better on our model."
        )
    if len(other) < len({run.model_name for run in ours}):
        sentences.append("Rows of our base model come first; those below them are of other models.")
    counts = [score.count for run in ours for score in run.scores["after"] if score.name in tests]
    scored = f"{min(counts):,}" + (f" to {max(counts):,}" if max(counts) > min(counts) else "")
    sample = any((run.recipe.get("evaluation") or {}).get("records") for run in ours)
    sentences.append(f"Ours are scored on {scored} records a test{', a sample of it' if sample else ''}.")
    trainings = {run.name: _training_text(run) for run in ours}
    if len(set(trainings.values())) == 1:
        sentences.append(f"Ours are trained on {next(iter(trainings.values()))}.")
    else:
        sentences += [f"{name} is trained on {text}." for name, text in trainings.items()]
    if averaged:
        sentences.append("An average is over the tests that its row shows.")
    if any(score.note for run in ours for score in run.scores["after"]):
        sentences.append("† shares questions with the train set, in the papers too; the table of scores says how many.")
    return sentences


def _training_text(run: Run) -> str:
    data, training = run.data, run.recipe.get("training") or {}
    records = data.get("train_records")
    what = data.get("train_set") or data.get("name") or run.task
    length = training.get("num_train_epochs")
    for_long = (
        f"{length:g} epoch{'' if length == 1 else 's'}"
        if isinstance(length, (int, float))
        else f"{training.get('max_steps')} steps"
    )
    which = f"{records:,} records" if isinstance(records, int) else "all records"
    return f"{which} of {what}, {for_long}"


def _notes(found: Sequence[Found]) -> list[str]:
    notes = []
    for table, row in found:
        where = f"{table.source}, {table.table}, {table.model}"
        notes += [f"{where}: {table.note}"] if table.note else []
        notes += [f"* {where}, {row.label}: {row.note}"] if row.note else []
    return list(dict.fromkeys(notes))
