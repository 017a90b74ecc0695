"""The operation as an operator of torch: what torch.compile puts into its graphs, where the autograd function with its
locks and registries cannot be traced. It computes the same through the same functions, and keeps the whole input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroada.ops.sparse_delta.gradient import delta_gradient, input_gradient
from neuroada.ops.sparse_delta.library import LIBRARY
from neuroada.ops.sparse_delta.support import FrozenWeight, Support
from neuroada.ops.sparse_delta.swap import with_support

LIBRARY.define(
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor indices, Tensor deltas, Tensor? neurons, bool transposed, "
    "str mode, str product) -> Tensor"
)
LIBRARY.define(
    "linear_backward(Tensor dy, Tensor? x, Tensor weight, Tensor indices, Tensor deltas, Tensor? neurons, "
    "bool transposed, str mode, str product, bool for_x, bool for_deltas) -> (Tensor, Tensor)"
)


@torch.library.impl(LIBRARY, "linear", "CompositeExplicitAutograd")
def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indices: Tensor,
    deltas: Tensor,
    neurons: Tensor | None,
    transposed: bool,
    mode: str,
    product: str,
) -> Tensor:
    frozen = FrozenWeight(weight, transposed, mode)
    return with_support(frozen, Support(indices, deltas, neurons), lambda merged: F.linear(x, merged.to(x.dtype), bias))


@torch.library.impl(LIBRARY, "linear_backward", "CompositeExplicitAutograd")
def _linear_backward(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor,
    indices: Tensor,
    deltas: Tensor,
    neurons: Tensor | None,
    transposed: bool,
    mode: str,
    product: str,
    for_x: bool,
    for_deltas: bool,
) -> tuple[Tensor, Tensor]:
    rows, frozen = dy.reshape(-1, dy.shape[-1]), FrozenWeight(weight, transposed, mode)
    dx, gradient = dy.new_empty(0), deltas.new_empty(0)
    if for_x:
        support = Support(indices, deltas, neurons)
        dx = with_support(frozen, support, lambda merged: input_gradient(rows, merged))
        dx = dx.reshape(*dy.shape[:-1], dx.shape[-1])
    if for_deltas and x is not None:
        gradient = delta_gradient(x.reshape(-1, x.shape[-1]), rows, indices, neurons, product).to(deltas.dtype)
    return dx, gradient


@torch.library.register_fake("neuroada::linear", lib=LIBRARY)
def _linear_shape(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    transposed = rest[4]
    return x.new_empty(*x.shape[:-1], weight.shape[1 if transposed else 0])


@torch.library.register_fake("neuroada::linear_backward", lib=LIBRARY)
def _linear_backward_shape(
    dy: Tensor, x: Tensor | None, weight: Tensor, indices: Tensor, deltas: Tensor, *rest: Any
) -> Any:
    for_x, for_deltas = rest[-2:]
    inputs = weight.shape[0 if rest[1] else 1]
    return dy.new_empty((*dy.shape[:-1], inputs) if for_x else 0), deltas.new_empty(deltas.shape if for_deltas else 0)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, indices, deltas, neurons, *ctx.settings = inputs
    ctx.save_for_backward(x if deltas.requires_grad else None, weight, indices, deltas, neurons)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    for_x, _, for_bias, _, for_deltas = ctx.needs_input_grad[:5]
    x, weight, indices, deltas, neurons = ctx.saved_tensors
    dx, d_deltas = torch.ops.neuroada.linear_backward(
        dy, x, weight, indices, deltas, neurons, *ctx.settings, for_x, for_deltas
    )
    d_bias = dy.reshape(-1, dy.shape[-1]).sum(0) if for_bias else None
    return dx if for_x else None, None, d_bias, None, d_deltas if for_deltas else None, None, None, None, None


torch.library.register_autograd("neuroada::linear", _differentiate, setup_context=_keep_for_backward, lib=LIBRARY)


def traced_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indices: Tensor,
    deltas: Tensor,
    neurons: Tensor | None,
    transposed: bool,
    mode: str,
    product: str,
) -> Tensor:
    """`sparse_delta_linear` for a graph: arguments as there, checks left out, autocast respected."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
        bias = None if bias is None else bias.to(x.dtype)
    return torch.ops.neuroada.linear(x, weight, bias, indices, deltas, neurons, transposed, mode, product)
