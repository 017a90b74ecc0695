"""The deltas' gradient: which product, which backend."""

from __future__ import annotations

from torch import Tensor

from neuroada.ops.backend import backend_for
from neuroada.ops.sparse_delta import library, torch, triton

DENSE_ABOVE = {"torch": 1 / 256, "numba": 1 / 16}
"""Fraction of a row above which the dense product, gathered, is used instead of the sampled one.

Measured with 1,024 tokens on Cascade Lake cores (AVX-512, no bfloat16 instructions). torch, I=2048, O=5504, two cores:
equally fast at K=4 to 5 in float32 and at K=11 in bfloat16, that is at 1/450 and 1/190 of a row. numba, one core: at
1/15 of a row for I=2048, O=5504, at 1/13 for 4096 x 4096, at 1/8 for I=576, O=1536. Triton's is in triton.py.
"""


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
    backend, _ = backend_for(x.device.type, x.dtype)
    if product == "auto":
        above = triton.DENSE_ABOVE[x.element_size()] if backend == "triton" else DENSE_ABOVE[backend]
        product = "dense" if indices.shape[1] > above * x.shape[1] else "sparse"
    if product == "dense":
        return torch.dense_product(x, dy, indices, neurons)
    if backend == "torch":
        return torch.sampled_product(x, dy, indices, neurons)
    return library.sampled_product(x, dy, indices, neurons)
