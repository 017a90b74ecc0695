"""Mask-based sparse tuning (NeuroAda, Figure 2): dense gradients and full optimiser states, and a mask on the gradient.

The mask takes a byte an entry here; the published code keeps it in the weight's dtype, the paper counts a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neuroada.errors import ConfigError
from neuroada.ops.sparse_delta import Support
from neuroada.selection import select


def mask_of(weight: Tensor, k: int, name: str = "") -> Tensor:
    """bool [O, I]: the k inputs of largest |w| of each neuron of a weight [O, I]; k in [1, I]."""
    return _mask_at(weight, select(weight, k, "magnitude", 0, name), None)


def _mask_at(weight: Tensor, indices: Tensor, neurons: Tensor | None) -> Tensor:
    mask = torch.zeros_like(weight, dtype=torch.bool)
    if neurons is None:
        return mask.scatter_(1, indices.long(), True)
    mask[neurons.long()[:, None], indices.long()] = True
    return mask


def wrap(
    model: nn.Module,
    names: Iterable[str] = (),
    k: int | None = None,
    *,
    supports: Mapping[str, Support] | None = None,
) -> list[nn.Parameter]:
    """Freeze a model but for the weights of the named linear layers, whose gradients are masked as they arrive.

    The optimiser must not decay weights, or it changes entries outside the mask too.

    Args:
        model: changed in place; the optimiser will write to its weights.
        names: of linear layers in it (`nn.Linear` or Transformers' Conv1D).
        k: K, in [1, I]: the inputs of largest |w| of each neuron.
        supports: instead of names and k, the entries to train of each named layer; their deltas are not looked at.

    Returns:
        What the optimiser trains: whole weights, each as its layer stores it.

    Raises:
        ConfigError: k and supports are both given, or neither.
    """
    if (k is None) == (supports is None):
        found = "neither k nor supports is given" if k is None else "k and supports are both given"
        raise ConfigError("Mask-based tuning", found, "Give names and k, or supports by name")
    model.requires_grad_(False)
    weights: list[nn.Parameter] = []
    for name in names if supports is None else supports:
        layer = model.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        transposed = isinstance(layer, Conv1D)
        rows = weight.detach().T if transposed else weight.detach()
        if k is not None:
            mask = mask_of(rows, k, name)
        else:
            assert supports is not None
            mask = _mask_at(rows, supports[name].indices, supports[name].neurons)
        mask = mask.T if transposed else mask
        weight.requires_grad_(True).register_post_accumulate_grad_hook(_masking(mask))
        weights.append(weight)
    return weights


def _masking(mask: Tensor) -> Callable[[Tensor], None]:
    def apply(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(mask)

    return apply
