"""NeuroAda as its published code computes it: autograd's scatter_add into a copy of the weight.

Source: github.com/FightingFighting/NeuroAda, commit 0ed987c. Each call makes a weight-sized copy that backward keeps,
and backward computes the dense gradient [O, I] to pick K entries a neuron from it: three dense products in all.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroada.selection import select


class ScatterLinear(nn.Module):
    """A frozen linear layer with trainable deltas: y = x (W + Δ)ᵀ + bias.

    weight: [O, I], frozen, the base layer's own. bias: [O] or None.
    deltas: [O·K], bfloat16 as published, zero at first. positions: int64 [O·K], in [0, O·I), in the flattened weight.
    """

    positions: Tensor

    def __init__(self, base: nn.Linear, indices: Tensor, dtype: torch.dtype = torch.bfloat16) -> None:
        """Train the entries `indices`, any integer dtype [O, K] in [0, I), of a base layer's weight."""
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        starts = torch.arange(len(indices), device=indices.device) * base.in_features
        self.register_buffer("positions", (starts[:, None] + indices.long()).flatten())
        self.deltas = nn.Parameter(torch.zeros(indices.numel(), dtype=dtype, device=indices.device))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., I] → [..., O]."""
        merged = self.weight.flatten().scatter_add(0, self.positions, self.deltas.to(self.weight.dtype))
        return F.linear(x, merged.view_as(self.weight), self.bias)


def wrap(model: nn.Module, names: Iterable[str], k: int, dtype: torch.dtype = torch.bfloat16) -> list[nn.Parameter]:
    """Freeze a model and put a ScatterLinear in the place of each named linear layer.

    Args:
        model: changed in place.
        names: of `nn.Linear` modules in it, not the model itself.
        k: K, in [1, I]: the inputs of largest |w| of each neuron.
        dtype: of the deltas.

    Returns:
        What the optimiser trains: the deltas.
    """
    model.requires_grad_(False)
    deltas = []
    for name in list(names):
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        layer = ScatterLinear(base, select(base.weight.detach(), k, "magnitude", 0, name), dtype)
        model.set_submodule(name, layer)
        deltas.append(layer.deltas)
    return deltas
