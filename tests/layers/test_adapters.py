"""Several adapters on a layer: alone, together, merged one by one, deleted; overlapping supports included."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from neuroada.errors import MergeError
from neuroada.layers import AdapterLayer
from neuroada.ops.sparse_delta.reference import merged_weight
from specimens import KINDS, base_weights, changed, fill, logits, same_bits, tiny, trained_parameters

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.parametrize("kind", KINDS, ids=str)

CONFIGS = {
    "neuroada_": {
        "a": {"size": 3},
        "b": {"size": 5, "delta_dtype": "bfloat16"},
        "c": {"size": 2, "coverage": 0.4, "selection": "random"},
    },
    "neat_": {
        "a": {"size": 3},
        "b": {"size": 5, "variant": "nonlinear_lora", "scaling": 0.5},
        "c": {"size": 2, "variant": "multiplicative_lora", "depth": 2, "activation": "relu"},
    },
}
"""NeuroAda's on a weight of 9 × 8: "a" lies within "b", "c" overlaps both here and there."""


@pytest.fixture(params=DTYPES, ids=str)
def layer(request, kind) -> AdapterLayer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base = nn.Linear(8, 9).to(request.param).requires_grad_(False)
    configs = CONFIGS[kind.prefix]
    layer = kind.layer(base, "a", **configs["a"])
    for name in ("b", "c"):
        layer.update_layer(name, kind.config(**configs[name]))
    for name in configs:
        fill(layer, name)
    return layer


@pytest.fixture
def x(layer) -> torch.Tensor:
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(1)).to(layer.base_layer.weight.dtype)


@torch.no_grad()
def dense(layer: AdapterLayer, names: list[str]) -> torch.Tensor:
    """The weight with these adapters in it, by plain sums in float32."""
    total = sum(layer.get_delta_weight(name).float() for name in names)
    everywhere = torch.arange(layer.in_features).expand(layer.out_features, -1)
    return merged_weight(layer.base_layer.weight, everywhere, total)


@pytest.mark.parametrize("names", [["a"], ["b"], ["c"], ["a", "b"], ["b", "c"], ["a", "b", "c"]], ids="".join)
def test_active_adapters_add_up_and_merge_as_promised(layer, x, names, kind):
    original = layer.base_layer.weight.clone()
    layer.set_adapter(names)
    together, exact = layer(x), copy.deepcopy(layer).double()
    want = dense(layer, names)
    plain = nn.functional.linear(x, want, layer.base_layer.bias)
    assert kind.agrees(together, plain, lambda: exact(x.double()))
    layer.merge()
    assert same_bits(layer.base_layer.weight, want)
    assert same_bits(layer(x), plain)
    layer.unmerge()
    assert same_bits(layer.base_layer.weight, original)
    assert same_bits(layer(x), together)


def test_a_write_of_one_spacing_while_merged_is_noticed(layer, kind):
    layer.merge(adapter_names=["a"])
    weight = layer.base_layer.weight
    with torch.no_grad():
        weight.copy_(torch.nextafter(weight, torch.full_like(weight, 9)))
    with pytest.raises(MergeError, match="written to while the adapter was merged"):
        layer.unmerge()


def test_merging_one_after_the_other_is_merging_both_at_once(layer, kind):
    original = layer.base_layer.weight.clone()
    layer.merge(adapter_names=["a", "b", "c"])
    at_once = layer.base_layer.weight.clone()
    layer.unmerge()
    for name in ("a", "b", "c"):
        with pytest.warns(UserWarning, match="additionally merging") if layer.merged else nullcontext():
            layer.merge(adapter_names=[name])
    assert layer.merged_adapters == ["a", "b", "c"]
    assert same_bits(layer.base_layer.weight, at_once)
    layer.unmerge()
    assert same_bits(layer.base_layer.weight, original)


def test_a_name_given_twice_counts_once(layer, x, kind):
    layer.set_adapter(["a"])
    alone, once = layer(x), dense(layer, ["a"])
    layer.set_adapter(["a", "a"])
    assert same_bits(layer(x), alone)
    layer.merge(adapter_names=["a", "a"])
    assert same_bits(layer.base_layer.weight, once)


def test_gradients_of_several_adapters_are_each_its_own(layer, kind):
    layer.base_layer.double()
    layer.set_adapter(["a", "b", "c"])
    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    trained = {name: list(trained_parameters(layer, name).values()) for name in "abc"}
    layer(x).square().sum().backward()
    found = [parameter.grad for name in "abc" for parameter in trained[name]]
    weight = layer.base_layer.weight + sum(layer.get_delta_weight(name) for name in "abc")
    loss = nn.functional.linear(x, weight, layer.base_layer.bias).square().sum()
    expected = torch.autograd.grad(loss, [parameter for name in "abc" for parameter in trained[name]])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_frozen_among_active_gets_no_gradient(layer, x, kind):
    layer.set_adapter(["a", "b"])
    layer.set_requires_grad("a", requires_grad=False)
    layer(x).sum().backward()
    assert all(parameter.grad is None for parameter in trained_parameters(layer, "a").values())
    assert all(parameter.grad is not None for parameter in trained_parameters(layer, "b").values())


@pytest.fixture
def model(kind):
    model = kind.adapted(tiny("llama"), "a")
    model.add_adapter("b", kind.config(3, target_modules=["q_proj", "down_proj"]))
    fill(model, "b")
    return model


def test_switching_there_and_back(model, kind):
    want = logits(tiny("llama"))
    first = logits(model)
    model.set_adapter("b")
    second = logits(model)
    with model.disable_adapter():
        assert same_bits(logits(model), want)
    assert same_bits(logits(model), second)
    model.set_adapter("a")
    assert same_bits(logits(model), first)
    assert not torch.equal(first, second)
    assert not torch.equal(first, want)


def test_disabled_layers_are_the_base_and_gradients_stop(model, kind):
    want, first = logits(tiny("llama")), logits(model)
    model.base_model.disable_adapter_layers()
    assert same_bits(logits(model), want)
    model.base_model.enable_adapter_layers()
    assert same_bits(logits(model), first)


def test_disabling_while_merged_unmerges(model, kind):
    before, want, first = base_weights(model), logits(tiny("llama")), logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert same_bits(logits(model), want)
    assert changed(before, model) == []
    assert same_bits(logits(model), first)


def test_switching_while_merged_unmerges(model, kind):
    before = base_weights(model)
    model.set_adapter("b")
    second = logits(model)
    model.set_adapter("a")
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        model.set_adapter("b")
    assert changed(before, model) == []
    assert same_bits(logits(model), second)


def test_deleting_leaves_the_other(model, kind):
    before = base_weights(model)
    first = logits(model)
    model.delete_adapter("b")
    assert same_bits(logits(model), first)
    assert not any(".b" in name for name in model.state_dict() if kind.prefix in name)
    model.delete_adapter("a")
    assert same_bits(logits(model.base_model), logits(tiny("llama")))
    assert changed(before, model) == []


def test_deleting_a_merged_adapter_is_refused(model, kind):
    model.merge_adapter(["b"])
    merged = base_weights(model)
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("b")
    assert changed(merged, model) == []
    model.unmerge_adapter()
    assert changed(base_weights(tiny("llama")), model) == []


def test_unload_while_merged_gives_the_base_back(model, kind):
    before = base_weights(model)
    model.merge_adapter(["a", "b"])
    assert changed(before, model)
    unloaded = model.unload()
    assert changed(before, unloaded) == []
