"""The top k of each row (I7) against sorting in plain Python: ties go to the lower index, in every dtype and layout."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neuroada.config.criteria import WITHOUT_DATA
from neuroada.errors import WeightError
from neuroada.selection import require_finite, select, top_k

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)
VALUES = (-math.inf, -384.0, -1.5, -1.0, -(2.0**-14), -0.0, 0.0, 2.0**-14, 1.0, 1.0078125, 1.5, 384.0, math.inf)
"""Exact in every dtype, so few that most rows have ties, with neighbours that bfloat16 only just tells apart."""
QUICK = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def tables(draw, values=VALUES) -> list[list[float]]:
    width = draw(st.integers(1, 20))
    row = st.lists(st.sampled_from(values), min_size=width, max_size=width)
    return draw(st.lists(row, min_size=1, max_size=5))


def by_sorting(row: list[float], k: int) -> list[int]:
    """The specification: larger first, then the lower index; the chosen ones ascending."""
    return sorted(sorted(range(len(row)), key=lambda index: (-row[index], index))[:k])


@DTYPES
@QUICK
@given(table=tables(), data=st.data())
@example(table=[[0.0, -0.0, 0.0]], data=None)
@example(table=[[1.0] * 24, [-0.0] * 24], data=None)
def test_chosen_positions_are_those_of_the_specification(dtype, table, data):
    width = len(table[0])
    for k in range(1, width + 1) if data is None else {1, width, data.draw(st.integers(1, width))}:
        chosen = top_k(torch.tensor(table, dtype=dtype), k)
        assert chosen.dtype == torch.int64
        assert chosen.tolist() == [by_sorting(row, k) for row in table]


@QUICK
@given(table=tables((-3, 0, 1, 7)), data=st.data())
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8], ids=str)
def test_integers_can_be_scores(dtype, table, data):
    k = data.draw(st.integers(1, len(table[0])))
    assert top_k(torch.tensor(table, dtype=dtype), k).tolist() == [by_sorting(row, k) for row in table]


def layouts(values: torch.Tensor) -> dict[str, torch.Tensor]:
    rows, columns = values.shape
    padded = values.new_full((2 * rows, 2 * columns + 3), 9.0)
    padded[::2, 3::2] = values
    return {"columns": values.T.contiguous().T, "strided": padded[::2, 3::2], "rows": values.clone()}


def tied_weight(dtype: torch.dtype, rows: int = 37, columns: int = 53) -> torch.Tensor:
    """Each magnitude occurs about twelve times in a row, with both signs."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-4, 5, (rows, columns), generator=generator).to(dtype) / 4


@DTYPES
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@pytest.mark.parametrize("k", [1, 2, 13, 52, 53])
def test_layout_does_not_matter(dtype, layout, k):
    scores = tied_weight(dtype)
    assert top_k(layouts(scores)[layout], k).tolist() == [by_sorting(row, k) for row in scores.tolist()]


@DTYPES
@pytest.mark.parametrize(("selection", "sign"), [("magnitude", 1), ("reverse", -1)])
@pytest.mark.parametrize("k", [1, 2, 13, 52, 53])
def test_selection_by_magnitude(dtype, selection, sign, k):
    weight = tied_weight(dtype)
    chosen = select(weight, k, selection, seed=0, name="layer")
    assert chosen.dtype == torch.int32
    assert chosen.tolist() == [by_sorting([sign * abs(value) for value in row], k) for row in weight.tolist()]


@pytest.mark.parametrize("selection", WITHOUT_DATA)
@pytest.mark.parametrize("k", [1, 4, 53])
def test_equal_values_give_equal_choices_in_every_dtype_and_layout(selection, k):
    expected = select(tied_weight(torch.float64), k, selection, 7, "layer")
    for dtype in FLOATS:
        for weight in layouts(tied_weight(dtype)).values():
            assert torch.equal(select(weight, k, selection, 7, "layer"), expected)


@pytest.mark.parametrize("selection", WITHOUT_DATA)
@pytest.mark.parametrize("k", [1, 2, 53])
@pytest.mark.parametrize("neurons", [None, torch.tensor([0, 5, 6, 36])], ids=["all", "covered"])
def test_choices_are_distinct_and_ascending(selection, k, neurons):
    chosen = select(tied_weight(torch.bfloat16), k, selection, 0, "layer", neurons)
    assert chosen.shape == (37 if neurons is None else 4, k)
    assert (chosen[:, 1:] > chosen[:, :-1]).all()
    assert chosen.min() >= 0
    assert chosen.max() < 53


@pytest.mark.parametrize("selection", ["magnitude", "reverse"])
def test_covered_neurons_get_what_they_would_get_among_all(selection):
    weight, neurons = tied_weight(torch.float32), torch.tensor([0, 5, 6, 36])
    every = select(weight, 3, selection, 0, "layer")
    assert torch.equal(select(weight, 3, selection, 0, "layer", neurons), every[neurons])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize("selection", WITHOUT_DATA)
def test_smallest_weights(shape, selection):
    chosen = select(torch.zeros(shape), shape[1], selection, 0, "layer")
    assert chosen.tolist() == [list(range(shape[1]))] * shape[0]


def test_a_trainable_weight_gives_plain_indices():
    chosen = select(torch.nn.Parameter(tied_weight(torch.float32)), 3, "magnitude", 0, "layer")
    assert not chosen.requires_grad


@DTYPES
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [(0, 0), (36, 52), (17, 11)])
def test_a_weight_that_is_not_finite_is_refused(dtype, layout, value, position):
    weight = layouts(tied_weight(dtype))[layout]
    require_finite(weight, "model.layers.0.mlp.up_proj")
    weight[position] = value
    with pytest.raises(WeightError) as caught:
        require_finite(weight, "model.layers.0.mlp.up_proj")
    assert str(caught.value) == (
        "Adapting model.layers.0.mlp.up_proj: 1 of its 1961 weights are NaN or infinite. Load the base weights before "
        "adapting them, and check the checkpoint for damage."
    )


@DTYPES
def test_the_largest_finite_weights_are_accepted(dtype):
    limits = torch.finfo(dtype)
    require_finite(
        torch.tensor([[limits.max, limits.min, limits.tiny, limits.smallest_normal, -0.0]], dtype=dtype), "w"
    )


def test_all_bad_entries_are_counted():
    weight = tied_weight(torch.float32)
    weight[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    with pytest.raises(WeightError, match="3 of its 1961 weights"):
        require_finite(weight, "w")
