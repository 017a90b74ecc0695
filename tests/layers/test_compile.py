"""torch.compile: adapted models are one graph, and train to the deltas that eager training gives."""

import copy
import shutil

import pytest
import torch
from peft import get_peft_model
from torch.autograd.graph import saved_tensors_hooks

from neuroada import NeuroAdaConfig, held
from neuroada.errors import WeightError
from specimens import base_weights, changed, fill, logits, same_bits, tiny, token_ids

STEPS = 3


@pytest.fixture(autouse=True)
def _fresh_caches():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def deltas(model) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters() if p.requires_grad])


def train(model, forward, dtype=torch.float32) -> torch.Tensor:
    """All deltas after a few steps of AdamW on the same tokens."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = forward(input_ids=token_ids())
        (output.logits.float() ** 2).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return deltas(model)


def require_same_training(model, backend: str) -> None:
    """The error against float64 is at most twice that of eager training; the base is untouched."""
    before = base_weights(model)
    exact, twin = copy.deepcopy(model).double(), copy.deepcopy(model)
    right, eager = train(exact, exact), train(twin, twin)
    found = train(model, torch.compile(model, fullgraph=True, backend=backend))
    assert found.abs().max() > 1e-3
    assert (found - right).norm() <= 2 * (eager - right).norm()
    assert changed(before, model) == []


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"k": 1}),
        ("llama", {"k": 2, "mode": "transient"}),
        ("gpt2", {"k": 3, "coverage": 0.5}),
        ("bert", {"k": 2}),
    ],
)
def test_trains_as_one_graph_to_the_same_deltas(family, settings):
    require_same_training(get_peft_model(tiny(family), NeuroAdaConfig(**settings)), "aot_eager")


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler, and g++ is not installed")
def test_trains_with_inductor_to_the_same_deltas():
    require_same_training(get_peft_model(tiny("llama", num_hidden_layers=1), NeuroAdaConfig(k=2)), "inductor")


def test_twin_with_a_wrong_gradient_fails(monkeypatch):
    from neuroada.ops.sparse_delta import traced

    right = traced.delta_gradient
    monkeypatch.setattr(traced, "delta_gradient", lambda x, dy, *rest: right(x[:-1], dy[:-1], *rest))
    with pytest.raises(AssertionError):
        require_same_training(get_peft_model(tiny("llama"), NeuroAdaConfig(k=1)), "aot_eager")


def test_outputs_and_autocast():
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(k=2))
    fill(model, "default")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                assert same_bits(compiled(input_ids=token_ids()).logits, model(input_ids=token_ids()).logits)
    twin = copy.deepcopy(model)
    found, eager = train(model, compiled, torch.bfloat16), train(twin, twin, torch.bfloat16)
    torch.testing.assert_close(found, eager, rtol=2**-7, atol=1e-3)


def test_switching_disabling_and_holding():
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(k=1), adapter_name="one")
    model.add_adapter("two", NeuroAdaConfig(k=3))
    fill(model, "one")
    fill(model, "two")
    before = base_weights(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def found():
        with torch.no_grad():
            return compiled(input_ids=token_ids()).logits

    for name in ("one", "two"):
        model.set_adapter(name)
        assert same_bits(found(), logits(model))
        with held(model):
            assert same_bits(found(), logits(model))
    with model.disable_adapter():
        base = logits(model)
        assert same_bits(found(), base)
    with held(model):
        with model.disable_adapter():
            assert same_bits(found(), base), "what is held is lifted, in a graph as well"
        assert same_bits(found(), logits(model))
    model.merge_adapter()
    assert same_bits(found(), logits(model))
    model.unmerge_adapter()
    assert changed(before, model) == []


def test_dtypes_that_do_not_fit_are_refused_as_without_compiling():
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(k=1))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with pytest.raises(WeightError, match=r"the input is torch\.float64 and the weight torch\.float32"):
        torch.compile(layer, backend="aot_eager")(torch.ones(2, layer.in_features, dtype=torch.float64))


def test_frozen_deltas_keep_no_input():
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(k=1)).requires_grad_(False)
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    x, kept = torch.ones(3, layer.in_features).requires_grad_(), []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor):
        output = torch.compile(layer, fullgraph=True, backend="eager")(x)
    assert x.shape not in kept
    output.sum().backward()
    torch.testing.assert_close(x.grad, layer.base_layer.weight.sum(0).expand(3, -1))


@pytest.mark.parametrize("obstacle", ["two adapters", "hook"])
def test_what_cannot_be_traced_breaks_the_graph_and_is_right(obstacle):
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(k=1), adapter_name="one")
    calls = []
    if obstacle == "two adapters":
        model.add_adapter("two", NeuroAdaConfig(k=3))
        fill(model, "two")
        model.base_model.set_adapter(["one", "two"])
    else:
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        layer.base_layer.register_forward_hook(lambda *_: calls.append(1))
    fill(model, "one")
    right = logits(model)
    calls.clear()
    with torch.no_grad():
        assert same_bits(torch.compile(model, backend="aot_eager")(input_ids=token_ids()).logits, right)
    assert len(calls) == (obstacle == "hook")
