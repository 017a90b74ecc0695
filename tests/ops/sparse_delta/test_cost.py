"""What a layer costs (I6): dense products by FLOPs, bytes kept for backward, and the sizes of temporary tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from allocations import Allocations
from neuroada import NeuroAdaConfig, NeuroAdaLinear
from neuroada.ops.sparse_delta import Support, combine, gradient, sparse_delta_linear
from neuroada.ops.sparse_delta.backends import torch as pieces
from neuroada.ops.sparse_delta.gradient import delta_gradient

from ..cases import Case, Problem, build
from ..costs import INPUTS, OUTPUTS, TOKENS, WEIGHT_BYTES, Cost, cost_of

MODES = pytest.mark.parametrize("mode", ["inplace", "transient"])


def complaints(cost: Cost, per_neuron: int) -> set[str]:
    limit = 4 * OUTPUTS * per_neuron * 4
    checks = {
        "dense products": cost.products <= 2.02,
        "saved": max(cost.saved, default=0) <= limit,
        "kept": max(cost.kept, default=0) <= limit,
    }
    return {name for name, holds in checks.items() if not holds}


def adapted(per_neuron: int) -> Problem:
    case = Case("layer", OUTPUTS, INPUTS, per_neuron, (TOKENS,), bias=False)
    problem = build(case, torch.bfloat16)
    return problem.with_(x=problem.x.requires_grad_(), deltas=problem.deltas.requires_grad_())


def published(problem: Problem) -> Callable[[Tensor], Tensor]:
    """The scatter form: a merged copy by autograd, so that backward makes the dense gradient and gathers from it."""

    def layer(x: Tensor) -> Tensor:
        merged = problem.weight.clone().scatter_add(1, problem.indices.long(), problem.deltas.to(torch.bfloat16))
        return F.linear(x, merged)

    return layer


@MODES
@pytest.mark.parametrize("per_neuron", [1, 20])
def test_layer_costs_two_dense_products_and_saves_x(per_neuron, mode):
    problem = adapted(per_neuron)
    cost = cost_of(lambda x: problem.with_(x=x).output(mode, "sparse"), problem.x)
    assert not complaints(cost, per_neuron), cost
    assert cost.products >= 2
    assert problem.x.grad is not None
    assert problem.deltas.grad is not None


@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 160), (160, 96), (128, 128)])
@pytest.mark.parametrize("per_neuron", [1, 3, 5])
def test_products_are_counted_whatever_shape_they_have(outputs, inputs, per_neuron, emulated, monkeypatch):
    monkeypatch.setattr(gradient, "lacks_instructions", lambda device, dtype: emulated)
    problem = build(Case("layer", outputs, inputs, per_neuron, (64,), bias=False), torch.bfloat16).with_gradients()
    with FlopCounterMode(display=False) as flops:
        problem.output("inplace", "sparse").sum().backward()
    assert flops.get_total_flops() == 2 * 64 * (2 * outputs * inputs + outputs * per_neuron)


@pytest.mark.parametrize(("outputs", "inputs"), [(1024, 256), (256, 1024)])
def test_a_product_in_float32_copies_the_smaller_factor_and_blocks_of_the_weight(outputs, inputs, monkeypatch):
    monkeypatch.setattr(pieces, "BLOCK_ENTRIES", 1 << 16)
    dy, weight = torch.randn(512, outputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    allocations = Allocations()
    with allocations:
        pieces.widened_product(dy, weight)
    output = 2 * 512 * inputs
    assert allocations.largest <= max(output, 4 * max(512 * min(outputs, inputs), 1 << 16))


@MODES
@pytest.mark.parametrize("per_neuron", [1, 20])
def test_an_adapted_linear_layer_costs_no_more(per_neuron, mode):
    problem = adapted(per_neuron)
    base = nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    base.weight.copy_(problem.weight)
    layer = NeuroAdaLinear(base, "default", NeuroAdaConfig(k=per_neuron, mode=mode, saved_input="whole"), "layer")
    layer.product = "sparse"
    cost = cost_of(layer, problem.x)
    assert not complaints(cost, per_neuron), cost
    assert layer.neuroada_deltas["default"].grad.shape == (OUTPUTS, per_neuron)


@pytest.mark.parametrize("per_neuron", [1, 20])
def test_twin_in_the_published_form_fails(per_neuron):
    problem = adapted(per_neuron)
    cost = cost_of(published(problem), problem.x)
    assert complaints(cost, per_neuron) == {"dense products", "saved", "kept"}
    assert cost.products == pytest.approx(3)
    assert max(cost.saved) >= WEIGHT_BYTES


def test_the_frozen_layer_is_the_floor():
    problem = adapted(1)
    weight = problem.weight
    cost = cost_of(lambda x: F.linear(x, weight), problem.x)
    assert cost.products == 2
    assert set(cost.saved) == {WEIGHT_BYTES}


@MODES
def test_x_is_not_saved_for_frozen_deltas(mode):
    problem = adapted(1)
    problem = problem.with_(deltas=problem.deltas.detach())
    packed = []
    with saved_tensors_hooks(lambda tensor: packed.append(tensor) or tensor, lambda tensor: tensor):
        output = problem.output(mode)
    assert max((tensor.numel() for tensor in packed), default=0) <= problem.deltas.numel()
    output.sum().backward()


def test_nothing_is_saved_without_gradients():
    problem = adapted(1)
    with torch.no_grad(), Allocations() as allocations:
        output = problem.output()
    assert allocations.alive() == [output.untyped_storage().nbytes()]


def test_in_place_never_copies_the_weight_and_transient_does_once():
    problem = adapted(20)
    with torch.no_grad():
        with Allocations() as inplace:
            problem.output("inplace")
        with Allocations() as transient:
            problem.output("transient")
    assert inplace.largest < WEIGHT_BYTES
    assert transient.largest == WEIGHT_BYTES
    assert inplace.peak < WEIGHT_BYTES
    assert transient.peak < 2 * WEIGHT_BYTES


@pytest.mark.parametrize(("rows", "whole"), [(16, False), (1 << 20, True)])
def test_dense_gradient_is_made_in_row_blocks(rows, whole, monkeypatch):
    problem = build(Case("blocks", 61, 127, 9, (5,)), torch.bfloat16)
    dy = torch.ones(5, 61, dtype=torch.bfloat16)
    monkeypatch.setattr(pieces, "BLOCK_ENTRIES", rows * 127)
    with Allocations() as allocations:
        delta_gradient(problem.x, dy, problem.indices, product="dense")
    assert (allocations.largest >= 61 * 127 * 4) == whole


def test_gradient_of_combined_supports_is_made_in_blocks(monkeypatch):
    problem = build(Case("blocks", 61, 127, 9, (53,)), torch.float32)
    monkeypatch.setattr(pieces, "BLOCK_ENTRIES", 1000)
    both = combine([problem.support, Support((problem.indices + 1) % 127, problem.deltas)], 127)
    with Allocations() as allocations:
        delta_gradient(problem.x, torch.ones(53, 61), both.indices, both.neurons)
    assert allocations.largest <= 4 * max(problem.x.numel(), 1000, 53 * 61)
    assert both.deltas.numel() * 53 > 4 * problem.x.numel()


def test_a_support_of_one_neuron_costs_no_dense_product():
    problem = adapted(1)
    x = problem.x.detach()
    deltas = torch.zeros(1, 20, requires_grad=True)
    indices, neurons = torch.arange(20)[None], torch.tensor([7])
    output = sparse_delta_linear(x, problem.weight, indices, deltas, neurons=neurons, product="sparse")
    with FlopCounterMode(display=False) as flops:
        output.sum().backward()
    assert flops.get_total_flops() <= 2 * TOKENS * 20
