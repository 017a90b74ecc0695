"""Criteria by name: a larger score is chosen first. Rows of a weight in, rows of scores of the same shape out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neuroada.config.criteria import COMPARABLE, FROM_DATA, NEEDS

LOW_RANK = 1 / 32
"""Rank of the "low_rank" criterion as a share of the weight's smaller side: a choice."""

LARGE_GRADIENTS = 0.1
"""Share of a neuron's inputs that count as those of the largest gradients: a choice."""


@dataclass(frozen=True)
class Statistics:
    """What a criterion may look at beside rows of a weight; what it does not ask for is None.

    generator: on the CPU. gradient: float32 [rows, I], Σ dL/dW over calibration batches. inputs: float32 [I], the
    Euclidean norm of each input over their tokens. low_rank: float32 [rows, I], of the weight's best approximation.
    """

    generator: torch.Generator
    gradient: Tensor | None = None
    inputs: Tensor | None = None
    low_rank: Tensor | None = None


ScoreFunction = Callable[[Tensor, Statistics], Tensor]


@dataclass(frozen=True)
class Criterion:
    """score: rows of a weight [rows, I] (any float dtype) and their statistics → scores [rows, I].

    needs: the statistics that it looks at; with "gradient" or "inputs" it needs data. comparable: whether a score says
    something beside those of other neurons and weights too, so that a budget can be spread over a model by it.
    """

    score: ScoreFunction
    needs: frozenset[str] = frozenset()
    comparable: bool = True

    @property
    def needs_data(self) -> bool:
        """Whether a weight alone is not enough."""
        return bool(self.needs & FROM_DATA)


def _random(weight: Tensor, statistics: Statistics) -> Tensor:
    random = torch.rand(weight.shape, generator=statistics.generator, dtype=torch.float32, device="cpu")
    return random.to(weight.device)


def _gradient(weight: Tensor, statistics: Statistics) -> Tensor:
    assert statistics.gradient is not None
    return statistics.gradient.abs()


def _wanda(weight: Tensor, statistics: Statistics) -> Tensor:
    assert statistics.inputs is not None
    return weight.float().abs() * statistics.inputs


def _low_rank(weight: Tensor, statistics: Statistics) -> Tensor:
    assert statistics.low_rank is not None
    return statistics.low_rank.abs()


def _small_of_large_gradients(weight: Tensor, statistics: Statistics) -> Tensor:
    """Minus the place of an entry in its row: first those of the largest gradients by |w|, then the rest by gradient.

    Places, not values, so that no difference is rounded away, however small the weights are.
    """
    gradient = _gradient(weight, statistics)
    count = max(1, round(LARGE_GRADIENTS * weight.shape[1]))
    large = gradient >= gradient.topk(count, dim=1).values[:, -1:]
    order = gradient.argsort(dim=1, descending=True, stable=True)
    size = weight.abs().masked_fill(~large, torch.inf).gather(1, order)
    order = order.gather(1, size.argsort(dim=1, stable=True))
    places = torch.arange(weight.shape[1], dtype=torch.float32, device=weight.device).expand(order.shape)
    return torch.zeros_like(gradient).scatter(1, order, -places).where(gradient.isfinite(), torch.nan)


_SCORES: dict[str, ScoreFunction] = {
    "magnitude": lambda weight, statistics: weight.abs(),  # Eq. 2
    "random": _random,  # Section 4, Question 2
    "reverse": lambda weight, statistics: -weight.abs(),  # Section 4, Question 2
    "gradient": _gradient,  # Section 4, Question 2
    "magnitude_gradient": lambda weight, statistics: weight.float().abs() * _gradient(weight, statistics),
    "wanda": _wanda,  # arXiv 2306.11695
    "low_rank": _low_rank,  # arXiv 2506.00772
    "small_of_large_gradients": _small_of_large_gradients,
}

CRITERIA = {name: Criterion(_SCORES[name], needs, name in COMPARABLE) for name, needs in NEEDS.items()}
"""By name, as `config.criteria` declares them."""


def low_rank_part(weight: Tensor) -> Tensor:
    """float32 [O, I]: the best approximation of a weight [O, I] by the rank that LOW_RANK gives."""
    rank = max(1, round(LOW_RANK * min(weight.shape)))
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]
