"""Entries of several weights together: by score against a plain sort, at random against what chance allows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neuroada.selection import TopEntries, draw_entries

SHAPES = [(3, 5), (1, 1), (4, 2)]
SIZES = [15, 1, 8]


def chosen(weights: list[Tensor], count: int) -> list[Tensor]:
    top = TopEntries(count)
    for weight in weights:
        top.see(weight)
    return top.positions()


def by_sorting(weights: list[Tensor], count: int) -> set[tuple[int, int]]:
    places = [(number, place) for number, weight in enumerate(weights) for place in range(weight.numel())]
    return set(sorted(places, key=lambda each: (-weights[each[0]].flatten()[each[1]].item(), each))[:count])


@given(seed=st.integers(0, 2**20), count=st.integers(1, 24), ties=st.booleans())
def test_the_largest_of_all_ties_going_to_the_first(seed, count, ties):
    generator = torch.Generator().manual_seed(seed)
    if ties:
        weights = [torch.randint(-1, 2, shape, generator=generator).float() for shape in SHAPES]
    else:
        weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
    found = chosen(weights, count)
    assert all((places.diff() > 0).all() for places in found)
    assert {(number, place) for number, places in enumerate(found) for place in places.tolist()} == by_sorting(
        weights, count
    )


def test_a_weight_may_get_none():
    found = chosen([torch.zeros(2, 2), torch.ones(2, 2)], 3)
    assert [places.tolist() for places in found] == [[], [0, 1, 2]]


@given(seed=st.integers(0, 2**20), count=st.integers(1, 24))
def test_drawn_ones_are_distinct_as_many_as_asked_and_the_same_again(seed, count):
    found = draw_entries(SIZES, count, seed, "model")
    assert sum(map(len, found)) == count
    for places, size in zip(found, SIZES, strict=True):
        assert (places.diff() > 0).all()
        assert ((places >= 0) & (places < size)).all()
    assert all(map(torch.equal, found, draw_entries(SIZES, count, seed, "model")))


@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "layers.1"}])
def test_seed_and_name_decide(other):
    first = draw_entries([1000], 20, **{"seed": 0, "name": "layers.0"})
    assert not torch.equal(first[0], draw_entries([1000], 20, **{"seed": 0, "name": "layers.0"} | other)[0])


def test_every_entry_is_drawn_equally_often():
    """Of 24 entries 6, 2,000 times: 500 each, with a standard deviation of 19.4; six of them are allowed."""
    counts = torch.zeros(sum(SIZES))
    for seed in range(2000):
        parts = draw_entries(SIZES, 6, seed, "model")
        for start, places in zip((0, 15, 16), parts, strict=True):
            counts[start + places] += 1
    assert counts.sum() == 12000
    assert (counts - 500).abs().max() < 6 * 19.4
