"""How many inputs each neuron gets where one budget is for all adapted weights of a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from neuroada.config import NeuroAdaConfig
from neuroada.layers import NeuroAdaLinear
from neuroada.selection import spread


def spread_budget(
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
    found = spread(
        {name: steps[layer] for name, layer in free.items()},
        {name: len(deltas[layer]) for name, layer in free.items()},
        round((config.budget or 0) * entries) - sum(deltas[layer].numel() for layer in fixed),
    )
    return fixed | {layer: found[name] for name, layer in free.items()}
