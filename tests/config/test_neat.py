"""NeatConfig: what it refuses and in which words."""

import math

import pytest
from transformers.activations import ACT2FN

from neuroada import NeatConfig
from neuroada.config import ACTIVATIONS
from neuroada.errors import ConfigError


def refusal(**values) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        NeatConfig(**values)
    return caught.value


@pytest.mark.parametrize("value", [0, -1, 1.0, "8", None, True, math.nan])
def test_r_must_be_a_whole_number_from_one(value):
    assert str(refusal(r=value)) == (
        f"r={value!r}: the width of the network is a whole number of at least 1. Give one, such as r=8."
    )


@pytest.mark.parametrize("value", [1, 0, -2, 2.0, "4", None, True])
def test_depth_must_be_a_whole_number_from_two(value):
    assert str(refusal(depth=value)) == (
        f"depth={value!r}: the network has at least a first and a last layer. Give depth=2 or more (the depth of "
        "PEFT's PEANuT counts pairs between them: there 0 is 2 here)."
    )


@pytest.mark.parametrize("value", [1, 1.0, 1.5, -0.1, math.nan, math.inf, "0.1", None, True])
def test_dropout_must_be_a_share_below_one(value):
    assert str(refusal(dropout=value)) == (
        f"dropout={value!r}: a probability of dropping must be at least 0 and below 1. "
        "Give a value in [0, 1), such as 0.05."
    )


@pytest.mark.parametrize("value", [0, 0.0, math.nan, math.inf, "1", None, True])
def test_scaling_must_be_a_number_that_scales(value):
    assert str(refusal(scaling=value)) == (
        f"scaling={value!r}: not a finite number other than 0. Give one, such as 1.0 (the default)."
    )


@pytest.mark.parametrize(
    ("name", "typo", "near", "known"),
    [
        ("side", "outputs", "output", "input, output"),
        ("variant", "NEAT", "neat", "neat, nonlinear_lora, multiplicative_lora"),
        ("activation", "leaky-relu", "leaky_relu", ", ".join(ACTIVATIONS)),
        ("activation", "sin", "sine", ", ".join(ACTIVATIONS)),
    ],
)
def test_an_unknown_name_lists_the_known_ones(name, typo, near, known):
    assert str(refusal(**{name: typo})) == (
        f"{name}={typo!r}: not a known value. Did you mean {near!r}? Known: {known}."
    )
    for far in ("xyzxyz", "", None, 7):
        assert str(refusal(**{name: far})) == f"{name}={far!r}: not a known value. Known: {known}."


def test_the_paper_s_activations_come_first_and_all_of_peanut_s_that_have_no_weights_follow():
    assert ACTIVATIONS[:6] == ("relu", "leaky_relu", "gelu", "tanh", "silu", "sine")
    assert set(ACTIVATIONS) == (set(ACT2FN) | {"sine"}) - {"prelu", "xielu"}
    assert len(set(ACTIVATIONS)) == len(ACTIVATIONS)


@pytest.mark.parametrize(("depth", "activation"), [(4, "relu"), (2, "gelu"), (3, "tanh")])
def test_multiplicative_lora_has_neither_hidden_layers_nor_an_activation(depth, activation):
    assert str(refusal(variant="multiplicative_lora", depth=depth, activation=activation)) == (
        f"variant='multiplicative_lora' with depth={depth} and activation={activation!r}: W A B has two layers and no "
        "activation. Leave depth and activation out, or choose variant='neat'."
    )


@pytest.mark.parametrize(
    "values",
    [
        {"r": 1, "depth": 2, "dropout": 0, "scaling": -0.5},
        {"r": 512, "depth": 10, "dropout": 0.99, "scaling": 1e-6},
        {"variant": "multiplicative_lora", "side": "output"},
        {"activation": "gelu_pytorch_tanh"},
    ],
)
def test_what_can_be_meant_is_taken(values):
    config = NeatConfig(**values)
    assert {name: getattr(config, name) for name in values} == values


def test_the_paper_s_equation_is_the_default():
    config = NeatConfig()
    assert (config.r, config.scaling, config.depth, config.activation) == (8, 1.0, 2, "relu")
    assert (config.side, config.dropout, config.variant, config.init_weights) == ("input", 0.0, "neat", True)
