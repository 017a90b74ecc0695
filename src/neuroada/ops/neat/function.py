"""base + s · (x P) Qᵀ as one autograd function.

Cost, in dense products of 2·B·I·O FLOPs, forward and backward, the base layer's 2 included: 2 + 3·R·(I + O)/(I·O) for
x P, its product with Qᵀ and their gradients, and 2·R/B for W Θ1 and its gradient. W Θ1 is kept while Θ1 and W stand
still: micro-batches of one optimiser step, and evaluations, make it once. Its gradient is made in each backward pass,
so that gradients are where they belong whenever somebody looks (several backward passes, DDP, clipping). Saved for
backward: x, x P [B, R] and W Θ1 [M, R]; the rest is computed again from them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuroada.ops.neat.network import Network, Theta
from neuroada.ops.neat.product import first_gradient, kept_product
from neuroada.ops.sparse_delta import FrozenWeight, with_support
from neuroada.ops.sparse_delta.guards import require_unchanged, state_of, without_autocast


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        x: Tensor,
        first: Tensor,
        hidden: Tensor | None,
        last: Tensor,
        product: Tensor,
        weight: FrozenWeight,
        network: Network,
    ) -> Tensor:
        _, _, needs_first, needs_hidden, needs_last = ctx.needs_input_grad[:5]
        needs_down, needs_up = network.factors(needs_first or needs_hidden, needs_last)
        rows, output = x.reshape(-1, x.shape[-1]), torch.empty_like(base, memory_format=torch.contiguous_format)
        before, after = base.reshape(-1, base.shape[-1]), output.view(-1, base.shape[-1])
        with without_autocast(x.device.type):
            down, up = (factor.to(x.dtype) for factor in network.factors(network.finish(product, hidden), last))
            inner = rows @ down
            torch.addmm(before, inner, up.T, alpha=network.scaling, out=after)
        ctx.save_for_backward(rows if needs_down else None, inner if needs_up else None, product, hidden, last)
        ctx.weight, ctx.weight_state, ctx.network = weight, state_of(weight), network
        ctx.x_shape, ctx.first_dtype = x.shape, first.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        needs_base, needs_x, needs_first, needs_hidden = ctx.needs_input_grad[:4]
        rows, inner, product, hidden, last = ctx.saved_tensors
        network, errors = ctx.network, dy.reshape(-1, dy.shape[-1])
        dx = d_down = d_up = d_first = d_hidden = None
        with without_autocast(dy.device.type):
            leaves = [tensor.detach().requires_grad_() for tensor in (product, hidden) if tensor is not None]
            with torch.set_grad_enabled(needs_first or needs_hidden):
                state = network.finish(leaves[0], leaves[1] if len(leaves) > 1 else None)
            down, up = (factor.detach().to(dy.dtype) for factor in network.factors(state, last))
            d_inner = (errors @ up).mul_(network.scaling)
            if needs_x:
                dx = (d_inner @ down.T).reshape(ctx.x_shape)
            if rows is not None:
                d_down = rows.T @ d_inner
            if inner is not None:
                d_up = (errors.T @ inner).mul_(network.scaling)
            d_state, d_last = (d_up, d_down) if network.side == "input" else (d_down, d_up)
            if d_state is not None:
                d_product, *d_layers = torch.autograd.grad(state, leaves, d_state.to(state.dtype))
                d_hidden = d_layers[0] if needs_hidden else None
                d_first = _through_weight(ctx, d_product) if needs_first else None
            if d_last is not None:
                d_last = d_last.to(last.dtype)
        return dy if needs_base else None, dx, d_first, d_hidden, d_last, None, None, None


def _through_weight(ctx: Any, d_product: Tensor) -> Tensor:
    """The gradient of Θ1ᵀ from that of W Θ1 [M, R]."""
    network: Network = ctx.network
    if network.variant == "nonlinear_lora":
        return d_product.T.to(ctx.first_dtype)
    require_unchanged(ctx.weight, ctx.weight_state, d_product.device)
    gradient = with_support(ctx.weight, None, lambda dense: first_gradient(network.read(dense), d_product))
    return gradient.to(ctx.first_dtype)


def updated(base: Tensor, x: Tensor, weight: FrozenWeight, stored: Tensor, theta: Theta, network: Network) -> Tensor:
    """base + x ΔWᵀ, with what the network makes of the weight.

    Args:
        base: [..., O], any float dtype.
        x: [..., I], any float dtype; cast to base's, to which the factors P and Q are rounded too.
        weight: the frozen weight [O, I], or how to make it.
        stored: the parameter that stands for it (see `kept_product`).
        theta: what is trained.
        network: what is not.

    Returns:
        [..., O] in base's dtype. Differentiable once in base, x and theta.

    Raises:
        WeightError: in backward: the weight was written to, cast or moved since.
    """
    product = kept_product(weight, stored, theta.first, network)
    return _Update.apply(base, x.to(base.dtype), *theta, product, weight, network)
