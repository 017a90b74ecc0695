"""NEAT for torch.compile: W Θ1 is an operator, so that a graph keeps the weight for backward, no float32 copy of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neuroada.ops.neat.network import Network, Theta, widest
from neuroada.ops.neat.product import first_gradient, first_product
from neuroada.ops.sparse_delta.guards import without_autocast
from neuroada.ops.sparse_delta.library import LIBRARY

LIBRARY.define("first_product(Tensor read, Tensor first) -> Tensor")
LIBRARY.define("first_gradient(Tensor read, Tensor d_product) -> Tensor")
torch.library.impl(LIBRARY, "first_product", "CompositeExplicitAutograd")(first_product)
torch.library.impl(LIBRARY, "first_gradient", "CompositeExplicitAutograd")(first_gradient)


@torch.library.register_fake("neuroada::first_product", lib=LIBRARY)
def _product_shape(read: Tensor, first: Tensor) -> Tensor:
    return first.new_empty(read.shape[0], first.shape[0], dtype=widest(read, first))


@torch.library.register_fake("neuroada::first_gradient", lib=LIBRARY)
def _gradient_shape(read: Tensor, d_product: Tensor) -> Tensor:
    return d_product.new_empty(d_product.shape[1], read.shape[1])


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    read, first = inputs
    ctx.save_for_backward(read)
    ctx.dtype = first.dtype


def _differentiate(ctx: Any, d_product: Tensor) -> tuple[None, Tensor]:
    (read,) = ctx.saved_tensors
    return None, torch.ops.neuroada.first_gradient(read, d_product).to(ctx.dtype)


torch.library.register_autograd(
    "neuroada::first_product", _differentiate, setup_context=_keep_for_backward, lib=LIBRARY
)


def traced_update(base: Tensor, x: Tensor, weight: Tensor, theta: Theta, network: Network) -> Tensor:
    """`updated` in operations for a graph, where W Θ1 is made in each call; weight [O, I]."""
    x = x.to(base.dtype)
    with without_autocast(x.device.type):
        state = network.finish(_product(weight, theta.first, network), theta.hidden)
        down, up = (factor.to(x.dtype) for factor in network.factors(state, theta.last))
        inner = x.reshape(-1, x.shape[-1]) @ down
        output = torch.addmm(base.reshape(-1, base.shape[-1]), inner, up.T, alpha=network.scaling)
    return output.reshape(base.shape)


def _product(weight: Tensor, first: Tensor, network: Network) -> Tensor:
    if network.variant == "nonlinear_lora":
        return first.to(widest(weight, first)).T
    return torch.ops.neuroada.first_product(network.read(weight), first)
