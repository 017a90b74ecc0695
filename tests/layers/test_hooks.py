"""Hooks on the base layer run as they do without an adapter: they see values, change them, and may raise."""

import copy

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import ModelHook, SequentialHook, add_hook_to_module, remove_hook_from_module
from peft import get_peft_model
from torch import nn

from neuroada import held
from neuroada.layers import AdapterLayer
from specimens import Kind, adapted_layers, base_weights, changed, every_kind, fill, logits, same_bits, tiny, token_ids


def plain_and_adapted(kind: Kind) -> tuple[nn.Linear, AdapterLayer]:
    """A linear layer that holds the merged weight, and the adapted layer that computes with it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base = nn.Linear(7, 5).double().requires_grad_(False)
    layer = kind.layer(base)
    fill(layer)
    layer.merge()
    merged = copy.deepcopy(base)
    layer.unmerge()
    return merged, layer


def run(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, gradient of the input)."""
    x = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = layer(x)
    return y, torch.autograd.grad(y.square().sum(), x)[0]


def scale_input(module, args):
    return (args[0] * 2,)


def scale_output(module, args, output):
    return output * 3


def scale_output_keywords(module, args, kwargs, output):
    return output + 1


def scale_gradient(module, grad_input, grad_output):
    return tuple(gradient * 5 for gradient in grad_input)


def scale_output_gradient(module, grad_output):
    return tuple(gradient * 7 for gradient in grad_output)


REGISTRATIONS = {
    "forward": lambda module: module.register_forward_hook(scale_output),
    "forward with keywords": lambda module: module.register_forward_hook(scale_output_keywords, with_kwargs=True),
    "forward, always": lambda module: module.register_forward_hook(scale_output, always_call=True),
    "before forward": lambda module: module.register_forward_pre_hook(scale_input),
    "backward": lambda module: module.register_full_backward_hook(scale_gradient),
    "before backward": lambda module: module.register_full_backward_pre_hook(scale_output_gradient),
}


@every_kind
@pytest.mark.parametrize("names", [*([name] for name in REGISTRATIONS), list(REGISTRATIONS)], ids=", ".join)
def test_hooks_change_values_as_on_the_merged_layer(names, kind):
    merged, layer = plain_and_adapted(kind)
    original = layer.base_layer.weight.clone()
    unhooked = run(layer)
    handles = []
    for name in names:
        REGISTRATIONS[name](merged)
        handles.append(REGISTRATIONS[name](layer.base_layer))
    for ours, theirs in zip(run(layer), run(merged), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not all(torch.equal(*pair) for pair in zip(run(layer), unhooked, strict=True))
    for handle in handles:
        handle.remove()
    assert all(same_bits(*pair) for pair in zip(run(layer), unhooked, strict=True))
    assert same_bits(layer.base_layer.weight, original)
    assert "forward" not in layer.base_layer.__dict__


@every_kind
@pytest.mark.parametrize("state", ["adapted", "disabled", "merged", "held"])
def test_hooks_run_once_a_call_in_every_state(state, kind):
    model = kind.adapted(tiny("gpt2"))
    calls = []
    layers = adapted_layers(model)
    for layer in layers:
        layer.base_layer.register_forward_pre_hook(lambda module, args: calls.append(module))
        layer.base_layer.register_forward_hook(lambda module, args, output: calls.append(module))
    if state == "merged":
        model.merge_adapter()
    if state == "disabled":
        model.base_model.disable_adapter_layers()
    if state == "held":
        with held(model):
            logits(model)
    else:
        logits(model)
    assert calls == [layer.base_layer for layer in layers for _ in range(2)]


@every_kind
def test_hooks_on_all_modules_run_for_the_base_layer_too(kind):
    _, layer = plain_and_adapted(kind)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        run(layer)
    finally:
        handle.remove()
    assert seen == [layer.base_layer, layer]


@every_kind
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["forward", "before forward", "backward", "before backward"])
def test_a_hook_that_raises_leaves_the_base_intact(name, error, kind):
    model = kind.adapted(tiny("llama"))
    before, want = base_weights(model), logits(model)
    base_layer = model.base_model.model.model.layers[1].mlp.up_proj.base_layer

    def fail(*args):
        raise error

    register = {
        "forward": base_layer.register_forward_hook,
        "before forward": base_layer.register_forward_pre_hook,
        "backward": base_layer.register_full_backward_hook,
        "before backward": base_layer.register_full_backward_pre_hook,
    }
    handle = register[name](fail)
    with pytest.raises(error):
        model(token_ids(), labels=token_ids()).loss.backward()
    handle.remove()
    assert changed(before, model) == []
    assert "forward" not in base_layer.__dict__
    assert same_bits(logits(model), want)


@every_kind
def test_a_product_that_fails_leaves_the_base_intact(kind):
    model = kind.adapted(tiny("llama"))
    before, want = base_weights(model), logits(model)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.ones(2, layer.in_features + 1))
    assert changed(before, model) == []
    assert same_bits(logits(model), want)


class Counting(ModelHook):
    """An accelerate hook that counts its calls."""

    def __init__(self):
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


@every_kind
def test_accelerate_hooks_run(kind):
    _, layer = plain_and_adapted(kind)
    want, hooks = run(layer), [Counting(), Counting()]
    add_hook_to_module(layer.base_layer, SequentialHook(*hooks))
    layer.base_layer.register_forward_hook(scale_output)
    assert same_bits(run(layer)[0], want[0] * 3)
    assert [hook.calls for hook in hooks] == [1, 1]
    remove_hook_from_module(layer.base_layer)
    assert same_bits(run(layer)[0], want[0] * 3)
    assert [hook.calls for hook in hooks] == [1, 1]


@every_kind
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_base_weights_offloaded_before_adapting(family, kind):
    """They live elsewhere and are brought in for each call, as new Parameter objects each time."""
    want, base = kind.adapted(tiny(family)), tiny(family)
    cpu_offload(base, torch.device("cpu"))
    model = get_peft_model(base, kind.config())
    assert all(layer.base_layer.weight.is_meta for layer in adapted_layers(model))
    fill(model)
    for _ in range(2):
        assert same_bits(logits(model), logits(want))
        pairs = zip(gradients(model), gradients(want), strict=True)
        assert all(same_bits(*pair) for pair in pairs)
    model.merge_adapter()
    merged = logits(model)
    assert kind.models_agree(logits(want), merged, want)
    model.unmerge_adapter()
    with model.disable_adapter():
        assert same_bits(logits(model), logits(tiny(family)))
    assert same_bits(logits(model.merge_and_unload(safe_merge=True)), merged)


@every_kind
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_whole_model_offloaded_after_adapting(family, kind):
    """The deltas go with the rest, as where PEFT loads an adapter onto an off-loaded base."""
    model = kind.adapted(tiny(family))
    want = logits(model)
    cpu_offload(model, torch.device("cpu"))
    for _ in range(2):
        assert same_bits(logits(model), want)


def gradients(model: nn.Module) -> tuple[torch.Tensor, ...]:
    loss = model(token_ids(), labels=token_ids()).loss
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


@every_kind
def test_dispatched_model(kind):
    model = kind.adapted(tiny("llama"))
    want, twin = logits(model), copy.deepcopy(model)
    dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert same_bits(logits(model), want)
    assert kind.models_agree(want, logits(model.merge_and_unload()), twin)
