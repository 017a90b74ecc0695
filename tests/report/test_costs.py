"""Tables of plans, switching and choosing."""

import pytest

from neuroada.measure.record import Machine, Measurement, Record, Shape
from neuroada.report.costs import plan_table, select_table, switch_table

MACHINE = Machine(
    device="cpu, 2 threads, x86_64",
    cpu="A CPU",
    threads=2,
    instructions={"avx2": True},
    platform="Linux",
    python="3.11",
    packages={"torch": "2.13.0", "peft": "0.21.2"},
)


def record(kind: str, method: str, measurements: dict[str, tuple[float, str]], **fields) -> Record:
    return Record(
        kind=kind,
        run="run",
        created="2026-01-02T03:04:05+00:00",
        commit="0123456789abcdef",
        seed=0,
        machine=MACHINE,
        method=method,
        shape=Shape(name="SmolLM2", sizes={"layers": 30}),
        dtype="bfloat16",
        measurements={name: Measurement.count(value, unit) for name, (value, unit) in measurements.items()},
        **fields,
    )


def planned(method: str, batch: int, ratio: float) -> Record:
    measured = 100 * 2**20
    sizes = {"planned": ratio * measured, "measured": measured, "measured_by_default": 2 * measured}
    found = {name: (size, "bytes") for name, size in sizes.items()} | {"planned_to_measured": (ratio, "x")}
    notes = {"measured": "glibc's malloc, set up"}
    settings = {"k": 1} if method == "neuroada" else {}
    return record("plan", method, found, batch=batch, sequence=256, notes=notes, settings=settings)


def test_plans_of_all_batches_stand_in_one_table():
    text = plan_table([planned("neuroada", 4, 0.97), planned("full", 1, 1.02), planned("neuroada", 1, 0.98)])
    assert text.count("**Plans for SmolLM2**, bfloat16.") == 1
    assert "Sequences of 256 tokens; glibc's malloc, set up." in text
    rows = text.splitlines()[-3:]
    assert rows[0] == "| NeuroAda k=1 | 1 | 98 MiB | 100 MiB | 0.98 | 200 MiB |"
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| NeuroAda k=1", "| full fine-tuning"]
    assert rows[1].split(" | ")[1] == "4"


def test_switching_is_a_share_of_loading():
    found = {"switch": (0.01, "s"), "load": (4.0, "s"), "load_without_choosing": (1.5, "s"), "switch_held": (0.5, "s")}
    found |= {"switch_to_load": (0.0025, "x"), "switch_to_load_without_choosing": (0.01 / 1.5, "x")}
    text = switch_table([record("switch", "neuroada", found, settings={"k": 20})])
    assert text.splitlines()[-1] == "| NeuroAda k=20 | 10 ms | 4 s | 0.25% | 1.5 s | 0.67% | 500 ms |"


def test_choosing_is_shown_for_one_block_and_all():
    found = {"time": (0.2, "s"), "peak_memory": (3 * 2**20, "bytes")}
    text = select_table([record("select", "magnitude", found, settings={"k": 20})])
    assert text.splitlines()[-1] == "| magnitude k=20 | 200 ms | 6 s | 3.0 MiB |"


@pytest.mark.parametrize(("kind", "table"), [("plan", plan_table), ("switch", switch_table), ("select", select_table)])
def test_failures_stay_and_nothing_is_said_without_records(kind, table):
    assert table([]) == "Not measured."
    notes = {"measured": "glibc"}
    failed = record(kind, "neuroada", {}, status="failed", reason="it broke", notes=notes, batch=1, sequence=8)
    assert "failed: it broke" in table([failed])
