"""Records brought together: which belong in one table, and the newest value of each measurement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from neuroada.measure.record import Machine, Measurement, Record

LABELS = {
    "frozen": "frozen limit",
    "neuroada": "NeuroAda",
    "neuroada-unheld": "NeuroAda, swapped in for each product",
    "neat": "NEAT",
    "lora": "LoRA",
    "dora": "DoRA",
    "shira": "SHiRA",
    "supertuning": "Super-Tuning",
    "peanut": "PEANuT",
    "oft": "OFT",
    "miss": "MiSS",
    "scatter": "published scatter form",
    "mask": "mask-based",
    "mask-compact": "mask-based, states of the support alone",
    "full": "full fine-tuning",
}
SHOWN_SETTINGS = ("k", "r", "sparsity", "oft_block_size")
Key = tuple[Any, ...]


@dataclass
class Row:
    """A method in one table: the newest of each of its measurements, and why there is none, if there is none.

    runs: the run that each measurement is from, by its name.
    """

    method: str
    settings: dict[str, Any]
    measurements: dict[str, Measurement] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    failure: str | None = None

    @property
    def label(self) -> str:
        """As people know the method, with the settings that tell it from others."""
        shown = [
            f"{name.removeprefix('oft_')}={self.settings[name]}" for name in SHOWN_SETTINGS if name in self.settings
        ]
        return " ".join([LABELS.get(self.method, self.method), *shown])

    def p50(self, name: str) -> float | None:
        """The median of a measurement, or None."""
        found = self.measurements.get(name)
        return None if found is None else found.p50


@dataclass
class Group:
    """Records of the same model and inputs on the same machine, oldest first, and their rows by method."""

    records: list[Record]
    rows: list[Row]

    @property
    def newest(self) -> Record:
        """The last record."""
        return self.records[-1]

    @property
    def shown(self) -> list[Record]:
        """Records of the runs that a row still takes a measurement from, or whose failure is the newest word."""
        runs = {run for row in self.rows for run in row.runs.values()}
        return [record for record in self.records if record.run in runs] or self.records

    def find(self, method: str) -> Row | None:
        """The first row of a method."""
        return next((row for row in self.rows if row.method == method), None)


def same_setting(record: Record) -> Key:
    """Equal for records whose absolute values may be compared."""
    machine = record.machine
    where = (machine.device, machine.cpu, machine.threads)
    sizes = tuple(sorted(record.shape.sizes.items()))
    return (record.kind, record.shape.name, sizes, record.batch, record.sequence, record.dtype, *where)


def grouped(records: Iterable[Record]) -> list[Group]:
    """Groups of records in the same setting, in the order in which the settings first appear."""
    by_key: dict[Key, list[Record]] = {}
    for record in records:
        by_key.setdefault(same_setting(record), []).append(record)
    return [_group(sorted(together, key=lambda record: record.created)) for together in by_key.values()]


def _group(records: list[Record]) -> Group:
    rows: dict[Key, Row] = {}
    for record in records:
        key = (record.method, tuple(sorted((name, str(value)) for name, value in record.settings.items())))
        row = rows.setdefault(key, Row(record.method, record.settings))
        row.failure = None if record.status == "ok" else f"{record.status}: {record.reason}"
        row.measurements.update(record.measurements)
        row.runs.update(dict.fromkeys(record.measurements, record.run))
    return Group(records, list(rows.values()))


def machine_text(machine: Machine) -> str:
    """Device, processor and the instructions that matter, in words."""
    if machine.device.startswith("cpu"):
        missing = [name for name, there in machine.instructions.items() if there is False]
        without = f", without {' and '.join(missing)}" if missing else ""
        return f"{machine.cpu}, {machine.threads} thread{'s' if machine.threads > 1 else ''}{without}"
    return f"{machine.device}, {machine.cpu}"


def source_text(records: Iterable[Record]) -> str:
    """When, at which commits, and with which PyTorch and PEFT."""
    records = list(records)
    days = sorted({record.created[:10] for record in records})
    commits = dict.fromkeys(_short(record.commit) for record in records if record.commit)
    packages = records[-1].machine.packages
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "peft") if name in packages)
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{when}, {versions}" + (f", commit {', '.join(commits)}" if commits else "")


def _short(commit: str) -> str:
    name, dash, rest = commit.partition("-")
    return name[:10] + dash + rest
