"""What an image classifier took each class for, before and after training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from neuroada.report.html.charts import LETTER, RIGHT, TOP, Cell, HeatMap
from neuroada.report.html.examples import Answer
from neuroada.report.html.run import Run, read_lines
from neuroada.report.html.tables import EMPTY, Row, Table, percent
from neuroada.report.html.tables import Cell as TableCell

MOST_CLASSES = 40
"""In a matrix; of more of them the confusions are listed. A choice: 6 pixels each on a phone."""

WIDEST, COUNTED = 26.0, 13.0
"""Side of a cell at most, and from which on it has room for a count."""

LETTERS = 16
"""Of a class's name beside a matrix."""

PAIRS = 20
"""Confusions that are listed, most frequent first."""

Counts = Counter[tuple[str, str]]


@dataclass(frozen=True)
class ClassView:
    """One run's classes. matrix: none where there are too many; pairs: confusions, then."""

    run: Run
    colour: int
    table: Table
    matrix: HeatMap | None
    pairs: Table | None


def class_views(runs: Sequence[Run]) -> list[ClassView]:
    """Of runs on images whose answers are there.

    Raises:
        ConfigError: a line of the answers is broken; the message names file and line.
    """
    views = []
    for number, run in enumerate(runs):
        counts = {when: _counts(run, when) for when in ("before", "after")} if run.task == "images" else {}
        if any(counts.values()):
            views.append(_view(run, number, counts))
    return views


def _counts(run: Run, when: str) -> Counts:
    """How often each class (first) was taken for which (second)."""
    answers = read_lines(run.path / f"answers-{when}.jsonl", Answer)
    return Counter((str(each.answer), str(each.generated)) for each in answers)


def _view(run: Run, colour: int, counts: dict[str, Counts]) -> ClassView:
    when = "after" if counts["after"] else "before"
    shown = counts[when]
    seen = {name for each in counts.values() for pair in each for name in pair}
    labels = run.environment.get("labels")
    order = [str(name) for name in labels] if isinstance(labels, list) else []
    names = [name for name in order if name in seen] + sorted(seen - set(order))
    table = _table(names, counts)
    if len(names) > MOST_CLASSES:
        return ClassView(run, colour, table, None, _pairs(shown))
    return ClassView(run, colour, table, confusion_matrix(f"Confusion matrix, {when} training", names, shown), None)


def _table(names: Sequence[str], counts: dict[str, Counts]) -> Table:
    times = [when for when, found in counts.items() if found]
    rows = []
    for name in names:
        last = _of_class(counts[times[-1]], name)
        total = sum(last.values())
        wrong = [(count, other) for other, count in last.items() if other != name]
        most = max(wrong, default=None, key=lambda pair: (pair[0], pair[1]))
        mistaken = EMPTY if most is None else TableCell(most[1], f"{most[0]:,} of {total:,}")
        accuracies = [_accuracy(_of_class(counts[when], name), name) for when in times]
        rows.append(Row([TableCell(name), TableCell(f"{total:,}", sort=total), *accuracies, mistaken]))
    header = ["class", "pictures", *(f"{when} training" for when in times), "most often mistaken for"]
    return Table("Accuracy by class in percent", header, rows)


def _of_class(counts: Counts, name: str) -> dict[str, int]:
    return {other: count for (true, other), count in counts.items() if true == name}


def _accuracy(taken_for: dict[str, int], name: str) -> TableCell:
    """With Wilson's 95 % interval."""
    total, right = sum(taken_for.values()), taken_for.get(name, 0)
    if not total:
        return EMPTY
    low, high = binomtest(right, total).proportion_ci(0.95, method="wilson")
    return TableCell(percent(right / total), f"[{percent(low)}, {percent(high)}]", 100 * right / total)


def _pairs(counts: Counts) -> Table:
    totals = Counter[str]()
    for (true, _), count in counts.items():
        totals[true] += count
    wrong = sorted((-count, true, other) for (true, other), count in counts.items() if true != other)
    rows = [
        Row([TableCell(true), TableCell(other), TableCell(f"{-count:,}", f"of {totals[true]:,}", -count)])
        for count, true, other in wrong[:PAIRS]
    ]
    return Table("Most frequent confusions", ["class", "taken for", "pictures"], rows)


def confusion_matrix(title: str, names: Sequence[str], counts: Counts) -> HeatMap:
    """True classes downwards, what they were taken for to the right; the colour is the share of the true class."""
    short = [name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…" for name in names]
    longest = max(map(len, short))
    left = max(30.0, LETTER * longest + 8)
    side = min(WIDEST, (RIGHT - left) / len(names))
    cells = []
    for row, true in enumerate(names):
        total = sum(_of_class(counts, true).values())
        for column, other in enumerate(names):
            count = counts[true, other]
            if count or true == other:
                place = round(left + side * column, 1), round(TOP + side * row, 1)
                what = f"{true}, rightly" if true == other else f"{true}, taken for {other}"
                text = f"{count}" if side >= COUNTED and count else ""
                cells.append(Cell(*place, round(count / max(1, total), 3), f"{what}: {count:,} of {total:,}", text))
    middles = [(round(side * (number + 0.5), 1), name) for number, name in enumerate(short)]
    bottom = round(TOP + side * len(names), 1)
    return HeatMap(
        title,
        cells,
        round(side, 1),
        round(side, 1),
        [(round(TOP + middle, 1), name) for middle, name in middles],
        [(round(left + middle, 1), name) for middle, name in middles],
        round(left, 1),
        bottom,
        round(bottom + 0.7 * LETTER * longest + 14, 1),
        ("0\N{NO-BREAK SPACE}%", "100\N{NO-BREAK SPACE}% of the class"),
        "true class downwards and predicted class to the right",
    )
