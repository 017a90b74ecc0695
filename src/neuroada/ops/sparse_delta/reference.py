"""The specification: dense, differentiable, and in whatever dtype its inputs have, float64 included."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def merged_weight(weight: Tensor, indices: Tensor, deltas: Tensor, neurons: Tensor | None = None) -> Tensor:
    """Weight with `original + delta` at the support, summed in at least float32 and rounded once (Eq. 1 and 3).

    Differentiable in `deltas`; rounding counts as the identity. The fast version equals it up to the sign of a zero:
    there an entry whose delta is zero keeps all its bits.

    Args:
        weight: [O, I], any float dtype.
        indices: [N, K], any integer dtype, in [0, I), distinct along each row.
        deltas: [N, K], any float dtype.
        neurons: [N], any integer dtype, in [0, O), or None for N = O.

    Returns:
        [O, I] in the weight's dtype.
    """
    rows = torch.arange(weight.shape[0], device=weight.device) if neurons is None else neurons.long()
    position = (rows[:, None].expand(indices.shape), indices.long())
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.index_put(position, (weight[position].to(wide) + deltas.to(wide)).to(weight.dtype))


def sparse_delta_linear(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    deltas: Tensor,
    bias: Tensor | None = None,
    neurons: Tensor | None = None,
) -> Tensor:
    """y = x (W + P⊙Θ)ᵀ + bias (Eq. 4): x [..., I] → [..., O]; the rest as in `merged_weight`."""
    return F.linear(x, merged_weight(weight, indices, deltas, neurons), bias)
