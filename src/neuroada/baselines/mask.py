"""Mask-based sparse tuning (NeuroAda, Figure 2): dense gradients and full optimiser states, and a mask on the gradient.

The mask takes a byte an entry here; the published code keeps it in the weight's dtype, the paper counts a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neuroada.errors import ConfigError
from neuroada.ops.sparse_delta import Support
from neuroada.selection import select


def mask_at(weight: Tensor, indices: Tensor, neurons: Tensor | None = None) -> Tensor:
    """bool [O, I]: true at the inputs [N, K] of these neurons [N], or of all, of a weight [O, I]."""
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
        What the optimiser trains: whole weights, each as its layer stores it; not those of an empty support.

    Raises:
        ConfigError: k and supports are both given, or neither; or two of the layers share one weight.
    """
    weights: list[nn.Parameter] = []
    for _, layer, indices, neurons in chosen_entries(model, names, k, supports):
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        mask = mask_at(stored_rows(layer), indices, neurons)
        mask = mask.T if isinstance(layer, Conv1D) else mask
        weight.requires_grad_(True).register_post_accumulate_grad_hook(_masking(mask))
        weights.append(weight)
    return weights


def stored_rows(layer: nn.Module) -> Tensor:
    """[O, I], sharing the memory of a linear layer's weight, however it is stored."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().T if isinstance(layer, Conv1D) else weight.detach()


def chosen_entries(
    model: nn.Module, names: Iterable[str], k: int | None, supports: Mapping[str, Support] | None
) -> Iterator[tuple[str, nn.Module, Tensor, Tensor | None]]:
    """Freeze a model; then name, layer, indices [N, K] and neurons [N] of each that is to be trained, as `wrap` is
    told."""
    if (k is None) == (supports is None):
        found = "neither k nor supports is given" if k is None else "k and supports are both given"
        raise ConfigError("Mask-based tuning", found, "Give names and k, or supports by name")
    wanted = list(names) if supports is None else [name for name in supports if supports[name].indices.numel()]
    owners: dict[int, str] = {}
    for name in wanted:
        owner = owners.setdefault(id(model.get_submodule(name).weight), name)
        if owner != name:
            do = "Name one of them, or untie their weights"
            raise ConfigError("Mask-based tuning", f"{owner} and {name} share one weight", do)
    model.requires_grad_(False)
    for name in wanted:
        layer = model.get_submodule(name)
        if supports is None:
            yield name, layer, select(stored_rows(layer), k or 1, "magnitude", 0, name), None
        else:
            yield name, layer, supports[name].indices, supports[name].neurons


def _masking(mask: Tensor) -> Callable[[Tensor], None]:
    def apply(weight: Tensor) -> None:
        nonlocal mask
        assert weight.grad is not None
        mask = mask.to(weight.grad.device)
        weight.grad.mul_(mask)

    return apply
