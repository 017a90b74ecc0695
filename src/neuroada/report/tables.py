"""Records to Markdown tables, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from neuroada.measure.record import Record
from neuroada.report.costs import calibrate_table, plan_table, select_table, switch_table
from neuroada.report.findings import findings_text
from neuroada.report.op import op_table, product_table
from neuroada.report.paper.figure5 import figure5_table
from neuroada.report.paper.table1 import table1
from neuroada.report.rows import Group, Row, grouped, machine_text, source_text
from neuroada.report.runs import run_table
from neuroada.report.study import study_table
from neuroada.report.text import NOT_MEASURED, markdown, mebibytes, ratio_text, seconds_text

Table = Callable[[Sequence[Record]], str]


def step_table(records: Sequence[Record]) -> str:
    """Whole training steps: one table for each model, batch, dtype and machine, the fastest method first."""
    groups = grouped(record for record in records if record.kind == "step")
    return "\n\n".join(_step_group(group) for group in groups) or NOT_MEASURED


def step_rows(group: Group) -> list[list[str]]:
    """The cells of a step table, the fastest method first and failures last."""
    rows = sorted(group.rows, key=lambda row: (row.p50("ratio_to_frozen") is None, row.p50("ratio_to_frozen") or 0))
    return [_step_cells(row, group) for row in rows]


CODE_WORTH_SAYING = 2**23
"""Bytes of imported and compiled code from which a table tells them apart: they are the same for every model."""

STEP_HEADER = ("method", "step", "to the frozen limit", "to LoRA", "memory over the limit", "trained")


def _step_group(group: Group) -> str:
    record = group.newest
    layers = record.shape.sizes.get("layers")
    where = f"{record.shape.name}" + (f" ({layers} layers)" if layers else "")
    rounds = max((row.measurements["step_time"].n for row in group.rows if "step_time" in row.measurements), default=0)
    heading = (
        f"**{where}**, {record.batch} × {record.sequence} tokens, {record.dtype}. {machine_text(record.machine)}; "
        f"medians of {rounds} rounds [20th–80th percentile]; {source_text(group.shown)}."
    )
    return f"{heading}\n\n{markdown(STEP_HEADER, step_rows(group))}"


def _step_cells(row: Row, group: Group) -> list[str]:
    trained = row.p50("trained_parameters")
    cells = [
        seconds_text(row.p50("step_time")),
        ratio_text(row.measurements.get("ratio_to_frozen"), spread=True),
        ratio_text(row.measurements.get("ratio_to_lora")),
        _memory_text(row, group),
        "—" if trained is None else f"{trained:,.0f}",
    ]
    if row.failure is not None:
        cells[0] = row.failure if cells[0] == "—" else f"{cells[0]} ({row.failure})"
    return [row.label, *cells]


def _memory_text(row: Row, group: Group) -> str:
    over, code = over_frozen(row, group, "peak_memory"), over_frozen(row, group, "memory_of_code")
    text = mebibytes(over, sign=True)
    return text if over is None or code is None or code < CODE_WORTH_SAYING else f"{text} ({mebibytes(code)} code)"


def over_frozen(row: Row, group: Group, name: str) -> float | None:
    """A measurement in bytes over the frozen limit's, of the same run where it is there."""
    own = row.p50(name)
    if own is None or row.method == "frozen":
        return None
    of_run = [r.measurements.get(name) for r in group.records if r.method == "frozen" and r.run == row.runs[name]]
    limit = next((found.p50 for found in of_run if found is not None), None)
    frozen = group.find("frozen")
    if limit is None and frozen is not None:
        limit = frozen.p50(name)
    return None if limit is None else own - limit


TABLES: dict[str, Table] = {
    "step": step_table,
    "op": op_table,
    "product": product_table,
    "table1": table1,
    "figure5": figure5_table,
    "plan": plan_table,
    "switch": switch_table,
    "select": select_table,
    "calibrate": calibrate_table,
    "study": study_table,
    "findings": findings_text,
    "runs": run_table,
}
"""What `<!-- table:NAME -->` in a Markdown file can name."""


def matching(records: Iterable[Record], wanted: dict[str, str]) -> list[Record]:
    """Records that have each wanted value: of shape (its name), layers, device (its beginning), or a field."""
    return [record for record in records if all(_value(record, key, value) for key, value in wanted.items())]


def _value(record: Record, key: str, value: str) -> bool:
    if key == "device":
        kind = "cpu" if record.machine.device.startswith("cpu") else "cuda"
        return value == kind
    if key == "shape":
        return record.shape.name == value
    if key == "study":
        return record.notes.get("study") == value
    if key == "layers":
        return str(record.shape.sizes.get("layers")) == value
    return str(getattr(record, key)) == value


FILTERS = ("shape", "layers", "device", "dtype", "batch", "sequence", "method", "run", "study")
