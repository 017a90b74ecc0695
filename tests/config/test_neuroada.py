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
        ("selection", ", ".join([*CRITERIA, "own"]), "magnitud", "magnitude"),
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


def test_a_function_is_told_where_it_goes():
    with pytest.raises(ConfigError, match=r"holds names, not functions.*Set selection='own'.*reselect"):
        NeuroAdaConfig(selection=abs)


def test_one_delta_is_the_default():
    config = NeuroAdaConfig()
    assert (config.k, config.budget, config.selection, config.mode) == (1, None, "magnitude", "auto")
    assert (config.coverage, config.seed, config.delta_dtype, config.init_weights) == (1.0, 0, "float32", True)


@QUICK
@given(k=st.integers(1, 10**6), inputs=st.integers(1, 10**5))
def test_k_is_taken_up_to_the_number_of_inputs(k, inputs):
    assert NeuroAdaConfig(k=k).entries_per_neuron(inputs, "layer") == min(k, inputs)


@QUICK
@given(budget=SHARES, coverage=SHARES, inputs=st.integers(1, 10**5))
@example(budget=1.0, coverage=5e-324, inputs=10**5)
@example(budget=5e-324, coverage=1.0, inputs=1)
def test_a_budget_gives_between_one_and_all_inputs(budget, coverage, inputs):
    count = NeuroAdaConfig(budget=budget, coverage=coverage).entries_per_neuron(inputs, "layer")
    assert isinstance(count, int)
    assert 1 <= count <= inputs


@QUICK
@given(coverage=SHARES, inputs=st.integers(1, 10**5))
@example(coverage=5e-324, inputs=7)
def test_the_whole_budget_gives_all_inputs(coverage, inputs):
    assert NeuroAdaConfig(budget=1.0, coverage=coverage).entries_per_neuron(inputs, "layer") == inputs


@QUICK
@given(budget=SHARES, inputs=st.integers(1, 10**5))
def test_a_budget_is_met_to_half_a_delta(budget, inputs):
    count = NeuroAdaConfig(budget=budget).entries_per_neuron(inputs, "layer")
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
    assert NeuroAdaConfig(**values).entries_per_neuron(inputs, "layer") == count


@pytest.mark.parametrize(
    ("pattern", "found", "do"),
    [
        ({"q_proj": 0}, "each covered neuron needs a whole number of at least 1 delta", "Give 1 or more, or leave"),
        ({"v": 1, "q_proj": True}, "each covered neuron needs a whole number of at least 1 delta", "Give 1 or more"),
        ({"q_proj": 2.0}, "each covered neuron needs a whole number of at least 1 delta", "Give 1 or more"),
        ({"q_proj(": 2}, "the name is not a regular expression (missing )", "Give the end of a module's name, such as"),
        ({3: 2}, "the name is not a regular expression (first argument", "Give the end of a module's name, such as"),
    ],
)
def test_k_pattern_is_refused_with_the_entry_that_is_wrong(pattern, found, do):
    message = str(refusal(k_pattern=pattern))
    name, k = list(pattern.items())[-1]
    assert message.startswith(f"k_pattern={{{name!r}: {k!r}}}: {found}")
    assert f". {do}" in message


@pytest.mark.parametrize("value", [None, 3, ["q_proj"], "q_proj=4"])
def test_k_pattern_is_a_dict(value):
    assert str(refusal(k_pattern=value)) == (
        f"k_pattern={value!r}: not a dict of k by names of modules. Write it as {{'q_proj': 4}}."
    )


def test_k_by_pattern_stands_in_place_of_k_and_of_the_budget():
    pattern = {"q_proj": 3, r"layers\.1\..*": 5, "v_proj": 7, "narrow": 99}
    for size, other in (({"k": 2}, 2), ({"budget": 0.2}, 8)):
        config = NeuroAdaConfig(**size, k_pattern=pattern)
        found = {
            name: config.entries_per_neuron(40, name)
            for name in (
                "layers.0.q_proj",
                "layers.1.q_proj",
                "layers.1.v_proj",
                "v_proj",
                "eq_proj",
                "q_proj.a",
                "narrow",
            )
        }
        assert list(found.values()) == [3, 3, 5, 7, other, other, 40]


def test_only_a_budget_is_spread_over_a_model_and_only_by_comparable_scores():
    assert str(refusal(budget_scope="model", k=2)) == (
        "budget_scope='model' with k=2: k is the same for every neuron, and only a budget can be spread. Give budget, "
        "a fraction of the adapted weights, instead of k."
    )
    assert str(refusal(budget_scope="layer", budget=0.1)) == (
        "budget_scope='layer': not a known value. Known: weight, model."
    )
    message = str(refusal(budget_scope="model", budget=0.1, selection="small_of_large_gradients"))
    assert message.startswith(
        "budget_scope='model' with selection='small_of_large_gradients': its scores compare inputs of one neuron, not "
        "weights with each other. Set budget_scope='weight', or choose one of magnitude, random,"
    )
    for selection in set(CRITERIA) - {"small_of_large_gradients"}:
        assert NeuroAdaConfig(budget_scope="model", budget=0.1, selection=selection).k is None
