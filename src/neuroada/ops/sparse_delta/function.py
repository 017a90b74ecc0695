"""y = x (W + deltas)ᵀ + bias as one autograd function: two dense products, x saved, nothing weight-sized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from neuroada.errors import ConfigError, WeightError
from neuroada.ops.sparse_delta.gradient import delta_gradient, input_gradient
from neuroada.ops.sparse_delta.guards import is_autocast, require_unchanged, state_of, without_autocast
from neuroada.ops.sparse_delta.support import FrozenWeight, Support
from neuroada.ops.sparse_delta.swap import with_support

MODES = ("inplace", "transient")
PRODUCTS = ("auto", "sparse", "dense")


class _SupportLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        deltas: Tensor | None,
        bias: Tensor | None,
        support: Support | None,
        weight: FrozenWeight,
        product: str,
        kept: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        ctx.save_for_backward(kept and kept[0], deltas)
        ctx.places = kept and kept[1]
        ctx.support, ctx.weight, ctx.product, ctx.x_shape = support, weight, product, x.shape
        ctx.weight_state = state_of(weight)
        with without_autocast(x.device.type):
            return with_support(weight, support, lambda merged: F.linear(x, merged.to(x.dtype), bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, needs_deltas, needs_bias = ctx.needs_input_grad[:3]
        kept, deltas = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        dx = d_deltas = d_bias = None
        with without_autocast(dy.device.type):
            if needs_x:
                require_unchanged(ctx.weight, ctx.weight_state, dy.device)
                support = ctx.support
                if support is not None and support.deltas is not deltas:  # a hook gave back another tensor
                    support = replace(support, deltas=deltas)
                dx = with_support(ctx.weight, support, lambda merged: input_gradient(rows, merged)).reshape(ctx.x_shape)
            if needs_deltas:
                d_deltas = delta_gradient(kept, rows, ctx.places, ctx.support.neurons, ctx.product).to(deltas.dtype)
            if needs_bias:
                d_bias = rows.sum(0)
        return dx, d_deltas, d_bias, None, None, None, None


def _require_known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name}={value!r}", "not a known value", f"Known: {', '.join(known)}")


def keep_whole(source: Tensor, x: Tensor, support: Support) -> tuple[Tensor, Tensor]:
    """What backward needs of the input x [..., I]: (kept [B, C], indices [N, K] into its columns); here all of it."""
    return x.detach().reshape(-1, x.shape[-1]), support.indices


def support_linear(
    x: Tensor,
    weight: FrozenWeight,
    support: Support | None,
    bias: Tensor | None = None,
    product: str = "auto",
    keep: Callable[[Tensor, Tensor, Support], tuple[Tensor, Tensor]] = keep_whole,
) -> Tensor:
    """`sparse_delta_linear` for a weight and a support in their own classes; a support of None is the base layer.

    keep: called with x as given, x as used, and the support, where a gradient of the deltas will be wanted.
    """
    _require_known("mode", weight.mode, MODES)
    _require_known("product", product, PRODUCTS)
    parameter = weight.parameter
    in_place = support is not None and weight.mode == "inplace"
    if parameter is not None and in_place and not weight.writable():
        raise WeightError(
            "Putting deltas into a base weight in place",
            "entries of the weight share memory, or it is an inference tensor outside inference mode",
            'Use mode="transient"',
        )
    if parameter is not None and parameter.requires_grad and torch.is_grad_enabled():
        raise WeightError(
            "Training an adapter on a base weight",
            "the weight itself has requires_grad=True, and this operation computes no gradient for it",
            "Freeze the base weight with requires_grad_(False)",
        )
    device, source = x.device.type, x
    if is_autocast(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
        bias = bias if bias is None else bias.to(x.dtype)
    elif parameter is not None and parameter.dtype != x.dtype:
        raise WeightError(
            "Multiplying an input by a base weight",
            f"the input is {x.dtype} and the weight {parameter.dtype}",
            "Cast the input or load the model in the same dtype, or run under torch.autocast",
        )
    deltas = None if support is None else support.deltas
    kept = None
    if support is not None and support.deltas.requires_grad and torch.is_grad_enabled():
        kept = keep(source, x, support)
    return _SupportLinear.apply(x, deltas, bias, support, weight, product, kept)


def sparse_delta_linear(
    x: Tensor,
    weight: Tensor | Callable[[], Tensor],
    indices: Tensor,
    deltas: Tensor,
    bias: Tensor | None = None,
    neurons: Tensor | None = None,
    *,
    transposed: bool = False,
    mode: str = "inplace",
    product: str = "auto",
) -> Tensor:
    """y = x (W + P⊙Θ)ᵀ + bias (Eq. 4), without a merged copy that outlives a product and without a dense gradient.

    Args:
        x: [..., I], the weight's dtype (any under autocast).
        weight: [O, I], any float dtype and layout, frozen; or a function that makes it afresh. With mode "inplace" its
            storage changes during the call and is the same again, bit for bit, when the call ends in any way.
        indices: [N, K], any integer dtype, in [0, I), distinct along each row.
        deltas: [N, K], any float dtype. Added in at least float32, rounded once to the weight's dtype.
        bias: [O] or None.
        neurons: [N], any integer dtype, in [0, O): the rows that the deltas belong to; None for N = O.
        transposed: the weight is stored as [I, O].
        mode: "inplace" or "transient" (a copy takes the deltas and is freed at once).
        product: "sparse", "dense" or "auto": how the gradient of the deltas is computed.

    Returns:
        [..., O]. Differentiable once in x, deltas and bias.

    Raises:
        WeightError: the weight requires a gradient, has another dtype than x, cannot be written in place, or changed
            before backward.
        ConfigError: `mode` or `product` is not a known one, or shapes do not fit. Values of indices are not looked at.
    """
    covered = len(indices)
    if neurons is not None:
        covered = len(neurons)
    elif isinstance(weight, Tensor):
        covered = weight.shape[1 if transposed else 0]
    if indices.ndim != 2 or indices.shape != deltas.shape or covered != len(indices):
        raise ConfigError(
            "A sparse-delta linear operation",
            f"indices have shape {list(indices.shape)} and deltas {list(deltas.shape)} for {covered} neurons",
            "Give both as [N, K] with one row for each neuron",
        )
    support = Support(indices, deltas, neurons, (deltas,))
    return support_linear(x, FrozenWeight(weight, transposed, mode), support, bias, product)
