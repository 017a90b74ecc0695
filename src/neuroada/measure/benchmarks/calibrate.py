"""Choosing inputs by gradients: peak memory and indices against dense gradients of all weights at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from rich.console import Console
from torch import Tensor
from transformers import AutoTokenizer

from neuroada.config import NeuroAdaConfig
from neuroada.errors import ConfigError
from neuroada.inputs.models import SMOLLM2, resolve_model
from neuroada.layers import NeuroAdaLinear
from neuroada.measure.bars import counting
from neuroada.measure.clock import PeakMemory, return_large_blocks
from neuroada.measure.machine import provenance
from neuroada.measure.pretrained import described, load_frozen
from neuroada.measure.process import call_in_fresh_process
from neuroada.measure.record import Measurement, Record
from neuroada.measure.rounds import Row
from neuroada.planning.skeleton import load_config
from neuroada.selection import top_k
from neuroada.tasks.text import read_text
from neuroada.tuners import reselect

CPU = torch.device("cpu")
DENSE = "dense gradients"


@dataclass(frozen=True)
class CalibrationPlan:
    """What to compare with dense gradients, on the CPU in float32.

    model: a directory, or a name of runs.models. max_memory: limits to try, in bytes. batches: of one sequence each,
    from Python's own manual.
    """

    model: str = SMOLLM2
    max_memory: tuple[int, ...] = (1 << 24, 1 << 26, 1 << 28)
    k: int = 1
    batches: int = 4
    sequence: int = 64
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("batches", self.batches), ("seq", self.sequence)):
            if value < 1:
                raise ConfigError(f"--{name} {value}", "less than 1", "Give at least 1")


@dataclass(frozen=True)
class _Choice:
    """indices: int32 [O, K] by layer. peak: bytes over what the process had with the model loaded."""

    indices: dict[str, Tensor]
    peak: int
    memory_of: str
    seconds: float


def run_calibration(plan: CalibrationPlan, console: Console | None = None) -> list[Record]:
    """One record for the dense gradients and one for each limit; a process each.

    Raises:
        MissingInputError: the model is not there.
    """
    shape, shared = described(plan.model, load_config(plan.model)), provenance(CPU, plan.seed)
    tries: list[tuple[str, int | None]] = [(DENSE, None), *(("neuroada", limit) for limit in plan.max_memory)]
    records, dense = [], None
    with counting(console, "Choosing", len(tries)) as advance:
        for method, limit in tries:
            settings = {"k": plan.k} | ({} if limit is None else {"max_memory": limit})
            row = Row(method, settings)
            advance(row.label, 0)
            arguments = {"plan": plan, "limit": limit}
            found = row.attempt(lambda given=arguments: call_in_fresh_process(choose, given, plan.threads))
            dense = found if limit is None else dense
            records.append(
                Record(
                    **shared,
                    kind="calibrate",
                    method=method,
                    settings=settings,
                    notes={} if found is None else {"memory_of": found.memory_of, "batches": str(plan.batches)},
                    shape=shape,
                    batch=1,
                    sequence=plan.sequence,
                    dtype="float32",
                    status=row.status,
                    reason=row.reason,
                    measurements={} if found is None else _measurements(found, dense),
                )
            )
            advance("", 1)
    return records


def _measurements(found: _Choice, dense: _Choice | None) -> dict[str, Measurement]:
    values = {"peak_memory": (found.peak, "bytes"), "time": (found.seconds, "s")}
    if dense is not None:
        pairs = [(indices, dense.indices[name]) for name, indices in found.indices.items()]
        values["indices"] = (sum(one.numel() for one, _ in pairs), "indices")
        values["other_indices"] = (sum(int((one != other).sum()) for one, other in pairs), "indices")
        values["memory_to_dense"] = (found.peak / dense.peak, "x")
    return {name: Measurement.count(value, unit) for name, (value, unit) in values.items()}


def choose(plan: CalibrationPlan, limit: int | None) -> _Choice:
    """Inputs by gradients, dense ones without a limit; for a fresh process."""
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    return_large_blocks()
    base = load_frozen(plan.model, "float32", CPU)
    given = _batches(plan, base.config.vocab_size)
    model = get_peft_model(base, NeuroAdaConfig(k=plan.k, selection="gradient"))
    layers = {layer.name: layer for layer in model.modules() if isinstance(layer, NeuroAdaLinear)}
    if limit is None:
        model.unload()
    base.eval()
    with torch.no_grad():
        base(**given[0])  # what the first call imports and allocates for good is there before
    began = time.perf_counter()
    with PeakMemory(CPU) as memory:
        if limit is None:
            indices = _by_dense_gradients(base, list(layers), given, plan.k)
        else:
            reselect(model, given, "gradient", max_memory=limit, progress=False)
            indices = {name: layer.neuroada_indices["default"] for name, layer in layers.items()}
    return _Choice(indices, memory.peak - memory.before, memory.of, time.perf_counter() - began)


def _by_dense_gradients(base: Any, names: list[str], batches: list[dict[str, Tensor]], k: int) -> dict[str, Tensor]:
    """As the published code does: the gradient of every adapted weight, summed over the batches."""
    weights = {name: base.get_submodule(name).weight.requires_grad_() for name in names}
    for batch in batches:
        base(**batch).loss.backward()
    return {name: top_k(weight.grad.abs(), k).int() for name, weight in weights.items()}


def _batches(plan: CalibrationPlan, vocabulary: int) -> list[dict[str, Tensor]]:
    source, _ = resolve_model(plan.model)
    text = "\n".join(read_text(None, None, 0.1, plan.seed).train)
    needed = plan.batches * plan.sequence
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    ids = tokenizer(text[: 20 * needed], return_tensors="pt").input_ids[0, :needed]
    rows = (ids % vocabulary).view(plan.batches, 1, plan.sequence)
    return [{"input_ids": row, "labels": row} for row in rows]
