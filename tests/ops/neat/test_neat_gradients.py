"""NEAT's gradients against differences (gradcheck), and twins: a fault injected into each must fail the same check."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from neuroada.ops.neat import ACTIVATIONS, Network, function, product

from .neat_cases import FORMS, NeatProblem, build_neat, every_form, every_side, require_good


def checked(problem: NeatProblem, short: bool = False) -> bool:
    def output(*leaves: Tensor) -> Tensor:
        each = problem.with_leaves(*leaves)
        return each.short_output() if short else each.output()

    return gradcheck(output, problem.with_gradients().leaves(), fast_mode=True)


every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


@every_form
@every_activation
def test_gradcheck(variant, side, depth, activation):
    problem = build_neat(variant, side, depth, activation)
    assert checked(problem)
    if variant == "multiplicative_lora":
        assert checked(problem, short=True)


class _WrongSlope(torch.autograd.Function):
    """An activation whose derivative is a tenth too large."""

    @staticmethod
    def forward(ctx, x, activation):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = activation(leaf)
            ctx.slope = torch.autograd.grad(value.sum(), leaf)[0]
        return value.detach()

    @staticmethod
    def backward(ctx, dy):
        return 1.1 * dy * ctx.slope, None


@pytest.mark.parametrize(("variant", "side", "depth"), [form for form in FORMS if form[0] != "multiplicative_lora"])
@every_activation
def test_twin_of_gradcheck_with_a_wrong_slope_fails(variant, side, depth, activation):
    problem = build_neat(variant, side, depth, activation)
    right = problem.network.activation
    wrong = replace(problem.network, activation=lambda x: _WrongSlope.apply(x, right))
    with pytest.raises(GradcheckError):
        checked(replace(problem, network=wrong))


BACKWARD_FAULTS = {
    "forgotten-row": lambda read, gradient: product.first_gradient(read[1:], gradient[1:]),
    "halved": lambda read, gradient: product.first_gradient(read, gradient) / 2,
    "other-weight": lambda read, gradient: product.first_gradient(read.flip(0), gradient),
}


@pytest.mark.parametrize(("variant", "side", "depth"), [form for form in FORMS if form[0] != "nonlinear_lora"])
@pytest.mark.parametrize("fault", BACKWARD_FAULTS)
def test_twin_with_a_wrong_gradient_of_the_first_layer_fails(fault, variant, side, depth, monkeypatch):
    monkeypatch.setattr(function, "first_gradient", BACKWARD_FAULTS[fault])
    with pytest.raises(GradcheckError):
        checked(build_neat(variant, side, depth, "tanh"))
    with pytest.raises(AssertionError, match=r"error .* of a tensor \[3, 1"):
        require_good(build_neat(variant, side, depth, "tanh", torch.float32, batch=(61,)))


@every_side
def test_twin_with_half_the_gradient_where_the_weight_is_not_read_fails(side, monkeypatch):
    right = function._through_weight
    monkeypatch.setattr(function, "_through_weight", lambda ctx, gradient: right(ctx, gradient) / 2)
    with pytest.raises(GradcheckError):
        checked(build_neat("nonlinear_lora", side))


@every_side
def test_twin_whose_backward_forgets_the_scaling_fails(side, monkeypatch):
    problem = build_neat(side=side)
    right, calls = Network.finish, []

    def scaled(network: Network, state: Tensor, hidden: Tensor | None) -> Tensor:
        calls.append(network)
        return right(network, state, hidden) * (2 if len(calls) % 2 == 0 else 1)

    monkeypatch.setattr(Network, "finish", scaled)
    with pytest.raises(GradcheckError):
        checked(problem)
