"""Choosing supports: time and peak memory for the weights of one block of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from neuroada.config.criteria import WITHOUT_DATA
from neuroada.errors import ConfigError, near
from neuroada.measure.bars import counting
from neuroada.measure.benchmarks.methods import adapted_names
from neuroada.measure.clock import PeakMemory, free, seconds
from neuroada.measure.machine import find_device, provenance
from neuroada.measure.record import Measurement, Record
from neuroada.measure.shapes import build_model, find_shape
from neuroada.selection import select


@dataclass(frozen=True)
class SelectPlan:
    """What to measure. strategies: names in WITHOUT_DATA. rounds: timed calls of each, after one that is not."""

    shape: str
    strategies: tuple[str, ...] = WITHOUT_DATA
    per_neuron: tuple[int, ...] = (1, 20)
    rounds: int = 5
    dtype: str = "bfloat16"
    device: str = "cpu"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for strategy in self.strategies:
            if strategy not in WITHOUT_DATA:
                raise ConfigError(f"selection {strategy!r}", "not a known one", near(strategy, WITHOUT_DATA))
        if self.rounds < 1:
            raise ConfigError(f"--rounds {self.rounds}", "less than 1", "Give at least 1")

    def weights(self, device: torch.device) -> dict[str, Tensor]:
        """Random weights [O, I] of one block, by name.

        Raises:
            ConfigError: a k below 1 or above the fewest inputs.
        """
        model = build_model(find_shape(self.shape), getattr(torch, self.dtype), torch.device("meta"), 1)
        generator = torch.Generator().manual_seed(self.seed)
        weights = {}
        for name in adapted_names(model):
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            weight = torch.randn(layer.weight.shape, generator=generator)
            weights[name] = weight.to(device, layer.weight.dtype)
        narrowest = min(weight.shape[1] for weight in weights.values())
        for k in self.per_neuron:
            if not 1 <= k <= narrowest:
                found = f"the narrowest weight has {narrowest} inputs a neuron"
                raise ConfigError(f"--k {k}", found, f"Give 1 to {narrowest}")
        return weights


def run_select(plan: SelectPlan, console: Console | None = None) -> list[Record]:
    """One record for each strategy and k.

    Raises:
        ConfigError: an unknown shape, strategy or device, or a k that does not fit.
    """
    device = find_device(plan.device)
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    weights, shared = plan.weights(device), provenance(device, plan.seed)
    records = []
    with counting(console, "Choosing", len(plan.strategies) * len(plan.per_neuron) * (plan.rounds + 2)) as advance:
        for strategy in plan.strategies:
            for k in plan.per_neuron:
                advance(f"{strategy}, k={k}", 0)

                def choose(strategy: str = strategy, k: int = k) -> list[Tensor]:
                    return [select(weight, k, strategy, plan.seed, name) for name, weight in weights.items()]

                with PeakMemory(device) as memory:
                    chosen = choose()
                kept = sum(indices.nbytes for indices in chosen)
                del chosen
                advance("", 1)
                times = []
                for number in range(plan.rounds + 1):
                    taken = seconds(choose, device)
                    times += [taken] if number else []
                    advance("", 1)
                free(device)
                measurements = {
                    "time": Measurement.of(times, "s"),
                    "peak_memory": Measurement.count(memory.peak - memory.before, "bytes"),
                    "indices": Measurement.count(kept, "bytes"),
                }
                notes = {"memory_of": memory.of}
                records.append(_record(plan, strategy, k, weights, measurements, notes, shared))
    return records


def _record(
    plan: SelectPlan,
    strategy: str,
    k: int,
    weights: dict[str, Tensor],
    measurements: dict[str, Measurement],
    notes: dict[str, str],
    shared: dict[str, Any],
) -> Record:
    shape = find_shape(plan.shape)
    sizes = {"weights": sum(weight.numel() for weight in weights.values())}
    return Record(
        **shared,
        kind="select",
        method=strategy,
        settings={"k": k},
        notes={**notes, "of": "the adapted weights of one block"},
        shape=shape.described().model_copy(update={"sizes": shape.described().sizes | sizes}),
        dtype=plan.dtype,
        measurements=measurements,
    )
