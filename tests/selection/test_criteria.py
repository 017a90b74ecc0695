"""What every criterion owes: k distinct inputs of each neuron, ascending, always the same ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neuroada.errors import ConfigError
from neuroada.selection import CRITERIA, Criterion, select
from neuroada.selection.scores import low_rank_part


def drawn(seed: int, rows: int, width: int, ties: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, gradient, inputs); with ties of few different values."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (rows, width), (width,))
    if ties:
        weight, gradient, inputs = (torch.randint(-2, 3, shape, generator=generator).float() for shape in shapes)
    else:
        weight, gradient, inputs = (torch.randn(shape, generator=generator) for shape in shapes)
    return weight, gradient, inputs.abs()


CASES = given(
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 9),
    width=st.integers(1, 17),
    ties=st.booleans(),
    share=st.floats(0, 1),
)


@pytest.mark.parametrize("name", CRITERIA)
@CASES
def test_k_distinct_inputs_ascending_and_the_same_again(name, seed, rows, width, ties, share):
    weight, gradient, inputs = drawn(seed, rows, width, ties)
    k = max(1, round(share * width))
    neurons = torch.arange(0, rows, 2)
    for covered in (None, neurons):
        found = select(weight, k, name, 7, "layer", covered, gradient=gradient, inputs=inputs)
        assert found.shape == (rows if covered is None else len(covered), k)
        assert found.dtype == torch.int32
        assert (found >= 0).all()
        assert (found < width).all()
        assert (found.diff(dim=1) > 0).all()
        again = select(weight, k, name, 7, "layer", covered, gradient=gradient, inputs=inputs)
        assert torch.equal(found, again)
    if name != "random":
        whole = select(weight, k, name, 7, "layer", gradient=gradient, inputs=inputs)
        assert torch.equal(found, whole[neurons]), "a neuron's choice does not depend on which others are covered"


@pytest.mark.parametrize("name", CRITERIA)
@CASES
def test_scaling_the_weight_changes_no_choice(name, seed, rows, width, ties, share):
    weight, gradient, inputs = drawn(seed, rows, width, ties=False)
    k = max(1, round(share * width))
    found, *scaled = (
        select(scale * weight, k, name, 7, "layer", gradient=gradient, inputs=inputs) for scale in (1, 0.25, 2.0**-20)
    )
    assert all(torch.equal(found, each) for each in scaled)


@pytest.mark.parametrize("name", CRITERIA)
def test_no_choice_of_wide_rows_of_small_weights_is_rounded_away(name):
    weight, gradient, inputs = drawn(2, 64, 512, ties=False)
    for k in (1, 5, 60):
        found, small = (
            select(each, k, name, 7, "layer", gradient=gradient, inputs=inputs) for each in (weight, 2.0**-24 * weight)
        )
        assert torch.equal(found, small)


DEFINITIONS = {
    "magnitude": lambda w, g, x, low: abs(w),
    "reverse": lambda w, g, x, low: -abs(w),
    "gradient": lambda w, g, x, low: abs(g),
    "magnitude_gradient": lambda w, g, x, low: abs(w * g),
    "wanda": lambda w, g, x, low: abs(w) * x,
    "low_rank": lambda w, g, x, low: abs(low),
}
"""Of one entry: its weight, its gradient, the norm of its input, and its value in the low-rank part."""


def best_of(name: str, weight: Tensor, gradient: Tensor, inputs: Tensor, k: int) -> list[set[int]]:
    """By Python, a row at a time."""
    rows = zip(weight.tolist(), gradient.tolist(), low_rank_part(weight).tolist(), strict=True)
    chosen = []
    for w, g, low in rows:
        scores = [DEFINITIONS[name](*entry) for entry in zip(w, g, inputs.tolist(), low, strict=True)]
        chosen.append(set(sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:k]))
    return chosen


@pytest.mark.parametrize("name", DEFINITIONS)
def test_the_largest_by_definition_are_chosen(name):
    weight, gradient, inputs = drawn(3, 37, 53, ties=False)
    found = select(weight, 5, name, 0, "layer", gradient=gradient, inputs=inputs)
    assert [set(row) for row in found.tolist()] == best_of(name, weight, gradient, inputs, 5)


def test_the_smallest_of_the_largest_gradients():
    weight, gradient, inputs = drawn(3, 37, 50, ties=False)
    found = select(weight, 3, "small_of_large_gradients", 0, "layer", gradient=gradient, inputs=inputs)
    for row, chosen in enumerate(found.tolist()):
        large = gradient[row].abs().topk(5).indices.tolist()
        assert set(chosen) == set(sorted(large, key=lambda i: abs(float(weight[row, i])))[:3])
    more = select(weight, 8, "small_of_large_gradients", 0, "layer", gradient=gradient, inputs=inputs)
    assert [set(row) for row in more.tolist()] == [set(row.abs().topk(8).indices.tolist()) for row in gradient]


def test_the_low_rank_part_is_the_best_approximation():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(96, 2, generator=generator), torch.randn(2, 64, generator=generator)
    assert torch.allclose(low_rank_part(left @ right), left @ right, atol=1e-4)
    noisy = left @ right + 0.1 * torch.randn(96, 64, generator=generator)
    assert torch.linalg.matrix_rank(low_rank_part(noisy), rtol=1e-4) == 2


def test_a_criterion_of_ones_own_and_scores_that_are_no_numbers():
    weight = torch.randn(5, 7)
    right = Criterion(lambda rows, statistics: torch.arange(7.0).expand(rows.shape))
    assert select(weight, 2, right, 0, "layer").tolist() == [[5, 6]] * 5
    from neuroada.errors import WeightError

    wrong = Criterion(lambda rows, statistics: rows / 0 * 0)
    with pytest.raises(WeightError, match="Choosing inputs of layer: 35 of 35 scores in a block of neurons are NaN"):
        select(weight, 2, wrong, 0, "layer")


@pytest.mark.parametrize(
    ("score", "found"),
    [
        (lambda weight, statistics: weight[:1], r"it returned float32 of shape \[1, 7\]"),
        (lambda weight, statistics: weight[:, :3], r"it returned float32 of shape \[5, 3\]"),
        (lambda weight, statistics: weight.sum(1), r"it returned float32 of shape \[5\]"),
        (lambda weight, statistics: weight.T, r"it returned float32 of shape \[7, 5\]"),
        (lambda weight, statistics: weight > 0, r"it returned bool of shape \[5, 7\]"),
        (lambda weight, statistics: weight.to(torch.complex64), r"it returned complex64 of shape \[5, 7\]"),
        (lambda weight, statistics: 1, "it returned a int"),
        (lambda weight, statistics: None, "it returned a NoneType"),
    ],
)
def test_scores_of_ones_own_that_are_not_those_of_the_rows_are_refused(score, found):
    with pytest.raises(ConfigError, match=found + r".*Return a real tensor of shape \[5, 7\]"):
        select(torch.randn(5, 7), 2, Criterion(score), 0, "w")
