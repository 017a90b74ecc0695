"""Tables of a report: what was run, what it scored and cost, how it was set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuroada.report.html.run import Run, Score
from neuroada.report.text import NONE
from neuroada.run_folder.summary import bytes_text, difference_text


@dataclass(frozen=True)
class Cell:
    """A text with something smaller below it. sort: the value that it is sorted by, where that is a number."""

    text: str
    detail: str = ""
    sort: float | None = None


EMPTY = Cell(NONE)


@dataclass(frozen=True)
class Row:
    """kind: "", "ours" or "differs". colour: of the run that it is about."""

    cells: list[Cell]
    kind: str = ""
    colour: int | None = None


@dataclass(frozen=True)
class Table:
    """The first cell of each row is its heading."""

    title: str
    header: list[str]
    rows: list[Row]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers."""
        return [any(row.cells[column].sort is not None for row in self.rows) for column in range(len(self.header))]


def facts(runs: Sequence[Run]) -> tuple[list[str], list[list[Cell]]]:
    """Names of what is known of these runs, and for each run the values."""
    found = {name: [fact(run) for run in runs] for name, fact in FACTS.items()}
    known = {name: cells for name, cells in found.items() if any(cells)}
    return list(known), [[cells[number] or EMPTY for cells in known.values()] for number in range(len(runs))]


def overview(runs: Sequence[Run]) -> Table:
    """The facts of several runs, a row each."""
    names, cells = facts(runs)
    rows = [
        Row([Cell(run.name), *each], colour=number) for number, (run, each) in enumerate(zip(runs, cells, strict=True))
    ]
    return Table("Runs", ["run", *names], rows)


@dataclass(frozen=True)
class ScoreColumn:
    """The scores of one run "before" or "after" training, by test. colour: of the run; None where it is of all runs."""

    title: str
    scores: dict[str, Score]
    colour: int | None
    when: str


def score_columns(runs: Sequence[Run]) -> list[ScoreColumn]:
    """Run by run; what all of several runs scored before training stands once, in front."""
    alone = len(runs) == 1
    of_run = {when: [{s.name: s for s in run.scores.get(when, [])} for run in runs] for when in ("before", "after")}
    first = of_run["before"][0]
    shared = not alone and bool(first) and all(each == first for each in of_run["before"])
    columns = [ScoreColumn("before training", first, None, "before")] if shared else []
    for number, run in enumerate(runs):
        for when in ("before", "after"):
            title, scores = f"{when} training" if alone else f"{run.name}, {when}", of_run[when][number]
            if scores and not (shared and when == "before"):
                columns.append(ScoreColumn(title, scores, number, when))
    return columns


def score_table(runs: Sequence[Run]) -> Table | None:
    """Tests downwards, runs to the right."""
    columns = score_columns(runs)
    examples = {name: score for column in columns for name, score in column.scores.items()}
    if not examples:
        return None
    change = len(columns) == 2 and len(runs) == 1
    rows = []
    for name, example in examples.items():
        scores = [column.scores.get(name) for column in columns]
        cells = [_score_cell(score) for score in scores] + ([_change(*scores)] if change else [])
        counts = {score.count for score in scores if score is not None}
        records = Cell("–".join(f"{count:,}" for count in sorted(counts)), sort=max(counts))
        guesses = {score.majority for score in scores if score is not None and score.majority is not None}
        guess = f"always the most frequent answer: {'–'.join(map(percent, sorted(guesses)))}" if guesses else ""
        detail = "; ".join(filter(None, [example.metric, guess, example.note]))
        rows.append(Row([Cell(name, detail), *cells, records]))
    titles = [column.title for column in columns] + (["change"] if change else [])
    return Table("Scores", ["test", *titles, "records"], rows)


def _change(before: Score | None, after: Score | None) -> Cell:
    if before is None or after is None:
        return EMPTY
    change = 100 * (after.value - before.value)
    return Cell(f"{change:+.1f}", sort=change)


def _score_cell(score: Score | None) -> Cell:
    return EMPTY if score is None else Cell(percent(score.value), interval_text(score), 100 * score.value)


def settings_table(title: str, runs: Sequence[Run], contents: Sequence[Mapping[str, Any]]) -> Table:
    """Every value by its dotted key, a column each run; rows whose values differ are of kind "differs"."""
    flat = [dict(flattened(content)) for content in contents]
    keys: list[str] = []
    for each in flat:
        place = -1
        for key in each:
            if key not in keys:
                keys.insert(place + 1, key)
            place = keys.index(key)
    rows = []
    for key in keys:
        texts = [each.get(key, NONE) for each in flat]
        rows.append(Row([Cell(key), *map(Cell, texts)], "differs" if len(set(texts)) > 1 else ""))
    return Table(title, ["key", *(["value"] if len(runs) == 1 else [run.name for run in runs])], rows)


def flattened(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of nested mappings."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value_text(value)


def value_text(value: Any) -> str:
    """A setting as a person writes it."""
    if value is None or value in ({}, []):
        return NONE
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def percent(value: float) -> str:
    """A fraction or correlation times 100."""
    return f"{100 * value:.1f}"


def share_text(value: float, decimals: int) -> str:
    """A fraction in percent, with a space that does not break."""
    return f"{100 * value:.{decimals}f}\N{NO-BREAK SPACE}%"


def interval_text(score: Score) -> str:
    """Its 95 % interval."""
    return f"[{percent(score.low)}, {percent(score.high)}]"


def duration_text(seconds: float) -> str:
    """In the units that fit."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def main_score(run: Run, when: str) -> Score | None:
    """The task's average, or else the first score."""
    scores = run.scores.get(when, [])
    return next((score for score in scores if run.is_average(score)), scores[0] if scores else None)


def _state(run: Run) -> Cell | None:
    if run.summary is not None:
        return None
    return Cell("unfinished", f"last recorded step: {run.steps[-1].step:,}" if run.steps else "no step recorded")


def _learning_rate(run: Run) -> Cell | None:
    rate, seed = (run.recipe.get("training") or {}).get("learning_rate"), run.recipe.get("seed")
    if not isinstance(rate, (int, float)):
        return None
    return Cell(f"{rate:g}", "" if seed is None else f"seed {seed}", rate)


def _score(run: Run) -> Cell | None:
    before, after = main_score(run, "before"), main_score(run, "after")
    if after is None:
        return None if before is None else Cell(NONE, f"{before.name}; before: {percent(before.value)}")
    parts = [f"{interval_text(after)} {after.name}, {after.metric}"]
    if before is not None and before.name == after.name:
        parts.append(f"before: {percent(before.value)} {interval_text(before)}")
    return Cell(percent(after.value), "; ".join([*parts, *filter(None, [after.note])]), 100 * after.value)


def _held_out(name: str, text: Callable[[float], str]) -> Callable[[Run], Cell | None]:
    def fact(run: Run) -> Cell | None:
        before, after = (getattr(run.evaluated(when), name, None) for when in ("before", "after"))
        detail = "" if before is None else f"before: {text(before)}"
        if after is None:
            return Cell(NONE, detail) if detail else None
        return Cell(text(after), detail, after)

    return fact


def _perplexity(run: Run) -> Cell | None:
    losses = (getattr(run.evaluated(when), "loss", None) for when in ("after", "before"))
    after, before = (None if loss is None or loss >= 700 else math.exp(loss) for loss in losses)
    if run.task != "text" or after is None:
        return None
    return Cell(f"{after:.2f}", "" if before is None else f"before: {before:.2f}", after)


def _trained(run: Run) -> Cell | None:
    summary = run.summary
    if summary is None or summary.trainable_parameters is None:
        return None
    trained, whole = summary.trainable_parameters, summary.parameters
    return Cell(f"{trained:,}", f"{share_text(trained / whole, 3)} of {whole:,} parameters" if whole else "", trained)


def _time(run: Run) -> Cell | None:
    summary = run.summary
    if summary is None or (summary.training_seconds is None and summary.seconds is None):
        return None
    training, whole = summary.training_seconds, summary.seconds
    steps = "" if summary.steps is None else f"{summary.steps:,} steps"
    if training is None:
        return Cell(duration_text(whole or 0.0), f"whole run; {steps}", whole)
    rest = "" if whole is None else f"whole run {duration_text(whole)}"
    return Cell(duration_text(training), "; ".join(filter(None, [steps, rest])), training)


def _measured(name: str, text: Callable[[Any], str], detail: str = "") -> Callable[[Run], Cell | None]:
    def fact(run: Run) -> Cell | None:
        value = getattr(run.summary, name, None)
        return None if value is None else Cell(text(value), getattr(run.summary, detail, ""), value)

    return fact


def _samples(run: Run) -> Cell | None:
    """Where samples have no tokens."""
    tokens = getattr(run.summary, "tokens_per_second", None)
    return None if tokens is not None else _measured("samples_per_second", lambda value: f"{value:,.1f}")(run)


def _merged(run: Run) -> Cell | None:
    merge = None if run.summary is None else run.summary.merge
    if merge is None:
        return None
    if merge.equal:
        return Cell("bit for bit", f"{merge.logits:,} logits of a held-out batch", 1.0)
    return Cell("not bit for bit", difference_text(merge.model_dump()), 0.0)


FACTS: dict[str, Callable[[Run], Cell | None]] = {
    "state": _state,
    "method": lambda run: Cell(run.method),
    "model": lambda run: Cell(run.model_name, run.dtype),
    "learning rate": _learning_rate,
    "score": _score,
    "held-out loss": _held_out("loss", "{:.4f}".format),
    "held-out score": _held_out("score", percent),
    "perplexity": _perplexity,
    "trained": _trained,
    "training": _time,
    "tokens a second": _measured("tokens_per_second", lambda value: f"{value:,.0f}"),
    "samples a second": _samples,
    "peak memory": _measured("peak_memory_bytes", bytes_text, "peak_memory_of"),
    "saved": _measured("adapter_bytes", bytes_text),
    "merged equals adapted": _merged,
}
"""By name, in order; None where it does not apply."""
