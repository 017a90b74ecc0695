"""Mask-based sparse tuning (NeuroAda, Figure 2): dense gradients and full optimiser states, and a mask on the gradient.

The mask takes a byte an entry here; the published code keeps it in the weight's dtype, the paper counts a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from neuroada.selection import select


def mask_of(weight: Tensor, k: int, name: str = "") -> Tensor:
    """bool [O, I]: the k inputs of largest |w| of each neuron of a weight [O, I]; k in [1, I]."""
    indices = select(weight, k, "magnitude", 0, name)
    return torch.zeros_like(weight, dtype=torch.bool).scatter_(1, indices.long(), True)


def wrap(model: nn.Module, names: Iterable[str], k: int) -> list[nn.Parameter]:
    """Freeze a model but for the weights of the named linear layers, whose gradients are masked as they arrive.

    The optimiser must not decay weights, or it changes entries outside the mask too.

    Args:
        model: changed in place; the optimiser will write to its weights.
        names: of `nn.Linear` modules in it.
        k: K, in [1, I]: the inputs of largest |w| of each neuron.

    Returns:
        What the optimiser trains: whole weights, each [O, I].
    """
    model.requires_grad_(False)
    weights: list[nn.Parameter] = []
    for name in names:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        mask = mask_of(weight.detach(), k, name)
        weight.requires_grad_(True).register_post_accumulate_grad_hook(_masking(mask))
        weights.append(weight)
    return weights


def _masking(mask: Tensor) -> Callable[[Tensor], None]:
    def apply(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(mask)

    return apply
