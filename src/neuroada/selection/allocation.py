"""One budget for many weights: K of each by how its scores compare with those of the others.

With n_w(τ) scores of weight w at or above a threshold τ, and N_w covered neurons, K_w(τ) is n_w(τ) / N_w, rounded, and
at least 1. The threshold is the one with which Σ N_w K_w comes nearest to the budget.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from neuroada.selection.scores import Criterion
from neuroada.selection.topk import scored_blocks

BINS = 1 << 16
"""As many values as bfloat16 has: scores are told apart across weights by their value in it, and those that share one
count as spread evenly up to the next. So a weight of any size is counted in 512 KiB, and the |w| of a bfloat16 model
are compared exactly."""


def score_steps(
    weight: Tensor,
    selection: str | Criterion,
    seed: int,
    name: str,
    neurons: Tensor | None = None,
    *,
    gradient: Tensor | None = None,
    inputs: Tensor | None = None,
) -> Tensor:
    """Where K of a weight rises, as a threshold falls through all scores from the largest on.

    Works in row blocks; the arguments are those of `select`.

    Returns:
        float64 [I - 1] in (0, BINS], ascending, on the CPU: the thresholds at which K becomes 2, 3, ..., I, as places
        on a scale that all weights share, the largest scores first.

    Raises:
        WeightError: a score is NaN.
    """
    counts = torch.zeros(BINS, dtype=torch.int64, device=weight.device)
    for _, scores in scored_blocks(weight, selection, seed, name, neurons, gradient, inputs):
        counts += torch.bincount(_bins(scores).flatten(), minlength=BINS)
    counts = counts.cpu()
    passed = counts.cumsum(0)
    count = weight.shape[0] if neurons is None else len(neurons)
    ranks = (count * (2 * torch.arange(2, weight.shape[1] + 1) - 1) + 1) // 2
    bins = torch.searchsorted(passed, ranks)
    return bins + 1 - (passed[bins] - ranks).double() / counts[bins]


def _bins(scores: Tensor) -> Tensor:
    """int32, in [0, BINS), 0 for the largest: the place of each score among the values of bfloat16."""
    bits = (scores.bfloat16() + 0.0).view(torch.int16).int()  # + 0.0: -0.0 is 0.0
    return BINS // 2 - 1 - torch.where(bits < 0, bits ^ 0x7FFF, bits)


def allocate(steps: Mapping[str, Tensor], neurons: Mapping[str, int], budget: int) -> dict[str, int]:
    """K of each weight, so that Σ N·K comes nearest to a budget with one threshold for all.

    Between Σ N and Σ N·I it comes within half the largest N; it and each K never fall with a larger budget. Weights
    that rise at the very same place do so in the order of their names.

    Args:
        steps: by name, of `score_steps`.
        neurons: by name, N.
        budget: deltas in all.

    Returns:
        By name, in [1, I].
    """
    names = sorted(steps)
    sizes = torch.tensor([neurons[name] for name in names])
    lengths = torch.tensor([len(steps[name]) for name in names])
    order = torch.cat([steps[name] for name in names]).argsort(stable=True)
    rising = torch.arange(len(names)).repeat_interleave(lengths)[order]
    totals = sizes.sum() + sizes[rising].cumsum(0)
    taken = int((2 * budget > 2 * totals - sizes[rising]).sum())  # a step is taken if the budget is past its middle
    counts = 1 + torch.bincount(rising[:taken], minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))
