"""Figures of scores and of training, several runs in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neuroada.report.html.charts import Chart, Intervals, Series, intervals, line_chart
from neuroada.report.html.run import HeldOut, Run
from neuroada.report.html.tables import interval_text, percent, score_columns


def score_intervals(runs: Sequence[Run]) -> Intervals | None:
    """Each test with its scores before and after; None without scores."""
    shown = score_columns(runs)
    tests = dict.fromkeys(name for column in shown for name in column.scores)
    scores = []
    for test in tests:
        marks = []
        for column in shown:
            score = column.scores.get(test)
            if score is not None:
                text = f"{test}, {column.title}: {percent(score.value)} {interval_text(score)}"
                ends = (100 * score.value, 100 * score.low, 100 * score.high)
                marks.append((text, -1 if column.colour is None else column.colour, column.when == "after", *ends))
        scores.append((test, marks))
    return intervals("Scores in percent, with 95 % intervals", scores) if scores else None


def curves(runs: Sequence[Run]) -> list[Chart]:
    """Losses, scores and learning rates over steps, as far as they were recorded."""

    def over_steps(points: Callable[[Run], list[tuple[float, float]]]) -> list[Series]:
        return [Series(run.name, number, points(run)) for number, run in enumerate(runs)]

    charts = [
        line_chart("Training loss", "step", over_steps(lambda run: [(each.step, each.loss) for each in run.steps])),
        line_chart("Held-out loss", "step", over_steps(lambda run: _held_out(run, "loss"))),
        line_chart("Held-out score in percent", "step", over_steps(lambda run: _held_out(run, "score", 100.0))),
        line_chart(
            "Learning rate",
            "step",
            over_steps(lambda run: [(s.step, s.learning_rate) for s in run.steps if s.learning_rate is not None]),
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _held_out(run: Run, name: str, unit: float = 1.0) -> list[tuple[float, float]]:
    """Step and value; before training that is step 0."""

    recorded = run.steps[-1].step if run.steps else 0
    last = recorded if run.summary is None or run.summary.steps is None else run.summary.steps

    def step(record: HeldOut) -> int:
        return record.step if record.step is not None else 0 if record.when == "before" else last

    found = [(step(record), getattr(record, name)) for record in run.held_out]
    return sorted((float(place), unit * value) for place, value in found if value is not None)
