"""Random selection and coverage: seeded, each weight on its own, uniform."""

from itertools import pairwise

import pytest
import torch

from neuroada.selection import covered_neurons, select

INPUTS, ROWS = 8, 4096
UNLIKELY = 24.3
"""The 0.999 quantile of χ² with INPUTS - 1 degrees of freedom."""


def chosen(seed: int = 0, name: str = "layer", k: int = 2, shape: tuple[int, int] = (61, 53), **others) -> torch.Tensor:
    return select(torch.ones(shape), k, "random", seed, name, **others)


def chi_square(indices: torch.Tensor) -> float:
    """How unevenly the inputs are chosen, when each row draws k of them without repetition."""
    count, k = indices.shape
    share = k / INPUTS
    excess = indices.long().flatten().bincount(minlength=INPUTS) - count * share
    return float(excess.square().sum() / (count * share * (1 - share)) * (INPUTS - 1) / INPUTS)


def test_the_same_seed_and_name_give_the_same_choice():
    assert torch.equal(chosen(), chosen())


@pytest.mark.parametrize("changed", [{"seed": 1}, {"seed": -1}, {"seed": 2**40}, {"name": "layer2"}, {"name": ""}])
def test_another_seed_or_name_gives_another_choice(changed):
    assert not torch.equal(chosen(**changed), chosen())


def test_seed_and_name_do_not_run_into_each_other():
    assert not torch.equal(chosen(seed=1, name="1/layer"), chosen(seed=11, name="/layer"))
    assert not torch.equal(chosen(seed=1, name="1/layer"), chosen(seed=1, name="layer"))


def test_order_of_weights_and_global_randomness_do_not_matter():
    names = ["a", "b", "c"]
    forwards = {name: chosen(name=name) for name in names}
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    backwards = {name: chosen(name=name) for name in reversed(names)}
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(forwards[name], backwards[name]) for name in names)


def test_the_values_of_the_weight_do_not_matter():
    assert torch.equal(select(torch.randn(61, 53).bfloat16(), 2, "random", 0, "layer"), chosen())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_does_not_matter(dtype):
    expected, neurons = chosen(), covered_neurons(61, 0.3, 0, "layer")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = select(torch.ones(61, 53, dtype=torch.float32), 2, "random", 0, "layer")
        assert torch.equal(covered_neurons(61, 0.3, 0, "layer"), neurons)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)


def test_the_default_device_does_not_matter():
    expected, neurons, weight = chosen(), covered_neurons(61, 0.3, 0, "layer"), torch.ones(61, 53)
    with torch.device("meta"):
        assert torch.equal(covered_neurons(61, 0.3, 0, "layer"), neurons)
        assert torch.equal(select(weight, 2, "random", 0, "layer"), expected)


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_every_input_is_equally_likely(k, seed):
    assert chi_square(chosen(seed, k=k, shape=(ROWS, INPUTS))) < UNLIKELY


def test_twin_with_a_slight_preference_fails():
    indices = chosen(k=1, shape=(ROWS, INPUTS))
    indices[: ROWS // 25] = 0
    assert chi_square(indices) > UNLIKELY


def test_neighbouring_rows_choose_independently():
    first, second = chosen(k=1, shape=(ROWS, INPUTS)).view(-1, 2).T
    shifts = ((second - first) % INPUTS)[:, None]
    assert chi_square(shifts) < UNLIKELY


@pytest.mark.parametrize(
    ("neurons", "coverage", "count"),
    [(1, 0.001, 1), (7, 0.01, 1), (10, 0.5, 5), (13, 0.5, 6), (61, 0.3, 18), (61, 0.999, 61), (4096, 0.25, 1024)],
)
def test_coverage_takes_its_share(neurons, coverage, count):
    covered = covered_neurons(neurons, coverage, 0, "layer")
    assert covered.dtype == torch.int64
    assert covered.shape == (count,)
    assert all(low < high for low, high in pairwise(covered.tolist()))
    assert 0 <= covered[0] <= covered[-1] < neurons


@pytest.mark.parametrize("coverage", [1, 1.0])
def test_whole_coverage_names_no_neurons(coverage):
    assert covered_neurons(61, coverage, 0, "layer") is None


def test_coverage_depends_on_seed_and_name_alone():
    first = covered_neurons(61, 0.3, 0, "layer")
    torch.manual_seed(5)
    assert torch.equal(covered_neurons(61, 0.3, 0, "layer"), first)
    assert not torch.equal(covered_neurons(61, 0.3, 1, "layer"), first)
    assert not torch.equal(covered_neurons(61, 0.3, 0, "layer2"), first)


def test_every_neuron_is_covered_equally_often():
    rows = torch.stack([covered_neurons(INPUTS, 0.25, seed, "layer") for seed in range(1000)])
    assert chi_square(rows) < UNLIKELY
