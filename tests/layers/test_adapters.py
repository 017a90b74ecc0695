"""Several adapters on a layer: alone, together, merged one by one, deleted; overlapping supports included."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from neuroada import NeuroAdaConfig, NeuroAdaLinear
from neuroada.ops.sparse_delta.reference import merged_weight
from specimens import MODES, adapted, base_weights, changed, fill, logits, same_bits, tiny

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.parametrize("mode", MODES)

CONFIGS = {
    "a": {"k": 3},
    "b": {"k": 5, "delta_dtype": "bfloat16"},
    "c": {"k": 2, "coverage": 0.4, "selection": "random"},
}
"""On a weight of 9 × 8: "a" lies within "b", "c" overlaps both here and there."""


@pytest.fixture(params=DTYPES, ids=str)
def layer(request, mode) -> NeuroAdaLinear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base = nn.Linear(8, 9).to(request.param).requires_grad_(False)
    layer = NeuroAdaLinear(base, "a", NeuroAdaConfig(**CONFIGS["a"], mode=mode), "layer")
    for name in ("b", "c"):
        layer.update_layer(name, NeuroAdaConfig(**CONFIGS[name], mode=mode))
    for name in CONFIGS:
        fill(layer, name)
    return layer


@pytest.fixture
def x(layer) -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).to(layer.base_layer.weight.dtype)


@torch.no_grad()
def dense(layer: NeuroAdaLinear, names: list[str]) -> torch.Tensor:
    """The weight with these adapters in it, by plain sums in float32."""
    total = sum(layer.get_delta_weight(name).float() for name in names)
    everywhere = torch.arange(layer.in_features).expand(layer.out_features, -1)
    return merged_weight(layer.base_layer.weight, everywhere, total)


@pytest.mark.parametrize("names", [["a"], ["b"], ["c"], ["a", "b"], ["b", "c"], ["a", "b", "c"]], ids="".join)
def test_active_adapters_add_up_and_merge_to_the_same_bits(layer, x, names, mode):
    original = layer.base_layer.weight.clone()
    layer.set_adapter(names)
    together = layer(x)
    assert same_bits(together, nn.functional.linear(x, dense(layer, names), layer.base_layer.bias))
    want = dense(layer, names)
    layer.merge()
    assert same_bits(layer.base_layer.weight, want)
    assert same_bits(layer(x), together)
    layer.unmerge()
    assert same_bits(layer.base_layer.weight, original)
    assert same_bits(layer(x), together)


def test_merging_one_after_the_other_is_merging_both_at_once(layer, mode):
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


def test_a_name_given_twice_counts_once(layer, x, mode):
    layer.set_adapter(["a"])
    alone, once = layer(x), dense(layer, ["a"])
    layer.set_adapter(["a", "a"])
    assert same_bits(layer(x), alone)
    layer.merge(adapter_names=["a", "a"])
    assert same_bits(layer.base_layer.weight, once)


def test_gradients_of_overlapping_adapters_are_each_its_own(layer, mode):
    layer.base_layer.double()
    layer.set_adapter(["a", "b", "c"])
    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer(x).square().sum().backward()
    weight = dense(layer, ["a", "b", "c"]).requires_grad_()
    nn.functional.linear(x, weight, layer.base_layer.bias).square().sum().backward()
    for name in CONFIGS:
        ours, theirs = layer.neuroada_deltas[name].grad, weight.grad[layer.get_delta_weight(name) != 0]
        torch.testing.assert_close(ours.flatten(), theirs.to(ours.dtype))


def test_frozen_among_active_gets_no_gradient(layer, x, mode):
    layer.set_adapter(["a", "b"])
    layer.set_requires_grad("a", requires_grad=False)
    layer(x).sum().backward()
    assert layer.neuroada_deltas["a"].grad is None
    assert layer.neuroada_deltas["b"].grad is not None


@pytest.fixture
def model(mode):
    model = adapted(tiny("llama"), "a", k=2, mode=mode)
    model.add_adapter("b", NeuroAdaConfig(k=3, mode=mode, target_modules=["q_proj", "down_proj"]))
    fill(model, "b")
    return model


def test_switching_there_and_back(model, mode):
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


def test_disabled_layers_are_the_base_and_gradients_stop(model, mode):
    want, first = logits(tiny("llama")), logits(model)
    model.base_model.disable_adapter_layers()
    assert same_bits(logits(model), want)
    model.base_model.enable_adapter_layers()
    assert same_bits(logits(model), first)


def test_disabling_while_merged_unmerges(model, mode):
    before, want, first = base_weights(model), logits(tiny("llama")), logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert same_bits(logits(model), want)
    assert changed(before, model) == []
    assert same_bits(logits(model), first)


def test_switching_while_merged_unmerges(model, mode):
    before = base_weights(model)
    model.set_adapter("b")
    second = logits(model)
    model.set_adapter("a")
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        model.set_adapter("b")
    assert changed(before, model) == []
    assert same_bits(logits(model), second)


def test_deleting_leaves_the_other(model, mode):
    before = base_weights(model)
    first = logits(model)
    model.delete_adapter("b")
    assert same_bits(logits(model), first)
    assert not any(".b" in name for name in model.state_dict() if "neuroada_" in name)
    model.delete_adapter("a")
    assert same_bits(logits(model.base_model), logits(tiny("llama")))
    assert changed(before, model) == []


def test_deleting_a_merged_adapter_is_refused(model, mode):
    model.merge_adapter(["b"])
    merged = base_weights(model)
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("b")
    assert changed(merged, model) == []
    model.unmerge_adapter()
    assert changed(base_weights(tiny("llama")), model) == []


def test_unload_while_merged_gives_the_base_back(model, mode):
    before = base_weights(model)
    model.merge_adapter(["a", "b"])
    assert changed(before, model)
    unloaded = model.unload()
    assert changed(before, unloaded) == []
