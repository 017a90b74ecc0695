"""What NEAT alone has: shapes, starting values, dropout, its variants' shorter forms, and conversion to LoRA."""

import copy

import pytest
import torch
from peft import convert_to_lora, get_peft_model, set_peft_model_state_dict
from torch import nn
from torch.utils.checkpoint import checkpoint

from neuroada import NeatConfig, NeatLinear
from neuroada.errors import MergeError
from neuroada.layers import neat
from specimens import DTYPES, NEAT_KINDS, NEAT_VARIANTS, fill, logits, same_bits, tiny, trained_parameters

SIDES = ("input", "output")
every_kind = pytest.mark.parametrize("kind", NEAT_KINDS + NEAT_VARIANTS, ids=str)
INPUTS, OUTPUTS = 7, 12


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Linear(INPUTS, OUTPUTS).to(dtype).requires_grad_(False)


def wrap(base: nn.Linear, filled: bool = True, **config) -> NeatLinear:
    layer = NeatLinear(base, "default", NeatConfig(**({"r": 3} | config)), "layer")
    if filled:
        fill(layer)
    return layer


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(40, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


@pytest.mark.parametrize("depth", [2, 3, 6])
@pytest.mark.parametrize(
    ("side", "variant", "first", "last"),
    [
        ("input", "neat", (3, 7), (7, 3)),
        ("output", "neat", (3, 12), (12, 3)),
        ("input", "nonlinear_lora", (3, 12), (7, 3)),
        ("output", "nonlinear_lora", (3, 7), (12, 3)),
    ],
)
def test_shapes(side, variant, first, last, depth):
    layer = wrap(linear(), side=side, variant=variant, depth=depth)
    shapes = {kind: tuple(parameter.shape) for kind, parameter in trained_parameters(layer).items()}
    hidden = {"neat_hidden": (depth - 2, 3, 3)} if depth > 2 else {}
    assert shapes == {"neat_in": first, "neat_out": last} | hidden


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_float32_whatever_the_weight_is(dtype):
    parameters = trained_parameters(wrap(linear(dtype), filled=False, depth=4)).values()
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert all(parameter.requires_grad for parameter in parameters)


@pytest.mark.parametrize("init_weights", [True, False])
def test_starting_values_are_torch_s_for_linear_layers_and_zeros_last(init_weights):
    base = nn.Linear(400, 300).requires_grad_(False)
    layer = NeatLinear(base, "default", NeatConfig(r=50, depth=4, init_weights=init_weights), "layer")
    widths = {"neat_in": 400, "neat_hidden": 50, "neat_out": 50}
    for kind, parameter in trained_parameters(layer).items():
        largest = float(parameter.abs().max())
        if kind == "neat_out" and init_weights:
            assert largest == 0
        else:
            assert 0.95 < largest * widths[kind] ** 0.5 <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kind
def test_the_start_is_the_base_in_training_too(kind, dtype):
    base = linear(dtype)
    layer = kind.layer(base, dropout=0.5).train()
    assert same_bits(layer(inputs(dtype)), base(inputs(dtype)))


# Dropout acts on the input of the update, and only while training.


@every_kind
def test_dropout_is_on_the_input_of_the_update_alone(kind):
    base = linear(torch.float64)
    layer, x = kind.layer(base, dropout=0.4), inputs(torch.float64)
    fill(layer)
    torch.manual_seed(5)
    found = layer.train()(x)
    torch.manual_seed(5)
    dropped = nn.functional.dropout(x, 0.4)
    expected = base(x) + dropped @ layer.get_delta_weight("default").T.double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    trained = (x, *trained_parameters(layer).values())
    for ours, theirs in zip(*(torch.autograd.grad(y.square().sum(), trained) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@every_kind
def test_there_is_no_dropout_in_evaluation(kind):
    dropping, plain = (kind.layer(linear(), dropout=share).eval() for share in (0.4, 0.0))
    for layer in (dropping, plain):
        fill(layer)
    assert same_bits(dropping(inputs()), plain(inputs()))


def test_dropout_of_each_adapter_is_its_own():
    layer = wrap(linear(torch.float64), dropout=0.9)
    layer.update_layer("second", NeatConfig(r=3))
    fill(layer, "second")
    layer.set_adapter(["second"])
    assert same_bits(layer.train()(inputs(torch.float64)), layer.eval()(inputs(torch.float64)))
    layer.set_adapter(["default", "second"])
    assert not torch.equal(layer.train()(inputs(torch.float64)), layer.eval()(inputs(torch.float64)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_drops_the_same(reentrant):
    layer, x = wrap(linear(), dropout=0.4).train(), inputs()
    trained = list(trained_parameters(layer).values())
    torch.manual_seed(5)
    layer(x).square().sum().backward()
    want = [parameter.grad.clone() for parameter in trained]
    layer.zero_grad()
    torch.manual_seed(5)
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert all(same_bits(parameter.grad, right) for parameter, right in zip(trained, want, strict=True))


# Several backward passes, and what is left of the layer's product between them.


@every_kind
def test_two_backward_passes_of_one_forward_pass(kind):
    layer, x = kind.layer(linear()), inputs()
    fill(layer)
    trained = [x, *trained_parameters(layer).values()]
    loss = layer(x).square().sum()
    first = torch.autograd.grad(loss, trained, retain_graph=True)
    second = torch.autograd.grad(loss, trained)
    assert all(same_bits(*pair) for pair in zip(first, second, strict=True))


@every_kind
def test_gradients_accumulate_to_those_of_the_whole_batch(kind):
    layer, x = kind.layer(linear(torch.float64)), inputs(torch.float64).detach()
    fill(layer)
    layer(x).square().sum().backward()
    whole = [parameter.grad.clone() for parameter in trained_parameters(layer).values()]
    layer.zero_grad()
    for part in x.chunk(4):
        layer(part).square().sum().backward()
    for parameter, want in zip(trained_parameters(layer).values(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, want, rtol=1e-6, atol=1e-9)


def test_a_layer_whose_values_are_frozen_passes_the_gradient_on():
    layer, x = wrap(linear(torch.float64)).requires_grad_(False), inputs(torch.float64)
    (found,) = torch.autograd.grad(layer(x).square().sum(), x)
    weight = layer.base_layer.weight + layer.get_delta_weight("default")
    (want,) = torch.autograd.grad(nn.functional.linear(x, weight, layer.base_layer.bias).square().sum(), x)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-9)


def test_an_activation_in_place_may_follow():
    model = nn.Sequential(wrap(linear()), nn.ReLU(inplace=True))
    model(inputs()).sum().backward()
    assert model[0].neat_out["default"].grad is not None


# The shorter forms of "multiplicative_lora" are taken where they are right.


@pytest.mark.parametrize(("side", "bias"), [("input", True), ("input", False), ("output", False)])
def test_multiplicative_lora_takes_the_short_form_for_one_adapter(side, bias, monkeypatch):
    base = linear()
    base.bias = base.bias if bias else None
    layer = wrap(base, variant="multiplicative_lora", side=side)
    monkeypatch.setattr(neat, "updated", None)
    layer(inputs()).sum().backward()


@pytest.mark.parametrize("side", SIDES)
def test_multiplicative_lora_beside_another_adapter(side):
    layer = wrap(linear(torch.float64), variant="multiplicative_lora", side=side)
    layer.update_layer("second", NeatConfig(r=2))
    fill(layer, "second")
    layer.set_adapter(["default", "second"])
    x = inputs(torch.float64)
    weight = layer.base_layer.weight + layer.get_delta_weight("default") + layer.get_delta_weight("second")
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, layer.base_layer.bias), rtol=1e-6, atol=1e-8)


# Around the layer.


@every_kind
def test_a_weight_that_cannot_be_written_is_used_and_not_merged_into(kind):
    base = linear()
    base.weight = nn.Parameter(torch.arange(1.0, INPUTS + 1).expand(OUTPUTS, INPUTS), requires_grad=False)
    layer, x = kind.layer(base), inputs()
    fill(layer)
    want = nn.functional.linear(x, base.weight + layer.get_delta_weight("default"), base.bias)
    torch.testing.assert_close(layer(x), want)
    with pytest.raises(MergeError, match=r"Merging into layer: entries of its weight share memory"):
        layer.merge()
    assert not layer.merged
    torch.testing.assert_close(layer(x), want)


def test_hooks_of_all_modules_see_no_module_but_the_layer_and_its_base():
    seen = []
    layer = wrap(linear(), activation="gelu_new", depth=4)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        layer(inputs()).sum().backward()
    finally:
        handle.remove()
    assert seen == [layer.base_layer, layer]


@pytest.mark.parametrize("side", SIDES)
def test_converted_to_lora_of_the_same_rank_it_is_the_same(side):
    base = tiny("llama")
    model = NEAT_KINDS[0].adapted(base, size=3, side=side)
    assert model.supports_lora_conversion()
    want = logits(model)
    config, state = convert_to_lora(model, rank=3)
    assert config.r == 3
    lora = get_peft_model(copy.deepcopy(base), config)
    set_peft_model_state_dict(lora, state)
    torch.testing.assert_close(logits(lora.eval()), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["neat", "nonlinear_lora", "multiplicative_lora"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_a_bias_much_larger_than_the_product_costs_no_accuracy(side, variant):
    """As of the keys of some models; other outputs must not get its rounding."""
    generator = torch.Generator().manual_seed(2)
    base = nn.Linear(64, 64).to(torch.bfloat16).requires_grad_(False)
    with torch.no_grad():
        base.bias.zero_()
        base.bias[:4] = 300
    config = NeatConfig(r=4, side=side, variant=variant, init_weights=False)
    layer = NeatLinear(copy.deepcopy(base), "default", config, "layer")
    x = torch.randn(32, 64, generator=generator).to(torch.bfloat16)
    exact = x.double() @ (base.weight.double() + layer.get_delta_weight("default").double()).T
    adapted = layer(x)[:, 4:].double()
    layer.merge()
    merged = layer(x)[:, 4:].double()
    error, floor = ((each - exact[:, 4:]).norm() / exact[:, 4:].norm() for each in (adapted, merged))
    assert error <= 2 * floor
