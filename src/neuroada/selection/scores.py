"""Scores by name: a larger score is chosen first. Rows of a weight in, rows of scores of the same shape out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ScoreFunction = Callable[[Tensor, torch.Generator], Tensor]


def _magnitude(weight: Tensor, generator: torch.Generator) -> Tensor:
    return weight.abs()


def _reverse(weight: Tensor, generator: torch.Generator) -> Tensor:
    return -weight.abs()


def _random(weight: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(weight.shape, generator=generator, dtype=torch.float32, device="cpu").to(weight.device)


SCORES: dict[str, ScoreFunction] = {
    "magnitude": _magnitude,  # Eq. 2
    "random": _random,  # Section 4, Question 2
    "reverse": _reverse,  # Section 4, Question 2: the smallest magnitudes
}
"""Each takes rows of a weight [rows, I] (any float dtype) and a CPU generator, and returns scores [rows, I]."""
