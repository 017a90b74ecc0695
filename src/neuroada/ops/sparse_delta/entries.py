"""Entries of a weight at a support: where they lie, what they are, and what they become."""

from __future__ import annotations

import torch
from torch import Tensor

from neuroada.ops.sparse_delta.support import Support


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
