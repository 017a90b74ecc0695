"""The pieces of the operation in plain torch, for any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from neuroada.ops.sparse_delta.support import Support

BLOCK_ENTRIES = 1 << 20
"""Entries of x, or of dense rows, that the gradient works on at a time: 4 MiB in float32. A choice, not measured."""


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


@torch.no_grad()
def entries(weight: Tensor, support: Support) -> tuple[Tensor, Tensor, Tensor]:
    """(positions, originals, originals + deltas) of a support in a weight [O, I], each [N, K]; positions are int64, in
    `flat(weight)`."""
    where = positions(weight, support.indices, support.neurons)
    originals = flat(weight).take(where)
    return where, originals, shifted(originals, support.deltas)


def read(weight: Tensor, support: Support) -> Tensor:
    """The entries of a weight [O, I] at a support: [N, K] in the weight's dtype."""
    return flat(weight).take(positions(weight, support.indices, support.neurons))


def sampled_product(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None = None) -> Tensor:
    """g[n, j] = Σ_b dy[b, neuron n] · x[b, indices[n, j]]: B·N·K multiplications, a block of neurons at a time.

    Args:
        x: [B, I], any float dtype.
        dy: [B, O], the same dtype.
        indices: [N, K], any integer dtype, in [0, I).
        neurons: [N], any integer dtype, in [0, O), or None for N = O.

    Returns:
        [N, K], float32 (float64 for float64 inputs), accumulated in that type.
    """
    columns, wide = x.T.contiguous(), torch.promote_types(x.dtype, torch.float32)
    gradient = torch.empty(indices.shape, dtype=wide, device=x.device)
    for block in _blocks(len(indices), indices.shape[1] * x.shape[0]):
        gathered = columns[indices[block].long()].to(wide)  # [rows, K, B]
        rows = _rows(dy, neurons, block).to(wide)
        gradient[block] = torch.bmm(rows.unsqueeze(1), gathered.transpose(1, 2)).squeeze(1)
    return gradient


def dense_product(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None = None) -> Tensor:
    """The same sums, gathered from whole rows of dyᵀx that are made a block of neurons at a time.

    On CUDA the product is made in the inputs' own dtype, for which there are tensor cores, and so rounded to it once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    gradient = torch.empty(indices.shape, dtype=wide, device=x.device)
    factor = x.dtype if x.is_cuda else wide
    columns = x.to(factor)
    for block in _blocks(len(indices), x.shape[1]):
        rows = _rows(dy, neurons, block).to(factor)
        gradient[block] = (rows @ columns).gather(1, indices[block].long())
    return gradient


def _rows(dy: Tensor, neurons: Tensor | None, block: slice) -> Tensor:
    return dy.T[block] if neurons is None else dy.T[neurons[block].long()]


def _blocks(count: int, entries_each: int) -> Iterator[slice]:
    step = max(1, BLOCK_ENTRIES // max(1, entries_each))
    return (slice(start, start + step) for start in range(0, count, step))
