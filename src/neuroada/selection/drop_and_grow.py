"""Drop and grow (SET, arXiv 1707.04780; RigL, arXiv 1911.11134): which deltas of a weight stay, and how they move."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kept_entries(deltas: Tensor, drop_fraction: float) -> Tensor:
    """Which deltas of a weight stay, when the smallest by magnitude are dropped.

    Each neuron drops ⌊drop_fraction · K⌋ of its own. What is missing to drop_fraction · N · K then, rounded, is dropped
    one a neuron, in those whose smallest remaining delta is smallest; so with K = 1 a share of the neurons drops its
    only one. Among equal ones the lower index, and the lower neuron, stays.

    Args:
        deltas: [N, K], any float dtype; NaN stays.
        drop_fraction: in [0, 1].

    Returns:
        bool [N, K].
    """
    neurons, per_neuron = deltas.shape
    each = math.floor(drop_fraction * per_neuron)
    more = round((drop_fraction * per_neuron - each) * neurons)
    sizes = deltas.detach().abs()
    order = sizes.sort(dim=1, descending=True, stable=True).indices
    kept = torch.ones_like(sizes, dtype=torch.bool)
    kept.scatter_(1, order[:, per_neuron - each :], False)
    if more:
        last = order[:, per_neuron - each - 1, None]
        rows = sizes.gather(1, last).flatten().sort(descending=True, stable=True).indices[neurons - more :]
        kept[rows, last[rows, 0]] = False
    return kept


def places_before(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Where the entries of a support were in an earlier one.

    Args:
        before, after: [N, K], any integer dtype, strictly ascending along each row.

    Returns:
        (places int64 [N, K] along the rows of `before`, was there bool [N, K]); places mean nothing where it is false.
    """
    places = torch.searchsorted(before.contiguous(), after.contiguous()).clamp(max=before.shape[1] - 1)
    return places, before.gather(1, places) == after


def moved(values: Tensor, places: Tensor, was_there: Tensor) -> Tensor:
    """Values [N, K] of an earlier support for a later one (see `places_before`): zero for what is new."""
    return torch.where(was_there, values.detach().gather(1, places), torch.zeros((), dtype=values.dtype).to(values))
