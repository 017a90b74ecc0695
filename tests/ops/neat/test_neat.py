"""NEAT's operation equals its specification, for every variant, side, depth and activation."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import ACT2FN

from neuroada.config import ACTIVATIONS as CONFIGURABLE
from neuroada.errors import WeightError
from neuroada.ops.neat import ACTIVATIONS, Network, Theta, delta_weight, product, updated
from neuroada.ops.sparse_delta import FrozenWeight, Support, hold, release

from ..cases import laid_out
from .neat_cases import NeatProblem, _gradients, build_neat, error_of, every_form, every_side, require_good

SHAPES = [(1, 1, 1), (1, 7, 1), (5, 1, 2), (13, 17, 3), (13, 17, 20), (31, 29, 1)]
"""O, I, R; R above O and I included."""


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_the_specification(variant, side, depth, dtype):
    require_good(build_neat(variant, side, depth, "gelu", dtype, batch=(61,)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_specification_with_every_activation(activation):
    require_good(build_neat("neat", "input", 4, activation, torch.float32, batch=(61,)))


@every_side
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [(1,), (2, 3)], ids=str)
@pytest.mark.parametrize("variant", ["neat", "nonlinear_lora", "multiplicative_lora"])
def test_any_shape(variant, side, shape, batch):
    problem = build_neat(variant, side, 2, "tanh", shape=shape, batch=batch, bias=False)
    torch.testing.assert_close(problem.output(), problem.expected())


@every_side
@pytest.mark.parametrize("batch", [(), (0,), (2, 0, 3)], ids=str)
def test_a_vector_and_no_tokens_at_all(side, batch):
    problem = build_neat(side=side, batch=batch).with_gradients()
    output = problem.output()
    torch.testing.assert_close(output, problem.expected())
    for gradient in torch.autograd.grad(output.sum(), problem.leaves()):
        assert gradient.isfinite().all()


@every_side
@pytest.mark.parametrize("layout", ["columns", "slice", "strided", "offset"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_weights_of_any_layout_read_in_blocks(side, layout, dtype, monkeypatch):
    monkeypatch.setattr(product, "BLOCK_ENTRIES", 40)
    problem = build_neat(side=side, dtype=dtype, batch=(61,))
    laid = replace(problem, weight=laid_out(problem.weight, layout))
    allowed = 1e-12 if dtype == torch.float64 else 2**-6
    for ours, theirs in zip(*map(_gradients, (laid, problem)), strict=True):
        assert error_of(ours, theirs.double()) <= allowed


@every_side
def test_the_short_form_of_multiplicative_lora_is_the_same(side):
    problem = build_neat("multiplicative_lora", side)
    for long, short in zip(_gradients(problem), _gradients(problem, NeatProblem.short_output), strict=True):
        torch.testing.assert_close(long, short)


@every_form
def test_the_traced_form_is_the_same(variant, side, depth):
    problem = build_neat(variant, side, depth)
    for ours, theirs in zip(_gradients(problem), _gradients(problem, NeatProblem.factored), strict=True):
        torch.testing.assert_close(ours, theirs)


def state_after(layers: int) -> Tensor:
    """H for Θ1 W = 1, R = 1 and hidden layers 2, 3, 5, ... with the identity between: each term says where it came."""
    network = Network(activation=lambda x: x)
    hidden = torch.tensor([2.0, 3.0, 5.0, 7.0])[:layers].reshape(-1, 1, 1) if layers else None
    return network.finish(torch.ones(1, 1), hidden)


@pytest.mark.parametrize(
    ("depth", "state"),
    [
        (2, 1),
        (3, 2 * 1 + 1),
        (4, 3 * 2 + 1),  # Appendix E: the state after the first activation is added back before the last layer
        (5, (3 * 2 + 2) * 5 + 1),
        (6, (5 * 3 * 2 + 2) * 7 + 1),
    ],
)
def test_residuals_are_nested(depth, state):
    assert state_after(depth - 2) == state


def test_layers_are_applied_as_torch_s_linear_applies_them():
    problem = build_neat(depth=3)
    first = F.relu(F.linear(problem.weight, problem.theta.first))
    hidden = first + F.relu(F.linear(first, problem.theta.hidden[0]))
    delta = problem.network.scaling * F.linear(hidden, problem.theta.last)
    torch.testing.assert_close(delta_weight(problem.weight, problem.theta, problem.network), delta)


def test_sine_is_of_two_pi_x():
    values = ACTIVATIONS["sine"](torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    torch.testing.assert_close(values, torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "sine"])
def test_activations_are_those_that_transformers_calls_so(name):
    x = torch.linspace(-3, 3, 61)
    assert torch.equal(ACTIVATIONS[name](x), ACT2FN[name](x))


def test_every_activation_that_can_be_configured_is_a_function_without_weights():
    for name in set(CONFIGURABLE) - set(ACTIVATIONS):
        assert not list(ACT2FN[name].parameters())
        assert ACT2FN[name](torch.ones(3)).shape == (3,)


@every_side
@pytest.mark.parametrize("frozen", ["first", "hidden", "last", "x", "bias"])
def test_frozen_parts_get_no_gradient_and_the_others_theirs(side, frozen):
    problem = build_neat(side=side, depth=4).with_gradients()
    want = torch.autograd.grad(problem.output().square().sum(), problem.leaves())
    part = getattr(problem.theta, frozen) if frozen in Theta._fields else getattr(problem, frozen)
    part.requires_grad_(False)
    wanted = [leaf for leaf in problem.leaves() if leaf is not part]
    found = torch.autograd.grad(problem.output().square().sum(), wanted)
    rest = [gradient for leaf, gradient in zip(problem.leaves(), want, strict=True) if leaf is not part]
    for ours, theirs in zip(found, rest, strict=True):
        assert torch.equal(ours, theirs)


@every_side
def test_the_weight_s_dtype_decides_and_gradients_have_that_of_what_is_trained(side):
    problem = build_neat(side=side, dtype=torch.float64)
    low = replace(problem, theta=Theta(*(None if part is None else part.float() for part in problem.theta)))
    low = low.with_gradients()
    output = low.output()
    assert output.dtype == torch.float64
    torch.testing.assert_close(output, low.expected())
    gradients = torch.autograd.grad(output.sum(), [low.theta.first, low.theta.last])
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_writing_to_the_weight_between_forward_and_backward_is_refused():
    problem = build_neat().with_gradients()
    base = F.linear(problem.x, problem.weight, problem.bias).detach()
    output = updated(base, problem.x, FrozenWeight(problem.weight), problem.weight, problem.theta, problem.network)
    problem.weight.mul_(2)
    with pytest.raises(WeightError, match=r"written to after the forward pass .*between steps instead"):
        output.sum().backward()


def test_a_support_held_in_the_weight_is_not_read():
    problem = build_neat()
    want = problem.output()
    parameter = torch.nn.Parameter(problem.weight.clone(), requires_grad=False)
    frozen, base = FrozenWeight(parameter), F.linear(problem.x, problem.weight, problem.bias)
    hold(frozen, Support(torch.zeros(13, 1, dtype=torch.int64), torch.ones(13, 1)))
    found = updated(base, problem.x, frozen, parameter, problem.theta, problem.network)
    release(frozen)
    assert torch.equal(found, want)


def _no_residual(network: Network, state: Tensor, hidden: Tensor | None) -> Tensor:
    state = network.activation(state)
    for layer in () if hidden is None else hidden:
        state = network.activation(state @ layer.T)
    return state


@every_side
def test_twin_of_the_short_form_with_another_scaling_fails(side):
    problem = build_neat("multiplicative_lora", side)
    other = replace(problem, network=replace(problem.network, scaling=1.01 * problem.network.scaling))
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(other.short_output(), problem.output())


@every_side
@pytest.mark.parametrize("depth", [3, 4, 5, 6])
def test_twin_without_residuals_fails(side, depth, monkeypatch):
    problem = build_neat(side=side, depth=depth, dtype=torch.float32, batch=(61,))
    right = problem.expected()
    monkeypatch.setattr(Network, "finish", _no_residual)
    assert error_of(problem.output(), right.double()) > 1e-2
