"""What NEAT costs: products and saved bytes against PEFT's PEANuT, and when the product with the weight is made."""

import gc

import pytest
import torch
from peft import PeanutConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from allocations import Allocations
from neuroada import NeatConfig, NeatLinear
from neuroada.ops.neat import product
from neuroada.ops.neat.product import first_gradient, first_product

from ..costs import INPUTS, OUTPUTS, TOKENS, Cost, cost_of

RANK = 10
DENSE = 2 * TOKENS * INPUTS * OUTPUTS
READ = 2 * INPUTS * OUTPUTS * RANK
"""FLOPs of W Θ1."""


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=dtype).requires_grad_(False)


def adapted(base: nn.Linear, **config) -> NeatLinear:
    return NeatLinear(base, "default", NeatConfig(r=RANK, **config), "layer")


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(TOKENS, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def complaints(cost: Cost) -> set[str]:
    """Against what the method promises: bytes are of float32."""
    limit = 4 * 1.5 * (OUTPUTS + TOKENS) * RANK
    checks = {
        "dense products": cost.products <= 2.10,
        "saved": sum(cost.saved) <= limit,
        "kept": sum(cost.kept) <= limit,
    }
    return {name for name, holds in checks.items() if not holds}


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("activation", ["relu", "gelu", "sine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_costs_what_is_promised(side, depth, activation, dtype):
    layer = adapted(linear(dtype), side=side, depth=depth, activation=activation)
    x = inputs(dtype)
    cost = cost_of(layer, x, list(layer.parameters()))
    assert not complaints(cost), cost
    assert cost.products >= 2
    assert x.grad is not None
    assert all(parameter.grad is not None for parameter in layer.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("variant", ["nonlinear_lora", "multiplicative_lora"])
def test_the_ablations_cost_what_lora_costs(variant, side):
    layer, x = adapted(linear(), variant=variant, side=side), inputs()
    with FlopCounterMode(display=False) as flops:
        layer(x).sum().backward()
    assert flops.get_total_flops() == 2 * DENSE + 6 * 2 * TOKENS * INPUTS * RANK


def test_twin_peanut_fails():
    x, base = inputs(), nn.Sequential(linear())
    model = get_peft_model(base, PeanutConfig(r=RANK, target_modules=["0"]))
    layer = model.base_model.model[0]
    cost = cost_of(layer, x, list(layer.parameters()))
    assert complaints(cost) == {"dense products", "saved", "kept"}
    assert cost.products == pytest.approx(5.10, abs=0.005)


def test_nothing_is_kept_without_gradients_but_the_product():
    layer, x = adapted(linear()), inputs().detach()
    with torch.no_grad(), Allocations() as allocations:
        output = layer(x)
    assert sorted(allocations.alive()) == sorted([4 * OUTPUTS * RANK, output.untyped_storage().nbytes()])


def test_a_16_bit_weight_is_cast_in_blocks(monkeypatch):
    monkeypatch.setattr(product, "BLOCK_ENTRIES", 1 << 14)
    weight, first = linear(torch.bfloat16).weight, torch.randn(RANK, INPUTS)
    with Allocations() as allocations:
        made = first_product(weight, first)
        first_gradient(weight, torch.randn_like(made))
    assert allocations.largest <= 4 * max(1 << 14, RANK * INPUTS)


# When W Θ1 is made: once an optimiser step, in each evaluation once, and again whenever it may have changed.


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """One entry for each time that W Θ1 is made."""
    calls, right = [], product.first_product
    monkeypatch.setattr(product, "first_product", lambda *each: calls.append(1) or right(*each))
    return calls


@pytest.fixture
def layer() -> NeatLinear:
    return adapted(linear(), init_weights=False, activation="sine")


def accumulated(layer: NeatLinear, micro_batches: int) -> int:
    """FLOPs of as many micro-batches as one optimiser step takes."""
    with FlopCounterMode(display=False) as flops:
        for _ in range(micro_batches):
            layer(inputs()).sum().backward()
    return flops.get_total_flops()


def test_micro_batches_make_it_once_and_its_gradient_each(layer, made):
    each = 2 * DENSE + 6 * 2 * TOKENS * INPUTS * RANK + READ
    assert accumulated(layer, 3) == 3 * each + READ
    assert len(made) == 1


def test_twin_that_makes_it_each_time_is_counted(layer, made, monkeypatch):
    monkeypatch.setattr(product, "_PRODUCTS", {})
    monkeypatch.setattr(product, "_bits", lambda first: object())
    accumulated(layer, 3)
    assert len(made) == 3


@pytest.mark.parametrize("visible", [True, False], ids=["values are looked at", "as on a GPU"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_makes_it_once_a_step_in_either_mode(layer, made, monkeypatch, reentrant, visible):
    """Reentrant checkpointing runs a layer without gradients, and then again with them."""
    if not visible:
        monkeypatch.setattr(product, "_bits", lambda first: None)
    optimiser = torch.optim.SGD(layer.neat_in.parameters(), lr=0.1)
    for _ in range(2):
        for _ in range(4):
            checkpoint(layer, inputs(), use_reentrant=reentrant).sum().backward()
        optimiser.step()
    modes = 2 if reentrant and not visible else 1
    assert len(made) == 2 * modes
    assert len(product._PRODUCTS[layer.neat_in["default"]]) == modes


def test_a_product_of_before_a_step_is_not_kept_beside_that_of_after_it(layer, monkeypatch):
    monkeypatch.setattr(product, "_bits", lambda first: None)
    with torch.no_grad():
        layer(inputs())
    _optimise(layer, torch.optim.SGD(layer.neat_in.parameters(), lr=0.1))
    layer(inputs())
    assert len(product._PRODUCTS[layer.neat_in["default"]]) == 1


def test_what_another_thread_may_be_reading_is_replaced_and_not_changed(layer):
    layer(inputs())
    kept = product._PRODUCTS[layer.neat_in["default"]]
    before = dict(kept)
    _optimise(layer, torch.optim.SGD(layer.neat_in.parameters(), lr=0.1))
    layer(inputs())
    assert kept == before
    assert product._PRODUCTS[layer.neat_in["default"]] is not kept


def test_inference_and_training_have_products_of_their_own(layer, made):
    with torch.inference_mode():
        layer(inputs().detach())
    layer(inputs()).sum().backward()
    assert len(made) == 2


def test_evaluations_make_it_once(layer, made):
    with torch.no_grad():
        outputs = [layer(inputs().detach()) for _ in range(3)]
    assert len(made) == 1
    assert torch.equal(outputs[0], outputs[2])


def _optimise(layer: NeatLinear, optimiser: torch.optim.Optimizer) -> None:
    layer(inputs()).sum().backward()
    optimiser.step()


def _step(make) -> object:
    return lambda layer: _optimise(layer, make(layer.neat_in.parameters()))


@torch.no_grad()
def _write(layer: NeatLinear) -> None:
    layer.neat_in["default"].mul_(2)


@torch.no_grad()
def _write_to_the_weight(layer: NeatLinear) -> None:
    layer.base_layer.weight.mul_(2)


def _write_through_data(layer: NeatLinear) -> None:
    layer.neat_in["default"].data[3, 5] += 1


def _replace(layer: NeatLinear) -> None:
    layer.neat_in["default"] = nn.Parameter(layer.neat_in["default"].detach() * 2)


def _replace_storage(layer: NeatLinear) -> None:
    layer.neat_in["default"].data = layer.neat_in["default"].data * 2


def _replace_the_weight(layer: NeatLinear) -> None:
    layer.base_layer.weight = nn.Parameter(layer.base_layer.weight * 2, requires_grad=False)


def _load(layer: NeatLinear) -> None:
    layer.load_state_dict({name: 2 * tensor for name, tensor in layer.state_dict().items()})


CHANGES = {
    "SGD": _step(lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
    "AdamW, fused": _step(lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True)),
    "AdamW, foreach": _step(lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=True)),
    "write": _write,
    "write through data": _write_through_data,
    "replace": _replace,
    "replace storage": _replace_storage,
    "write to the weight": _write_to_the_weight,
    "replace the weight": _replace_the_weight,
    "load": _load,
    "cast": lambda layer: layer.double(),
}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(layer, change, gradients):
    with torch.set_grad_enabled(gradients):
        layer(inputs())
        with torch.enable_grad():
            CHANGES[change](layer)
        x = inputs().to(layer.base_layer.weight.dtype)
        fresh = adapted(linear(), init_weights=False, activation="sine").to(x.dtype)
        fresh.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), fresh(x))


@pytest.mark.parametrize("change", ["SGD", "AdamW, fused", "AdamW, foreach"])
def test_steps_are_noticed_wherever_the_values_cannot_be_looked_at(layer, change, made, monkeypatch):
    """As on a GPU, where a sum of bits would have to be waited for."""
    monkeypatch.setattr(product, "_bits", lambda first: None)
    layer(inputs())
    CHANGES[change](layer)
    layer(inputs())
    assert len(made) == 2


def test_training_and_evaluation_are_kept_apart_where_values_cannot_be_looked_at(layer, made, monkeypatch):
    """As where averaged weights are swapped in for an evaluation, through `.data`, and out again."""
    monkeypatch.setattr(product, "_bits", lambda first: None)
    first = layer.neat_in["default"]
    want, own = layer(inputs()), first.detach().clone()
    _optimise(layer, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    first.data.mul_(0.5)
    with torch.no_grad():
        assert not torch.equal(layer(inputs().detach()), want)
    first.data.copy_(own)
    assert torch.equal(layer(inputs()), want)


def test_another_weight_in_the_same_memory_is_another_weight(layer, made):
    """As where one was freed and the next one took its place."""
    layer(inputs())
    layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.data, requires_grad=False)
    layer(inputs())
    assert len(made) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_weight_is_read_in_float32(dtype):
    weight, first = linear(dtype).weight, torch.randn(RANK, INPUTS, generator=torch.Generator().manual_seed(2))
    exact = weight.double() @ first.double().T
    assert (first_product(weight, first) - exact).norm() <= 2**-20 * exact.norm()


def test_it_goes_with_the_layer():
    layer = adapted(linear())
    layer(inputs())
    count = len(product._PRODUCTS)
    del layer
    gc.collect()
    assert len(product._PRODUCTS) < count
