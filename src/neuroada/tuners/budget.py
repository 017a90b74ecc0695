"""How many inputs each neuron gets where one budget is for all adapted weights of a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor

from neuroada.config import NeuroAdaConfig
from neuroada.layers import NeuroAdaLinear
from neuroada.selection import allocate


def allocate_budget(
    config: NeuroAdaConfig, adapter_name: str, steps: Mapping[NeuroAdaLinear, Tensor]
) -> dict[NeuroAdaLinear, int]:
    """K of each layer that has the adapter; `k_pattern` keeps its own, and the budget pays for them.

    steps: of all layers that have the adapter, from `NeuroAdaLinear.score_steps`.
    """
    deltas = {layer: layer.neuroada_deltas[adapter_name] for layer in steps}
    entries = sum(layer.out_features * layer.in_features for layer in steps)
    fixed = {layer: deltas[layer].shape[1] for layer in steps if config.k_of(layer.name) is not None}
    free = {layer.name: layer for layer in steps if layer not in fixed}
    if not free:
        return fixed
    found = allocate(
        {name: steps[layer] for name, layer in free.items()},
        {name: len(deltas[layer]) for name, layer in free.items()},
        round((config.budget or 0) * entries) - sum(deltas[layer].numel() for layer in fixed),
    )
    return fixed | {layer: found[name] for name, layer in free.items()}


def warn_of_least(config: NeuroAdaConfig, sizes: Sequence[tuple[int, int]]) -> None:
    """Warn where one delta for each covered neuron is over twice the budget. sizes: (I, O) of what it pays for."""
    entries = sum(inputs * outputs for inputs, outputs in sizes)
    asked = (config.budget or 0) * entries
    least = sum(max(1, round(config.coverage * outputs)) for _, outputs in sizes)
    if least > 2 * asked:
        warnings.warn(
            f"budget={config.budget:g} is {asked:,.0f} deltas, and each of the {least:,} covered neurons has at least "
            f"one: {least / entries:.2g} of the weights. A smaller coverage trains fewer neurons",
            stacklevel=3,
        )
