"""NeuroAdaConfig: what it refuses and in which words, and how many deltas it means."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neuroada import NeuroAdaConfig
from neuroada.errors import ConfigError
from neuroada.selection import CRITERIA

QUICK = settings(max_examples=300, deadline=None, derandomize=True)
SHARES = st.floats(0, 1, exclude_min=True)

K_FOUND = "each covered neuron needs a whole number of at least 1 delta"
K_DO = "Give k=1 or more, or budget instead"
BUDGET_FOUND = "a fraction of the adapted weights must be above 0 and at most 1"
BUDGET_DO = "Give a value in (0, 1], such as 0.0002, or k instead"
COVERAGE_FOUND = "the fraction of neurons must be above 0 and at most 1"
COVERAGE_DO = "Give a value in (0, 1]; 1.0 covers every neuron"


def refusal(**values) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        NeuroAdaConfig(**values)
    return caught.value


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, "3", True, math.nan])
def test_k_must_be_a_whole_number_from_one(value):
    assert str(refusal(k=value)) == f"k={value!r}: {K_FOUND}. {K_DO}."


@pytest.mark.parametrize("value", [0, 0.0, -0.1, 1.0001, 2, math.nan, math.inf, "0.1", True])
def test_budget_must_be_a_share(value):
    assert str(refusal(budget=value)) == f"budget={value!r}: {BUDGET_FOUND}. {BUDGET_DO}."


@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.5, math.nan, -math.inf, "all", None, True])
def test_coverage_must_be_a_share(value):
    assert str(refusal(coverage=value)) == f"coverage={value!r}: {COVERAGE_FOUND}. {COVERAGE_DO}."


def test_k_and_budget_exclude_each_other():
    assert str(refusal(k=2, budget=0.1)) == (
        "k=2 and budget=0.1: both set the number of deltas. Give one of them: k deltas a neuron, or budget as a "
        "fraction of the adapted weights."
    )


@pytest.mark.parametrize(
    ("name", "known", "typo", "near"),
    [
        ("selection", ", ".join(CRITERIA), "magnitud", "magnitude"),
        ("mode", "auto, inplace, transient", "in_place", "inplace"),
        ("delta_dtype", "float32, bfloat16", "float23", "float32"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(name, known, typo, near):
    assert str(refusal(**{name: typo})) == (
        f"{name}={typo!r}: not a known value. Did you mean {near!r}? Known: {known}."
    )
    for far in ("xyz", "", None, 7):
        assert str(refusal(**{name: far})) == f"{name}={far!r}: not a known value. Known: {known}."


def test_one_delta_is_the_default():
    config = NeuroAdaConfig()
    assert (config.k, config.budget, config.selection, config.mode) == (1, None, "magnitude", "auto")
    assert (config.coverage, config.seed, config.delta_dtype, config.init_weights) == (1.0, 0, "float32", True)


@QUICK
@given(k=st.integers(1, 10**6), inputs=st.integers(1, 10**5))
def test_k_is_taken_up_to_the_number_of_inputs(k, inputs):
    assert NeuroAdaConfig(k=k).entries_per_neuron(inputs) == min(k, inputs)


@QUICK
@given(budget=SHARES, coverage=SHARES, inputs=st.integers(1, 10**5))
@example(budget=1.0, coverage=5e-324, inputs=10**5)
@example(budget=5e-324, coverage=1.0, inputs=1)
def test_a_budget_gives_between_one_and_all_inputs(budget, coverage, inputs):
    count = NeuroAdaConfig(budget=budget, coverage=coverage).entries_per_neuron(inputs)
    assert isinstance(count, int)
    assert 1 <= count <= inputs


@QUICK
@given(coverage=SHARES, inputs=st.integers(1, 10**5))
@example(coverage=5e-324, inputs=7)
def test_the_whole_budget_gives_all_inputs(coverage, inputs):
    assert NeuroAdaConfig(budget=1.0, coverage=coverage).entries_per_neuron(inputs) == inputs


@QUICK
@given(budget=SHARES, inputs=st.integers(1, 10**5))
def test_a_budget_is_met_to_half_a_delta(budget, inputs):
    count = NeuroAdaConfig(budget=budget).entries_per_neuron(inputs)
    assert abs(count - max(1, budget * inputs)) <= 0.5


@pytest.mark.parametrize(
    ("values", "inputs", "count"),
    [
        ({"budget": 0.0002}, 4096, 1),
        ({"budget": 0.0002}, 14336, 3),
        ({"budget": 0.01, "coverage": 0.5}, 1000, 20),
        ({"budget": 0.6, "coverage": 0.5}, 10, 10),
        ({"k": 3, "coverage": 0.5}, 1000, 3),
        ({"k": 8}, 5, 5),
    ],
)
def test_deltas_of_a_neuron(values, inputs, count):
    assert NeuroAdaConfig(**values).entries_per_neuron(inputs) == count
