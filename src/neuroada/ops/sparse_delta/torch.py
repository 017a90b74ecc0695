"""The pieces of the operation in plain torch, for any device."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ENTRIES = 1 << 20
"""Entries of x, or of dense rows, that the gradient works on at a time: 4 MiB in float32. A choice, not measured."""

DENSE_ABOVE = 1 / 256
"""Fraction of a row above which the dense product, gathered, is used instead of the sparse one. Measured on two cores
with AVX-512 and no bfloat16 instructions, 1,024 tokens, I=2048, O=5504: the two are equally fast at K=4 to 5 in float32
and at K=11 in bfloat16, that is at 1/450 and 1/190 of a row."""


def positions(weight: Tensor, indices: Tensor, neurons: Tensor | None = None) -> Tensor:
    """Offsets of the support in the storage of a weight of any layout, from its first element.

    Args:
        weight: [O, I]; only its shape and strides are read.
        indices: [N, K], any integer dtype, in [0, I).
        neurons: [N], any integer dtype, in [0, O), or None for N = O.

    Returns:
        int64 [N, K], for `flat(weight)`.
    """
    row_stride, column_stride = weight.stride()
    if neurons is None:
        starts = torch.arange(0, weight.shape[0] * row_stride, row_stride, device=indices.device)
    else:
        starts = neurons.long() * row_stride
    return starts[:, None] + indices.long() * column_stride


def flat(weight: Tensor) -> Tensor:
    """A one-dimensional alias of a weight's storage that leaves autograd's version counter alone."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    return weight.data.as_strided((span,), (1,))


def shifted(originals: Tensor, deltas: Tensor) -> Tensor:
    """`originals + deltas`, summed in at least float32, rounded once; where a delta is zero, the original's bits.

    Args:
        originals: [N, K], any float dtype.
        deltas: [N, K], any float dtype.

    Returns:
        [N, K] in the originals' dtype.
    """
    wide = torch.promote_types(originals.dtype, torch.float32)
    summed = (originals.to(wide) + deltas.to(wide)).to(originals.dtype)
    return torch.where(deltas == 0, originals, summed)


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
    per_neuron, inputs = indices.shape[1], x.shape[1]
    if product == "auto":
        product = "dense" if per_neuron > DENSE_ABOVE * inputs else "sparse"
    wide = torch.promote_types(x.dtype, torch.float32)
    gradient = torch.empty(indices.shape, dtype=wide, device=x.device)
    if product == "dense":
        columns = x.to(wide)
        entries_per_neuron = inputs
    else:
        columns = x.T.contiguous()
        entries_per_neuron = per_neuron * x.shape[0]
    step = max(1, BLOCK_ENTRIES // max(1, entries_per_neuron))
    for start in range(0, len(indices), step):
        block = slice(start, start + step)
        rows = (dy.T[block] if neurons is None else dy.T[neurons[block].long()]).to(wide)
        chosen = indices[block].long()
        if product == "dense":
            gradient[block] = (rows @ columns).gather(1, chosen)
        else:
            gathered = columns[chosen].to(wide)  # [rows, K, B]
            gradient[block] = torch.bmm(rows.unsqueeze(1), gathered.transpose(1, 2)).squeeze(1)
    return gradient
