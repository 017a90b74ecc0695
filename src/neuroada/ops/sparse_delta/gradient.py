"""The gradients of the deltas and of the input: which product, which backend."""

from __future__ import annotations

from torch import Tensor

from neuroada.ops.processor import lacks_instructions
from neuroada.ops.sparse_delta import library
from neuroada.ops.sparse_delta.backends import torch
from neuroada.ops.sparse_delta.backends.choice import backend_for
from neuroada.ops.sparse_delta.backends.triton import device as triton

DENSE_ABOVE = {"torch": 1 / 128, "numba": 1 / 16}
"""Fraction of a row above which the dense product, gathered, is used instead of the sampled one.

Measured with 1,024 tokens on Cascade Lake cores (AVX-512, no bfloat16 instructions). torch, two cores: equally fast at
K=18 to 20 for I=2048, O=5504, above K=20 for I=5504, O=2048, at K=10 for I=576, O=1536. numba, one core: at 1/15 of a
row for I=2048, O=5504, at 1/13 for 4096 x 4096, at 1/8 for I=576, O=1536. Triton's is in backends/triton/device.py.
"""

WIDENED_FROM = 16
"""Tokens from which casting the weight costs less than emulating its product, measured on Cascade Lake in bfloat16:
equal at 8 for 2048 x 2048, 3 to 4 times faster at 1,024."""


def delta_gradient(
    x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None = None, product: str = "auto"
) -> Tensor:
    """g[n, j] = Σ_b dy[b, neuron n] · x[b, indices[n, j]], accumulated in at least float32.

    Args:
        x: [B, I], any float dtype.
        dy: [B, O], the same dtype.
        indices: [N, K], any integer dtype, in [0, I).
        neurons: [N], any integer dtype, in [0, O), or None for N = O.
        product: "sparse" computes the N·K entries alone (B·N·K multiplications); "dense" computes whole rows of dyᵀx,
            a block of neurons at a time, and gathers from them; "auto" chooses by K / I.

    Returns:
        [N, K], float32 (float64 for float64 inputs).
    """
    backend, _ = backend_for(x.device.type, x.dtype, indices.shape[1])
    if product == "auto":
        above = triton.DENSE_ABOVE[x.element_size()] if backend == "triton" else DENSE_ABOVE[backend]
        most = max(above * x.shape[1], torch.FEW if backend == "torch" else 0)
        product = "dense" if indices.shape[1] > most else "sparse"
    if product == "dense":
        return torch.dense_product(x, dy, indices, neurons)
    return library.sampled_product(x, dy, indices, neurons, backend)


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """dx = dy W, in float32 where the processor would emulate the 16-bit product, several times slower.

    Args:
        dy: [B, O], any float dtype.
        weight: [O, I], any float dtype and layout; cast to dy's.

    Returns:
        [B, I], dy's dtype, rounded once.
    """
    if len(dy) >= WIDENED_FROM and lacks_instructions(dy.device.type, dy.dtype):
        return torch.widened_product(dy, weight)
    return dy @ weight.to(dy.dtype)
