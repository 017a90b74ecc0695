"""The sampled product as an operator of torch: torch.compile, fake tensors and FLOP counters know it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from neuroada.ops.sparse_delta.backends import torch as pieces

LIBRARY = torch.library.Library("neuroada", "DEF")
LIBRARY.define("sampled_product(Tensor x, Tensor dy, Tensor indices, Tensor? neurons, str backend) -> Tensor")


def sampled_product(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None, backend: str) -> Tensor:
    """The sampled product by a backend, "torch", "numba" or "triton", that can run on x's device."""
    return torch.ops.neuroada.sampled_product(x, dy, indices, neurons, backend)


@torch.library.impl(LIBRARY, "sampled_product", "CompositeExplicitAutograd")
def _sampled_product(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None, backend: str) -> Tensor:
    if backend == "numba":
        from neuroada.ops.sparse_delta.backends import numba

        return numba.sampled_product(x, dy, indices, neurons)
    if backend == "triton":
        from neuroada.ops.sparse_delta.backends.triton import product as triton_product

        return triton_product.sampled_product(x, dy, indices, neurons)
    return pieces.sampled_product(x, dy, indices, neurons)


@torch.library.register_fake("neuroada::sampled_product", lib=LIBRARY)
def _shape(x: Tensor, dy: Tensor, indices: Tensor, *_: Any) -> Tensor:
    return x.new_empty(indices.shape, dtype=torch.promote_types(x.dtype, torch.float32))


@register_flop_formula(torch.ops.neuroada.sampled_product)
def _flops(x_shape: Any, dy_shape: Any, indices_shape: Any, *_: Any, **__: Any) -> int:
    return 2 * x_shape[0] * indices_shape[0] * indices_shape[1]
