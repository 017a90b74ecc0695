"""Whole training steps, methods interleaved in one process; memory of each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import nn

from neuroada.errors import ConfigError
from neuroada.measure.bars import counting
from neuroada.measure.benchmarks.methods import (
    FROZEN,
    METHODS,
    Method,
    Trainee,
    choose_methods,
    require_fitting,
    wrap_copy,
)
from neuroada.measure.clock import PeakMemory, free, seconds
from neuroada.measure.machine import find_device, provenance
from neuroada.measure.process import call_in_fresh_process
from neuroada.measure.record import Measurement, Record
from neuroada.measure.rounds import Rounds, Row, Timed
from neuroada.measure.shapes import Batch, build_model, find_shape, make_batch

DTYPES = ("float32", "bfloat16", "float16")
LEARNING_RATE = 1e-5
"""Small, so that random data takes no method to values that would change how fast it computes."""
REFERENCES = (FROZEN, "lora")
"""Methods that each round's times are divided by, where they are measured."""
MEMORY_STEPS = 3
"""Optimiser states come into being in the first step, so that the second already reaches the peak."""


@dataclass(frozen=True)
class StepPlan:
    """What to measure.

    layers: of the shape, or None for all. sequence: None for the shape's own. per_neuron: each k of sparse methods.
    rounds: steps of each method that are timed, after `warmup` ones that are not; 0 for no timing.
    """

    shape: str
    layers: int | None = None
    batch: int = 2
    sequence: int | None = None
    dtype: str = "bfloat16"
    methods: tuple[str, ...] = ("neuroada", "lora")
    per_neuron: tuple[int, ...] = (1,)
    rounds: int = 10
    warmup: int = 2
    memory: bool = True
    device: str = "cpu"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype}", "not a known one", f"Known: {', '.join(DTYPES)}")
        for name, value, least in (("layers", self.layers, 1), ("rounds", self.rounds, 0), ("warmup", self.warmup, 0)):
            if value is not None and value < least:
                raise ConfigError(f"--{name} {value}", f"fewer than {least}", f"Give at least {least}")
        if not self.rounds and not self.memory:
            raise ConfigError("neither time nor memory", "nothing is left to measure", "Leave one of the two out")

    @property
    def tokens(self) -> int:
        """Length of a sequence."""
        return find_shape(self.shape).sequence if self.sequence is None else self.sequence

    def build(self) -> tuple[nn.Module, Batch]:
        """The frozen base model and a batch, on the device."""
        shape, dtype, device = find_shape(self.shape), getattr(torch, self.dtype), torch.device(self.device)
        base = build_model(shape, dtype, device, self.layers, self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return base, make_batch(shape, self.batch, self.tokens, dtype, device)


class Stepper:
    """A method about to train: `step` is one whole step, as Transformers' Trainer does it without accumulation."""

    def __init__(self, trainee: Trainee, batch: Batch) -> None:
        """AdamW, fused, without weight decay: Trainer's defaults."""
        self.model, self.batch, self.around = trainee.model, batch, trainee.around
        self.trained = sum(parameter.numel() for parameter in trainee.parameters)
        self.optimiser = None
        if trainee.parameters:
            self.optimiser = torch.optim.AdamW(trainee.parameters, lr=LEARNING_RATE, weight_decay=0, fused=True)

    def step(self) -> None:
        """Forward, loss, backward, optimiser."""
        if self.optimiser is not None:
            self.optimiser.zero_grad()
        self.model(**self.batch).loss.backward()
        if self.optimiser is not None:
            self.optimiser.step()

    def load_code(self) -> None:
        """Forward and backward on two tokens, so that what the method imports and compiles is there."""
        small = {name: tensor[:1, :2] if tensor.ndim == 2 else tensor[:1] for name, tensor in self.batch.items()}
        with self.around():
            self.model(**small).loss.backward()
        self.model.zero_grad()

    def seconds(self, device: torch.device) -> float:
        """Time of one step, with the supports already swapped in where the method keeps them so."""
        with self.around():
            return seconds(self.step, device)


def run_step(plan: StepPlan, console: Console | None = None) -> list[Record]:
    """Measure as planned: one record a method, the frozen limit first; a method that fails is a record too.

    Raises:
        ConfigError: an unknown shape, method or device, k above the inputs of a layer, or a batch without tokens.
    """
    device, rows = _checked(plan)
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    steps = len(rows) * (1 + plan.rounds + plan.warmup if plan.rounds else 0) + len(rows) * plan.memory
    shared = provenance(device, plan.seed)
    with counting(console, "Steps", steps) as advance:
        if plan.rounds:
            _time(plan, rows, device, advance)
        if plan.memory:
            for row in rows:
                advance(f"memory of {row.label}", 0)
                if row.status == "ok":
                    _measure_memory(plan, row)
                advance("", 1)
    return [_record(plan, row, shared) for row in rows]


def _checked(plan: StepPlan) -> tuple[torch.device, list[Row]]:
    """Fail before anything large is built."""
    shape, device = find_shape(plan.shape), find_device(plan.device)
    methods = choose_methods(plan.methods, plan.per_neuron)
    make_batch(shape, plan.batch, plan.tokens, torch.float32, torch.device("meta"))
    require_fitting(methods, build_model(shape, torch.float32, torch.device("meta"), 1))
    return device, [Row(method.name, method.settings) for method in methods]


def _time(plan: StepPlan, rows: list[Row], device: torch.device, advance: Callable[[str, int], None]) -> None:
    calls = _steppers(plan, rows, device, advance)
    rounds = Rounds(plan.rounds, plan.warmup, plan.seed)
    rounds.time(calls, advance, lambda: free(device))
    rounds.note(rows, "step_time", {row.name: row for row in rows if row.name in REFERENCES})
    calls.clear()
    free(device)


def _steppers(
    plan: StepPlan, rows: list[Row], device: torch.device, advance: Callable[[str, int], None]
) -> list[Timed]:
    """Those that can be built, on one copy of the base weights as far as they can share it."""
    built = rows[0].attempt(plan.build)
    if built is None:
        for row in rows[1:]:
            row.fail(rows[0].status, rows[0].reason or "")
        return []
    calls = []
    for row in rows:
        advance(f"wrapping {row.label}", 0)
        stepper = row.attempt(lambda row=row: Stepper(wrap_copy(_method(row), built[0]), built[1]))
        if stepper is not None:
            calls.append(Timed(row, partial(stepper.seconds, device)))
            row.measurements["trained_parameters"] = Measurement.count(stepper.trained, "parameters")
        advance("", 1)
    return calls


def _method(row: Row) -> Method:
    return replace(METHODS[row.name], settings=row.settings)


def _measure_memory(plan: StepPlan, row: Row) -> None:
    request = {"plan": plan, "name": row.name, "settings": row.settings}
    answer = row.attempt(lambda: call_in_fresh_process(step_memory, request, plan.threads))
    if answer is None:
        return
    if "status" in answer:
        row.fail(answer["status"], answer["reason"])
        return
    row.notes["memory_of"] = answer["memory_of"]
    for name in ("peak_memory", "memory_before_steps", "memory_of_code"):
        row.measurements[name] = Measurement.count(answer[name], "bytes")
    row.measurements["trained_parameters"] = Measurement.count(answer["trained_parameters"], "parameters")


def step_memory(plan: StepPlan, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of a few steps, for a fresh process: what building left behind would count otherwise."""
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    row = Row(name, settings)

    def measure() -> dict[str, Any]:
        base, batch = plan.build()
        stepper = Stepper(wrap_copy(_method(row), base), batch)
        del base
        device = torch.device(plan.device)
        with PeakMemory(device) as loading:
            stepper.load_code()
        with PeakMemory(device) as memory, stepper.around():
            for _ in range(MEMORY_STEPS):
                stepper.step()
        return {
            "peak_memory": memory.peak,
            "memory_before_steps": memory.before,
            "memory_of_code": max(0, memory.before - loading.before),
            "memory_of": memory.of,
            "trained_parameters": stepper.trained,
        }

    return row.attempt(measure) or {"status": row.status, "reason": row.reason}


def _record(plan: StepPlan, row: Row, shared: dict[str, Any]) -> Record:
    return Record(
        **shared,
        kind="step",
        method=row.name,
        settings=row.settings,
        notes={"optimiser": "AdamW, fused", "warmup": str(plan.warmup), **row.notes},
        shape=find_shape(plan.shape).described(plan.layers),
        batch=plan.batch,
        sequence=plan.tokens,
        dtype=plan.dtype,
        status=row.status,
        reason=row.reason,
        measurements=row.measurements,
    )
