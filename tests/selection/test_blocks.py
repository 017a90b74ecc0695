"""Selection works on a few rows at a time: the same result for every block size, and little memory."""

import pytest
import torch

from allocations import Allocations
from neuroada.config.criteria import WITHOUT_DATA
from neuroada.selection import Criterion, require_finite, select, topk

COVERED = torch.arange(0, 37, 3)
SQUARE_PROJECTION_OF_8B = 4096 * 4096 * 2
"""Bytes, in bfloat16."""


@pytest.fixture
def weight() -> torch.Tensor:
    """Ties everywhere: the most work that a block can be."""
    return torch.ones(256, 64, dtype=torch.bfloat16)


@pytest.mark.parametrize("selection", WITHOUT_DATA)
@pytest.mark.parametrize("neurons", [None, COVERED], ids=["all", "covered"])
@pytest.mark.parametrize("k", [1, 3])
def test_block_size_does_not_matter(selection, neurons, k, monkeypatch):
    weight = torch.randint(-3, 4, (37, 53), generator=torch.Generator().manual_seed(0)).float()
    expected = select(weight, k, selection, 0, "layer", neurons)
    for entries in (1, 53, 54, 10 * 53, 36 * 53, 37 * 53, 38 * 53):
        monkeypatch.setattr(topk, "ROW_BLOCK_ENTRIES", entries)
        assert torch.equal(select(weight, k, selection, 0, "layer", neurons), expected)


@pytest.mark.parametrize("neurons", [None, COVERED], ids=["all", "covered"])
@pytest.mark.parametrize(("entries", "rows"), [(1, 1), (64, 1), (64 * 5, 5), (64 * 6 - 1, 5), (1 << 20, 256)])
def test_scores_are_made_for_one_block_at_a_time(weight, neurons, entries, rows, monkeypatch):
    shapes = []

    def score(block, statistics):
        shapes.append(tuple(block.shape))
        return block.abs()

    monkeypatch.setattr(topk, "ROW_BLOCK_ENTRIES", entries)
    select(weight, 2, Criterion(score), 0, "layer", neurons)
    count = len(weight) if neurons is None else len(neurons)
    assert max(shapes) == (min(rows, count), 64)
    assert sum(height for height, _ in shapes) == count


@pytest.mark.parametrize("selection", [name for name in WITHOUT_DATA if name != "low_rank"])
@pytest.mark.parametrize("covered", [False, True])
@pytest.mark.parametrize("k", [1, 20])
def test_memory_is_a_fraction_of_a_large_weight(weight, selection, covered, k, monkeypatch):
    at_a_time = topk.ROW_BLOCK_ENTRIES
    entries = 64 * 8
    monkeypatch.setattr(topk, "ROW_BLOCK_ENTRIES", entries)
    neurons = torch.arange(len(weight)) if covered else None
    with Allocations() as allocations:
        result = select(weight, k, selection, 0, "layer", neurons)
    an_entry = (allocations.peak - result.nbytes) / entries
    assert 0 < an_entry * at_a_time < SQUARE_PROJECTION_OF_8B


def test_twin_in_one_piece_needs_more_than_the_weight(weight):
    with Allocations() as allocations:
        topk.top_k(weight.abs(), 20)
    assert allocations.peak > 2 * weight.nbytes


def test_looking_for_nan_copies_nothing(weight):
    with Allocations() as allocations:
        require_finite(weight, "layer")
    assert allocations.peak < 64
