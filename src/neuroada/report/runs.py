"""Tables of finished runs: what each trained, what it cost, and what it scored before and after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuroada.measure.record import Record, RecordedScore
from neuroada.report.rows import machine_text, source_text
from neuroada.report.text import NONE, NOT_MEASURED, markdown, mebibytes, seconds_text

COSTS = ("run", "model", "method", "trained", "steps", "held-out loss", "training", "peak")
SCORES = ("run", "test", "metric", "records", "most frequent answer", "before", "after")


def run_table(records: Sequence[Record]) -> str:
    """For each machine a table of costs and one of scores; of runs with the same name the newest."""
    machines: dict[str, dict[str, Record]] = {}
    for record in sorted(records, key=lambda record: record.created):
        if record.kind == "run":
            machines.setdefault(machine_text(record.machine), {})[record.notes["run"]] = record
    return "\n\n".join(_of_machine(name, list(runs.values())) for name, runs in machines.items()) or NOT_MEASURED


def _of_machine(machine: str, runs: list[Record]) -> str:
    costs, scores = markdown(COSTS, map(_cost, runs)), markdown(SCORES, [row for run in runs for row in _scores(run)])
    notes = "".join(f"\n\n{note}" for note in dict.fromkeys(_notes(runs)))
    intervals = "In brackets, the 95 % interval over the test's records."
    return f"{machine}; {source_text(runs)}.\n\n{costs}\n\n{scores}\n\n{intervals}{notes}"


def _cost(run: Record) -> list[str]:
    found = {name: measurement.p50 for name, measurement in run.measurements.items()}
    settings = ", ".join(f"{name}={value}" for name, value in run.settings.items())
    return [
        run.notes["run"],
        f"{run.shape.name}, {run.dtype}",
        run.method + (f" ({settings})" if settings else ""),
        f"{found['trained_parameters']:,.0f} ({found['trained_parameters'] / found['parameters']:.3%})",
        f"{found['steps']:,.0f}",
        " → ".join(
            f"{found[name]:.3f}" if name in found else NONE for name in ("held_out_loss_before", "held_out_loss")
        ),
        seconds_text(found["training_time"]),
        mebibytes(found["peak_memory"]),
    ]


def _scores(run: Record) -> Iterable[list[str]]:
    by_name: dict[str, dict[str, RecordedScore]] = {}
    for score in run.scores:
        by_name.setdefault(score.name, {})[score.when] = score
    for name, both in by_name.items():
        some = next(iter(both.values()))
        marked = f"{name} †" if some.note else name
        texts = [_score_text(both.get(when)) for when in ("before", "after")]
        majority = NONE if some.majority is None else f"{some.majority:.3f}"
        yield [run.notes["run"], marked, some.metric, f"{some.count:,}", majority, *texts]


def _score_text(score: RecordedScore | None) -> str:
    return NONE if score is None else f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _notes(runs: Iterable[Record]) -> Iterable[str]:
    return (f"† {score.name}: {score.note}." for run in runs for score in run.scores if score.note)
