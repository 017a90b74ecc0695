"""Drop and grow on plain tensors: which deltas stay, which inputs come, and how values move along."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neuroada.errors import WeightError
from neuroada.selection import Criterion, kept_entries, moved, places_before, select
from specimens import same_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@st.composite
def supports(draw) -> tuple[Tensor, Tensor, Tensor, float]:
    """(scores [O, I] with ties and infinities, indices [O, K], deltas [O, K] with ties, drop fraction)."""
    outputs, inputs = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    per_neuron = draw(st.integers(1, inputs))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    scores = torch.randint(-2, 3, (outputs, inputs), generator=generator).to(draw(st.sampled_from(DTYPES)))
    scores = scores.masked_fill(scores == 2, math.inf if draw(st.booleans()) else 2)
    scores = scores.masked_fill(scores == -2, -math.inf if draw(st.booleans()) else -2)
    indices = torch.rand(outputs, inputs, generator=generator).argsort(1)[:, :per_neuron].sort(1).values.int()
    deltas = torch.randint(-3, 4, (outputs, per_neuron), generator=generator).to(draw(st.sampled_from(DTYPES)))
    return scores, indices, deltas, draw(st.sampled_from([0.05, 0.2, 0.3, 0.5, 0.7, 1.0]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(supports())
def test_the_smallest_deltas_are_dropped(support):
    _, _, deltas, fraction = support
    neurons, per_neuron = deltas.shape
    kept = kept_entries(deltas, fraction)
    each = math.floor(fraction * per_neuron)
    dropped = [int(count) for count in (~kept).sum(1)]
    assert set(dropped) <= {each, each + 1}
    assert abs(sum(dropped) - fraction * deltas.numel()) <= 0.5 + 1e-9
    sizes = deltas.abs().tolist()
    for row in range(neurons):
        order = sorted(range(per_neuron), key=lambda j, row=row: (-sizes[row][j], j))
        stay = order[: per_neuron - dropped[row]]
        assert kept[row].nonzero().flatten().tolist() == sorted(stay)
    if each < per_neuron:
        last = [sorted(sizes[row], reverse=True)[per_neuron - each - 1] for row in range(neurons)]
        order = sorted(range(neurons), key=lambda row: (-last[row], row))
        more = sum(dropped) - each * neurons
        assert {row for row in range(neurons) if dropped[row] > each} == set(order[neurons - more :])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(supports())
def test_inputs_stay_distinct_and_ascending_and_the_best_of_the_others_grow(support):
    scores, indices, deltas, fraction = support
    kept = kept_entries(deltas, fraction)
    criterion = Criterion(lambda weight, statistics: weight)
    found = select(scores, indices.shape[1], criterion, 0, "weight", kept=(indices, kept))
    assert found.dtype == torch.int32
    assert (found.diff(dim=1) > 0).all()
    assert found.min() >= 0
    assert found.max() < scores.shape[1]
    for row in range(len(scores)):
        stay = set(indices[row][kept[row]].tolist())
        others = [j for j in range(scores.shape[1]) if j not in stay]
        best = sorted(others, key=lambda j, row=row: (-float(scores[row, j]), j))[: indices.shape[1] - len(stay)]
        assert set(found[row].tolist()) == stay | set(best)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(supports())
def test_values_move_along_bit_for_bit(support):
    scores, before, deltas, fraction = support
    criterion = Criterion(lambda weight, statistics: weight)
    after = select(scores, before.shape[1], criterion, 0, "w", kept=(before, kept_entries(deltas, fraction)))
    values = moved(deltas, *places_before(before, after))
    expected = torch.zeros_like(deltas)
    for row in range(len(before)):
        old = dict(zip(before[row].tolist(), deltas[row], strict=True))
        for j, index in enumerate(after[row].tolist()):
            expected[row, j] = old.get(index, 0)
    assert same_bits(values, expected)


def test_with_one_delta_a_neuron_the_smallest_of_the_layer_are_dropped():
    deltas = torch.tensor([[0.5], [-0.1], [0.3], [0.1], [0.0], [-2.0]])
    assert kept_entries(deltas, 0.3).flatten().tolist() == [True, True, True, False, False, True]
    assert kept_entries(deltas, 0.05).all()


def test_whole_scores_of_a_function_may_be_integers_and_not_nan():
    indices, kept = torch.tensor([[0, 1]]), torch.tensor([[True, False]])
    counts = Criterion(lambda weight, statistics: torch.tensor([[0, 1, 2, 3]]))
    assert select(torch.ones(1, 4), 2, counts, 0, "w", kept=(indices, kept)).tolist() == [[0, 3]]
    broken = Criterion(lambda weight, statistics: weight * math.nan, frozenset({"gradient"}))
    with pytest.raises(WeightError, match="Choosing inputs of w: 4 of 4 scores in a block of neurons are NaN"):
        select(torch.ones(1, 4), 2, broken, 0, "w", kept=(indices, kept))
