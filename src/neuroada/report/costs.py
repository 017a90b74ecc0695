"""Tables of plans against measurements, of switching, and of choosing supports."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neuroada.measure.record import Record
from neuroada.report.rows import Group, Row, grouped, machine_text, source_text
from neuroada.report.text import NONE, NOT_MEASURED, markdown, mebibytes, ratio_text, seconds_text

PLAN_HEADER = ("method", "batch", "planned", "measured", "planned / measured", "malloc as it is")
SWITCH_HEADER = ("adapters", "switch", "load", "share", "quick load", "share", "switch while held")
"""Each share is that of a switch in the load before it."""

SELECT_HEADER = ("strategy", "one block", "all blocks", "peak memory")
CALIBRATE_HEADER = ("method", "held at a time", "peak memory", "to dense", "indices", "other than by dense", "time")


def plan_table(records: Sequence[Record]) -> str:
    """Planned and measured peaks of training, each method and batch size."""
    found: dict[tuple[str, str, int | None, str], list[Group]] = {}
    for group in grouped(record for record in records if record.kind == "plan"):
        newest = group.newest
        key = newest.shape.name, newest.dtype, newest.sequence, machine_text(newest.machine)
        found.setdefault(key, []).append(group)
    return "\n\n".join(_plans(groups) for groups in found.values()) or NOT_MEASURED


def _plans(groups: list[Group]) -> str:
    rows = [(row.label, group.newest.batch or 0, row) for group in groups for row in group.rows]
    rows.sort(key=lambda each: each[:2])
    records = [record for group in groups for record in group.records]
    sequence = records[-1].sequence
    heading = f"{_heading('Plans for', records)} Sequences of {sequence} tokens; {records[-1].notes['measured']}."
    return f"{heading}\n\n{markdown(PLAN_HEADER, [plan_cells(row, batch) for _, batch, row in rows])}"


def plan_cells(row: Row, batch: int) -> list[str]:
    """The cells of one row of PLAN_HEADER."""
    if row.failure is not None:
        return [row.label, str(batch), row.failure, NONE, NONE, NONE]
    ratio = ratio_text(row.measurements.get("planned_to_measured"))
    sizes = [mebibytes(row.p50(name)) for name in ("planned", "measured", "measured_by_default")]
    return [row.label, str(batch), sizes[0], sizes[1], ratio, sizes[2]]


def switch_table(records: Sequence[Record]) -> str:
    """Switching between two adapters against loading one."""
    return _each(records, "switch", "Switching on", SWITCH_HEADER, lambda group: [switch_cells(r) for r in group.rows])


def switch_cells(row: Row) -> list[str]:
    """The cells of one row of SWITCH_HEADER."""
    if row.failure is not None:
        return [row.label, row.failure, *([NONE] * (len(SWITCH_HEADER) - 2))]
    times = {name: seconds_text(row.p50(name)) for name in ("switch", "load", "load_without_choosing", "switch_held")}
    shares = [_percent(row.p50(f"switch_to_{name}")) for name in ("load", "load_without_choosing")]
    return [
        *(row.label, times["switch"], times["load"], shares[0]),
        *(times["load_without_choosing"], shares[1], times["switch_held"]),
    ]


def select_table(records: Sequence[Record]) -> str:
    """Time and memory of choosing supports, by strategy and k."""
    return _each(records, "select", "Choosing in", SELECT_HEADER, select_rows)


def select_rows(group: Group) -> list[list[str]]:
    """The cells of SELECT_HEADER."""
    blocks = group.newest.shape.sizes.get("layers", 1)
    rows = []
    for row in group.rows:
        time = row.p50("time")
        whole = None if time is None else blocks * time
        cells = [seconds_text(time), seconds_text(whole), mebibytes(row.p50("peak_memory"))]
        rows.append([row.label, *cells] if row.failure is None else [row.label, row.failure, NONE, NONE])
    return rows


def calibrate_table(records: Sequence[Record]) -> str:
    """Choosing by gradients a few layers at a time, against dense gradients of all weights."""
    return _each(records, "calibrate", "Choosing by gradients in", CALIBRATE_HEADER, calibrate_rows)


def calibrate_rows(group: Group) -> list[list[str]]:
    """The cells of CALIBRATE_HEADER."""
    rows = []
    for row in group.rows:
        if row.failure is not None:
            rows.append([row.method, row.failure, *([NONE] * (len(CALIBRATE_HEADER) - 2))])
            continue
        counts = [row.p50(name) for name in ("indices", "other_indices")]
        rows.append(
            [
                row.label,
                mebibytes(row.settings.get("max_memory")),
                mebibytes(row.p50("peak_memory")),
                ratio_text(row.measurements.get("memory_to_dense")),
                *(NONE if count is None else f"{count:,.0f}" for count in counts),
                seconds_text(row.p50("time")),
            ]
        )
    return rows


def _each(
    records: Sequence[Record],
    kind: str,
    title: str,
    header: Sequence[str],
    rows: Callable[[Group], list[list[str]]],
) -> str:
    groups = grouped(record for record in records if record.kind == kind)
    tables = [f"{_heading(title, group.records)}\n\n{markdown(header, rows(group))}" for group in groups]
    return "\n\n".join(tables) or NOT_MEASURED


def _heading(title: str, records: Sequence[Record]) -> str:
    record = records[-1]
    return f"**{title} {record.shape.name}**, {record.dtype}. {machine_text(record.machine)}; {source_text(records)}."


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.2%}"
