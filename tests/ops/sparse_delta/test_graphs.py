"""One weight in several graphs and calls (I8), and what must not happen to it between forward and backward."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neuroada.errors import WeightError
from neuroada.ops.sparse_delta import FrozenWeight, combine, hold, release, support_linear
from neuroada.ops.sparse_delta.reference import sparse_delta_linear as reference

from ..cases import PRIMES, Case, Problem, build, same_bits

STORED = pytest.mark.parametrize("mode", ["inplace", "transient"])
SQUARE = Case("square", 13, 13, 3, (11,))


@pytest.fixture
def problem(dtype) -> Problem:
    return build(PRIMES, dtype).with_gradients()


def dx_of(problem: Problem, dy: torch.Tensor) -> torch.Tensor:
    """The gradient that the plain layer on the merged weight has: the same product, so the same bits."""
    return dy @ problem.merged()


def test_backward_uses_the_deltas_of_its_own_forward(problem, mode):
    other = problem.with_(deltas=(problem.deltas + 1).detach(), indices=(problem.indices + 1) % 17).with_gradients()
    base = problem.with_(deltas=torch.zeros_like(problem.deltas)).with_gradients()
    outputs = [(each, each.output(mode)) for each in (problem, other, base)]
    dy = torch.randn(11, 13).to(problem.x.dtype)
    for each, output in reversed(outputs):
        output.backward(dy)
        assert same_bits(output, each.expected())
        assert same_bits(each.x.grad, dx_of(each, dy))
    assert not torch.equal(problem.x.grad, base.x.grad)


def test_backward_after_a_forward_without_gradients_of_the_bare_layer(problem, mode):
    output = problem.output(mode)
    with torch.no_grad():
        bare = support_linear(problem.x, FrozenWeight(problem.weight, mode="inplace"), None, problem.bias)
    assert same_bits(bare, F.linear(problem.x, problem.dense, problem.bias))
    dy = torch.randn(11, 13).to(problem.x.dtype)
    output.backward(dy)
    assert same_bits(problem.x.grad, dx_of(problem, dy))


def test_one_weight_twice_in_one_graph(mode, product):
    problem = build(SQUARE, torch.float64).with_gradients()
    hidden = problem.output(mode, product)
    problem.with_(x=hidden).output(mode, product).square().sum().backward()
    ours = [leaf.grad for leaf in problem.leaves()]

    plain = problem.with_gradients()
    arguments = plain.dense, plain.indices, plain.deltas, plain.bias
    reference(reference(plain.x, *arguments), *arguments).square().sum().backward()
    for found, leaf in zip(ours, plain.leaves(), strict=True):
        torch.testing.assert_close(found, leaf.grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "saved-tensor-hooks"])
def test_checkpointing_changes_no_bit(problem, mode, reentrant):
    problem.output(mode).square().sum().backward()
    again = problem.with_gradients()
    checkpoint(lambda x: again.with_(x=x).output(mode), again.x, use_reentrant=reentrant).square().sum().backward()
    for leaf, checkpointed in zip(problem.leaves(), again.leaves(), strict=True):
        assert same_bits(leaf.grad, checkpointed.grad)


def test_backward_twice_through_a_retained_graph(problem, mode):
    output = problem.output(mode)
    first = torch.autograd.grad(output.sum(), problem.leaves(), retain_graph=True)
    second = torch.autograd.grad(output.sum(), problem.leaves())
    assert all(same_bits(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("wanted", [("x",), ("deltas",), ("bias",), ("x", "bias"), ("deltas", "bias")], ids="+".join)
def test_any_part_alone_may_require_a_gradient(mode, wanted):
    complete = build(PRIMES, torch.bfloat16).with_gradients()
    complete.output(mode).sum().backward()
    some = build(PRIMES, torch.bfloat16)
    leaves = {name: getattr(some, name).requires_grad_() for name in wanted}
    some.output(mode).sum().backward()
    for name, leaf in leaves.items():
        assert same_bits(leaf.grad, getattr(complete, name).grad)


def test_deltas_changed_before_backward_are_an_error_of_torch(problem, mode):
    output = problem.output(mode)
    with torch.no_grad():
        problem.deltas.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_backward_of_combined_deltas_ignores_newer_ones_that_are_held():
    """Deltas in bfloat16 are copied when they are combined, so that torch cannot notice the change."""
    first, second = (build(PRIMES, torch.float32, seed, torch.bfloat16).with_gradients() for seed in range(2))

    def output() -> torch.Tensor:
        return support_linear(first.x, first.frozen, combine([first.support, second.support], 17))

    (right,) = torch.autograd.grad(output().sum(), first.x)
    earlier = output()
    with torch.no_grad():
        first.deltas.add_(1)
    hold(first.frozen, combine([first.support, second.support], 17))
    (found,) = torch.autograd.grad(earlier.sum(), first.x)
    release(first.frozen)
    assert same_bits(found, right)


@STORED
@pytest.mark.parametrize(
    "overwrite",
    [
        lambda weight: weight.add_(1),
        lambda weight: weight.copy_(weight.clone()),
        lambda weight: torch.nn.init.zeros_(weight),
    ],
    ids=["add", "load", "init"],
)
def test_a_weight_written_to_before_backward_is_an_error(problem, mode, overwrite):
    output = problem.output(mode)
    with torch.no_grad():
        overwrite(problem.weight)
    with pytest.raises(WeightError, match="written to after the forward pass") as caught:
        output.sum().backward()
    assert caught.value.do == "Move or load base weights between steps instead"


@STORED
def test_a_weight_written_to_matters_to_the_gradient_of_x_alone(problem, mode):
    problem.x.requires_grad_(False)
    right = torch.autograd.grad(problem.output(mode).sum(), problem.leaves()[1:])
    output = problem.output(mode)
    problem.weight.zero_()
    found = torch.autograd.grad(output.sum(), problem.leaves()[1:])
    assert all(same_bits(*pair) for pair in zip(found, right, strict=True))


def test_a_weight_recreated_between_forward_and_backward_gives_the_right_gradient(problem, mode):
    output = problem.output(mode)
    old = problem.weight.data
    problem.weight.data = old.clone()
    old.fill_(torch.nan)
    dy = torch.randn(11, 13).to(problem.x.dtype)
    output.backward(dy)
    assert same_bits(problem.x.grad, dx_of(problem, dy))


@STORED
def test_a_weight_cast_between_forward_and_backward_is_an_error(mode):
    problem = build(PRIMES, torch.float32).with_gradients()
    output = problem.output(mode)
    problem.weight.data = problem.weight.data.bfloat16()
    with pytest.raises(WeightError, match=r"was cast from torch\.float32 to torch\.bfloat16"):
        output.sum().backward()


def test_a_weight_made_afresh_is_made_once_a_product():
    problem = build(PRIMES, torch.float32).with_gradients()
    made = []

    def make() -> torch.Tensor:
        made.append(problem.weight.clone())
        return made[-1]

    output = problem.with_(weight=make).output("transient")
    assert len(made) == 1
    output.sum().backward()
    assert len(made) == 2


def test_gradients_of_gradients_are_refused_clearly(problem, mode):
    (dx,) = torch.autograd.grad(problem.output(mode).square().sum(), problem.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
