"""The records that benchmarks leave: one JSON object a line, with all that is needed to trust or repeat a number."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from neuroada.errors import ConfigError, MissingInputError

Kind = Literal["step", "op", "switch", "select", "calibrate", "plan", "study", "run"]
Status = Literal["ok", "out of memory", "not available", "failed"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measurement(_Strict):
    """The 20th, 50th and 80th percentile of n values; all three equal for a single count."""

    unit: str = Field(min_length=1)
    p20: float = Field(allow_inf_nan=False)
    p50: float = Field(allow_inf_nan=False)
    p80: float = Field(allow_inf_nan=False)
    n: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Measurement:
        if not self.p20 <= self.p50 <= self.p80:
            raise ValueError("p20 <= p50 <= p80 does not hold")
        return self

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> Measurement:
        """Percentiles of at least one value, interpolated between neighbours."""
        if len(values) == 1:
            return cls.count(values[0], unit)
        fifths, middle = quantiles(values, n=5, method="inclusive"), median(values)
        low, high = min(fifths[0], middle), max(fifths[3], middle)  # equal values may interpolate to a bit beside
        return cls(unit=unit, p20=low, p50=middle, p80=high, n=len(values))

    @classmethod
    def count(cls, value: float, unit: str) -> Measurement:
        """A value that was counted, or measured once."""
        return cls(unit=unit, p20=value, p50=value, p80=value, n=1)


class RecordedScore(_Strict):
    """A test's score with its 95 % interval over `count` records; fractions, not percent.

    when: before training or after it. note: what must be said beside it, such as that the test is contaminated.
    majority: what always giving the most frequent answer would score.
    """

    when: Literal["before", "after"]
    name: str
    metric: str
    value: float
    low: float
    high: float
    count: int = Field(ge=1)
    note: str = ""
    majority: float | None = None


class Shape(_Strict):
    """A model or weight by name, with its sizes, such as hidden=2048, layers=4."""

    name: str = Field(min_length=1)
    sizes: dict[str, int]


class Machine(_Strict):
    """Where a benchmark ran.

    device: in words. instructions: CPU features that decide which GEMM is called, None where they cannot be told.
    packages: version of each package that matters, by name; those not installed are left out.
    """

    device: str
    cpu: str
    threads: int = Field(ge=1)
    instructions: dict[str, bool | None]
    platform: str
    python: str
    packages: dict[str, str]


class Record(_Strict):
    """One method measured once.

    run: the same for all rows that one call measured side by side; only such rows may be compared by ratio.
    settings: of the method, such as k or r; rows with the same ones are the same method.
    notes: how it was measured, such as what the memory is of.
    status, reason: why there are no measurements, or fewer, where something did not work.
    """

    kind: Kind
    run: str
    created: str
    commit: str | None
    seed: int
    machine: Machine
    method: str
    settings: dict[str, Any] = {}
    notes: dict[str, str] = {}
    shape: Shape
    batch: int | None = Field(default=None, ge=1)
    sequence: int | None = Field(default=None, ge=1)
    dtype: str
    status: Status = "ok"
    reason: str | None = None
    measurements: dict[str, Measurement] = {}
    scores: list[RecordedScore] = []

    @model_validator(mode="after")
    def _explained(self) -> Record:
        if self.status == "ok" and not self.measurements:
            raise ValueError("status is 'ok' without any measurement")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"status is {self.status!r} without a reason")
        return self


def best_rate(reached: Mapping[float, float]) -> float | None:
    """The learning rate that reached most, of equal ones the lowest; None of none."""
    return max(sorted(reached), key=reached.__getitem__, default=None)


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append to a .jsonl file, made if need be, in one write that ends with a newline.

    A line that was cut short before stays a bad line of its own.
    """
    text = "".join(record.model_dump_json(exclude_defaults=True) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())


def read_records(path: Path) -> list[Record]:
    """All records of a .jsonl file, in order.

    Raises:
        MissingInputError: there is no such file.
        ConfigError: a line is not a record; the message names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise MissingInputError(
            f"records in {path}", "no such file", "Run `neuroada bench`, or `neuroada study` for studies, to make it"
        ) from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            found = f"{field}: {first['msg']}" if field else first["msg"]
            raise ConfigError(f"record in {path}, line {number}", found, "Remove or repair that line") from error
    return records
