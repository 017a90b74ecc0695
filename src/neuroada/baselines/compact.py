"""Mask-based sparse tuning at its best: dense gradients still, but optimiser states for the support alone.

What makes it mask-based stays: autograd makes the dense gradient [O, I] of each weight, a third dense product a layer.
But that gradient is gathered as soon as it is there and freed, so that one lives at a time, and the optimiser sees
values [N, K], not whole weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.func import functional_call
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from transformers.pytorch_utils import Conv1D

from neuroada.baselines.mask import chosen_entries, stored_rows
from neuroada.errors import ConfigError
from neuroada.ops.sparse_delta import Support, flat, positions


class _Gathered(torch.autograd.Function):
    """A weight itself; of its dense gradient the support's entries go on, as the gradient of `values`."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, values: Tensor, indices: Tensor, neurons: Tensor | None, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(indices, neurons)
        ctx.transposed, ctx.dtype = transposed, values.dtype
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        indices, neurons = ctx.saved_tensors
        rows = gradients[0].T if ctx.transposed else gradients[0]
        return None, flat(rows).take(positions(rows, indices, neurons)).to(ctx.dtype), None, None, None


class MaskedLinear(nn.Module):
    """A linear layer, weight [O, I], in whose frozen weight a support is trained.

    weight, bias: the base layer's own, as it stores them. values: float32 [N, K] (float64 of a float64 weight), the
    support's entries; the weight has them rounded to its dtype, once, by `write`. indices: int32 [N, K], in [0, I).
    neurons: int32 [N], in [0, O), they may repeat; None for N = O.
    """

    indices: Tensor
    neurons: Tensor | None
    weight: nn.Parameter
    base: nn.Module

    def __init__(self, base: nn.Module, indices: Tensor, neurons: Tensor | None = None) -> None:
        """Train these entries of `nn.Linear` or Transformers' Conv1D."""
        super().__init__()
        self.weight, self.bias = cast(nn.Parameter, base.weight), base.bias
        self.__dict__["base"] = base  # not a submodule: names of parameters stay as they were
        self.transposed = isinstance(base, Conv1D)
        self.register_buffer("indices", indices.to(self.weight.device, torch.int32))
        self.register_buffer("neurons", None if neurons is None else neurons.to(self.weight.device, torch.int32))
        rows = stored_rows(base)
        entries = flat(rows).take(positions(rows, self.indices, self.neurons))
        self.values = nn.Parameter(entries.to(torch.promote_types(entries.dtype, torch.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., I] → [..., O], as the base layer computes it."""
        if not (torch.is_grad_enabled() and self.values.requires_grad):
            return self.base(x)
        weight = _Gathered.apply(self.weight, self.values, self.indices, self.neurons, self.transposed)
        return functional_call(self.base, {"weight": weight}, (x,))

    def __getstate__(self) -> dict[str, Any]:
        raise ConfigError(
            "Copying or pickling a model with compact masks",
            "optimisers write to the weights of this one only, and a copy would not train",
            "Copy after unwrap_compact_mask(model), or copy first and wrap both",
        )

    @torch.no_grad()
    def write(self) -> None:
        """Put the values into the weight."""
        rows = stored_rows(self.base)
        where = positions(rows, self.indices, self.neurons).flatten()
        flat(rows).index_put_((where,), self.values.flatten().to(rows.dtype))
        increment_version(self.weight)


def wrap(
    model: nn.Module,
    names: Iterable[str] = (),
    k: int | None = None,
    *,
    supports: Mapping[str, Support] | None = None,
) -> list[nn.Parameter]:
    """Freeze a model and put a MaskedLinear in the place of each named linear layer.

    After each step of an optimiser of these values they are written to the weights; nothing is to be called for that.
    Arguments and errors are those of `wrap_mask`.

    Returns:
        What the optimiser trains: the values.
    """
    layers = []
    for name, base, indices, neurons in chosen_entries(model, names, k, supports):
        layers.append(MaskedLinear(base, indices, neurons))
        model.set_submodule(name, layers[-1])
    _write_after_steps(layers)
    return [layer.values for layer in layers]


def unwrap(model: nn.Module) -> None:
    """Put the plain layers back, their weights as trained."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, MaskedLinear):
            layer.base.weight = layer.weight
            model.set_submodule(name, layer.base)


def _write_after_steps(layers: list[MaskedLinear]) -> None:
    """For as long as the layers live."""
    living = [weakref.ref(layer) for layer in layers]

    def after_step(optimiser: Optimizer, *_: object) -> None:
        stepped = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
        for layer in filter(None, (reference() for reference in living)):
            if id(layer.values) in stepped:
                layer.write()

    if layers:
        weakref.finalize(layers[0], register_optimizer_step_post_hook(after_step).remove)
