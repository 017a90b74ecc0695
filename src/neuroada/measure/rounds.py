"""Calls timed in turn, round by round, so that a machine that slows down slows all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from neuroada.measure.benchmarks.methods import NotAvailableError
from neuroada.measure.clock import is_out_of_memory
from neuroada.measure.process import ProcessDiedError
from neuroada.measure.record import Measurement, Status


@dataclass
class Row:
    """What became of one method, or of one of its parts."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    status: Status = "ok"
    reason: str | None = None
    times: list[float] = field(default_factory=list)
    measurements: dict[str, Measurement] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name and settings, for people who wait."""
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.settings.items())])

    def attempt(self, call: Callable[[], Any]) -> Any:
        """The call's value; on an error None, and the row says why."""
        try:
            return call()
        except NotAvailableError as error:
            self.fail("not available", str(error))
        except Exception as error:  # a method that breaks is a row, and the others go on
            name = "" if isinstance(error, ProcessDiedError) else f"{type(error).__name__}: "  # it quotes another one
            self.fail("out of memory" if is_out_of_memory(error) else "failed", f"{name}{error}")
        return None

    def fail(self, status: Status, reason: str) -> None:
        """Keep the first reason, and of it the first line."""
        if self.status == "ok":
            self.status, self.reason = status, reason.strip().splitlines()[0]


@dataclass(frozen=True, eq=False)
class Timed:
    """A row and the call, returning seconds, that it is about."""

    row: Row
    call: Callable[[], float]


@dataclass(frozen=True)
class Rounds:
    """How often each call is timed, after how many times that are not, and in which random orders."""

    count: int
    warmup: int
    seed: int

    def time(self, calls: list[Timed], done: Callable[[str, int], None], free: Callable[[], None]) -> None:
        """Call each in every round and keep the seconds it returns in its row; one that fails leaves the list.

        done: told each label before its call, with 0, and "" with 1 after it. free: called after a failure.
        """
        order = random.Random(self.seed)
        for number in range(self.warmup + self.count):
            turns = order.sample(calls, len(calls))  # no call always follows the same one
            while turns:
                timed = turns.pop()
                row = timed.row
                done(row.label, 0)
                taken = row.attempt(timed.call)
                if taken is None:
                    calls.remove(timed)
                elif number >= self.warmup:
                    row.times.append(taken)
                del timed
                if taken is None:
                    free()
                done("", 1)

    def note(self, rows: Iterable[Row], name: str, references: Mapping[str, Row]) -> None:
        """Write times into measurements as `name`, and their ratios to each reference's of the same round."""
        for row in rows:
            if not row.times or len(row.times) < self.count:
                continue
            row.measurements[name] = Measurement.of(row.times, "s")
            for reference, other in references.items():
                if len(other.times) == self.count:
                    ratios = [time / unit for time, unit in zip(row.times, other.times, strict=True)]
                    row.measurements[f"ratio_to_{reference}"] = Measurement.of(ratios, "x")
