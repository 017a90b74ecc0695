"""The compiled kernels as operators of torch: torch.compile, fake tensors and FLOP counters know them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

LIBRARY = torch.library.Library("neuroada", "DEF")
LIBRARY.define("sampled_product(Tensor x, Tensor dy, Tensor indices, Tensor? neurons) -> Tensor")


def sampled_product(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None = None) -> Tensor:
    """`torch.sampled_product` by the compiled backend of x's device: Numba on a CPU, Triton on a GPU."""
    return torch.ops.neuroada.sampled_product(x, dy, indices, neurons)


@torch.library.impl(LIBRARY, "sampled_product", "CPU")
def _on_cpu(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None) -> Tensor:
    from neuroada.ops.sparse_delta import numba

    return numba.sampled_product(x, dy, indices, neurons)


@torch.library.impl(LIBRARY, "sampled_product", "CUDA")
def _on_cuda(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None) -> Tensor:
    from neuroada.ops.sparse_delta import triton_product

    return triton_product.sampled_product(x, dy, indices, neurons)


@torch.library.register_fake("neuroada::sampled_product", lib=LIBRARY)
def _shape(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None) -> Tensor:
    return x.new_empty(indices.shape, dtype=torch.float32)


@register_flop_formula(torch.ops.neuroada.sampled_product)
def _flops(x_shape: Any, dy_shape: Any, indices_shape: Any, *_: Any, **__: Any) -> int:
    return 2 * x_shape[0] * indices_shape[0] * indices_shape[1]
