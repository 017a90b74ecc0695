"""One budget for many weights: the same K as one sort of all scores gives, near the budget, whatever the order."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from allocations import Allocations
from neuroada.errors import WeightError
from neuroada.selection import CRITERIA, Criterion, allocate, score_steps, topk
from one_sort import by_one_sort, spent

AS_THEY_ARE = Criterion(lambda rows, statistics: rows)
QUICK = settings(max_examples=150, deadline=None, derandomize=True)

SHAPES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=5)
MODELS = given(shapes=SHAPES, seed=st.integers(0, 2**20), ties=st.booleans(), share=st.floats(0, 1.2))


def drawn(shapes, seed: int, ties: bool) -> dict[str, Tensor]:
    """Scores [N, I] by name, of either sign; with ties of few values, 0.0 and -0.0 among them."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    if ties:
        values = [each.round().copysign(torch.randn(each.shape, generator=generator)) for each in values]
    return {f"layer{number}": each for number, each in enumerate(values)}


def spread_of(scores: dict[str, Tensor], budget: int) -> dict[str, int]:
    steps = {name: score_steps(each, AS_THEY_ARE, 0, name) for name, each in scores.items()}
    return allocate(steps, {name: len(each) for name, each in scores.items()}, budget)


@QUICK
@MODELS
def test_one_sort_of_all_scores_gives_the_same(shapes, seed, ties, share):
    scores = drawn(shapes, seed, ties)
    budget = round(share * sum(each.numel() for each in scores.values()))
    assert spread_of(scores, budget) == by_one_sort(scores, budget)


@QUICK
@MODELS
def test_the_budget_is_met_to_half_a_step(shapes, seed, ties, share):
    scores = drawn(shapes, seed, ties)
    least, most = sum(len(each) for each in scores.values()), sum(each.numel() for each in scores.values())
    budget = round(share * most)
    sizes = spread_of(scores, budget)
    assert all(1 <= k <= scores[name].shape[1] for name, k in sizes.items())
    largest = max(len(each) for each in scores.values())
    assert 2 * abs(spent(sizes, scores) - min(max(budget, least), most)) <= largest


@QUICK
@MODELS
def test_a_larger_budget_takes_from_no_weight(shapes, seed, ties, share):
    scores = drawn(shapes, seed, ties)
    most = sum(each.numel() for each in scores.values())
    rows = [spread_of(scores, round(part * share * most)) for part in (0.1, 0.3, 0.5, 0.9, 1)]
    for less, more in pairwise(rows):
        assert all(less[name] <= more[name] for name in scores)


@QUICK
@MODELS
def test_order_of_modules_chunks_and_scale_do_not_matter(shapes, seed, ties, share):
    scores = drawn(shapes, seed, ties)
    budget = round(share * sum(each.numel() for each in scores.values()))
    expected = spread_of(scores, budget)
    assert spread_of(dict(reversed(scores.items())), budget) == expected
    assert spread_of({name: 0.25 * each for name, each in scores.items()}, budget) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "ROW_BLOCK_ENTRIES", 7)
        assert spread_of(scores, budget) == expected


def test_weights_with_larger_scores_get_more():
    generator = torch.Generator().manual_seed(0)
    scores = {name: scale * torch.rand(20, 30, generator=generator) for name, scale in (("a", 1), ("b", 2), ("c", 4))}
    assert spread_of(scores, 0) == {"a": 1, "b": 1, "c": 1}
    assert spread_of(scores, 200) == {"a": 1, "b": 1, "c": 8}
    large = spread_of(scores, 900)
    assert 1 < large["a"] < large["b"] < large["c"] <= 30
    assert spread_of(scores, 10**9) == {"a": 30, "b": 30, "c": 30}


def test_equal_weights_share_equally_to_one():
    scores = {name: torch.ones(10, 8) for name in "dcba"}
    assert spread_of(scores, 160) == dict.fromkeys("abcd", 4)
    assert spread_of(scores, 180) == {"a": 5, "b": 5, "c": 4, "d": 4}


@pytest.mark.parametrize("name", CRITERIA)
def test_covered_neurons_and_statistics_count(name):
    generator = torch.Generator().manual_seed(1)
    weight, gradient = torch.randn(12, 20, generator=generator), torch.randn(12, 20, generator=generator)
    neurons, data = torch.arange(0, 12, 3), {"gradient": gradient, "inputs": torch.rand(20, generator=generator)}
    steps = score_steps(weight, name, 7, "layer", neurons, **data)
    assert steps.shape == (19,)
    assert (steps.diff() > 0).all()
    assert torch.equal(steps, score_steps(weight, name, 7, "layer", neurons, **data))
    if name not in ("random", "low_rank"):
        rows = {"gradient": gradient[neurons], "inputs": data["inputs"]}
        assert torch.equal(steps, score_steps(weight[neurons], name, 7, "layer", **rows))


def test_scores_that_are_no_numbers():
    with pytest.raises(WeightError, match="Choosing inputs of layer: 35 of 35 scores in a block of neurons are NaN"):
        score_steps(torch.randn(5, 7), Criterion(lambda rows, statistics: rows / 0 * 0), 0, "layer")


def test_memory_is_that_of_a_block(monkeypatch):
    weight = torch.randn(4096, 64)
    monkeypatch.setattr(topk, "ROW_BLOCK_ENTRIES", 64 * 64)
    with Allocations() as allocations:
        score_steps(weight, "magnitude", 0, "layer")
    assert allocations.peak < 3 * 8 * (1 << 16) + 32 * 64 * 64
