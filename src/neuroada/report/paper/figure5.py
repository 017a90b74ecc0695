"""The paper's Figure 5: training memory and speed of NeuroAda, mask-based and full fine-tuning, batch 2.

The paper's mask-based method has optimiser states for whole weights; the form without them stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuroada.measure.record import Record
from neuroada.report.rows import Group, Row, grouped, machine_text
from neuroada.report.text import NOT_MEASURED, markdown, mebibytes

MODELS = {"RoBERTa-base": 12, "RoBERTa-large": 24, "LLaMA-7B": 32, "Llama-3-8B": 32}
"""The models of the figure with all their layers; measurements of fewer do not belong in it."""
METHODS = ("neuroada", "mask", "mask-compact", "full")
BATCH = 2
CLAIM = (
    "The paper (H100, batch 2) says: up to 60 % less memory than the mask-based method on LLaMA3-8B, and 16.6 samples "
    "per second against 1.1, 15 times as many. It draws the other values without printing them."
)


@dataclass(frozen=True)
class Point:
    """One method on one model; None is not measured, and `failure` says why if it was tried."""

    model: str
    method: str
    memory: float | None = None
    samples_per_second: float | None = None
    failure: str | None = None


def figure5_points(records: Sequence[Record]) -> tuple[list[Point], list[Group]]:
    """What the figure shows, and the groups of records that it comes from: for each model the one with most methods,
    on a GPU rather than on a CPU."""
    points, sources = [], []
    for model, layers in MODELS.items():
        groups = [
            group
            for group in grouped(record for record in records if record.kind == "step" and record.batch == BATCH)
            if group.newest.shape.name == model and group.newest.shape.sizes.get("layers") == layers
        ]
        best = max(groups, key=_rank, default=None)
        if best is not None:
            sources.append(best)
        points += [_point(model, method, best) for method in METHODS]
    return points, sources


def _rank(group: Group) -> tuple[bool, int, str]:
    there = {row.method for row in group.rows} & set(METHODS)
    return not group.newest.machine.device.startswith("cpu"), len(there), group.newest.created


def _point(model: str, method: str, group: Group | None) -> Point:
    rows = [row for row in group.rows if row.method == method] if group else []
    if not rows:
        return Point(model, method)
    row = min(rows, key=lambda row: row.settings.get("k", 0))
    time = row.p50("step_time")
    return Point(model, method, row.p50("peak_memory"), BATCH / time if time else None, row.failure)


def figure5_table(records: Sequence[Record]) -> str:
    """The figure's values, the machines that they are from, and what the paper prints."""
    points, sources = figure5_points(records)
    labels = [Row(method, {}).label for method in METHODS]
    header = ("model", *(f"{label}, memory" for label in labels), *(f"{label}, samples/s" for label in labels))
    rows = []
    for model in MODELS:
        own = [point for point in points if point.model == model]
        memory = [mebibytes(point.memory) if point.memory else _absent(point) for point in own]
        speed = [f"{p.samples_per_second:.3g}" if p.samples_per_second else _absent(p) for p in own]
        rows.append([model, *memory, *speed])
    where = [
        f"{group.newest.shape.name}: {machine_text(group.newest.machine)}, {group.newest.sequence} tokens, "
        f"{group.newest.dtype}, {group.newest.created[:10]}."
        for group in sources
    ]
    return "\n\n".join([markdown(header, rows), *([" ".join(where)] if where else []), CLAIM])


def _absent(point: Point) -> str:
    return point.failure.split(":")[0] if point.failure else NOT_MEASURED.rstrip(".").lower()
