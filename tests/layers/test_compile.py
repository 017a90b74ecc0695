"""torch.compile: adapted models are one graph, and train to the values that eager training gives."""

import copy
import shutil

import pytest
import torch
from peft import get_peft_model
from torch.autograd.graph import saved_tensors_hooks

from neuroada import NeuroAdaConfig, held
from neuroada.errors import WeightError
from neuroada.ops.neat import traced
from specimens import (
    METHODS,
    NEAT_KINDS,
    NEAT_VARIANTS,
    base_weights,
    changed,
    fill,
    logits,
    same_bits,
    tiny,
    token_ids,
)

NEAT = NEAT_KINDS[0]

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
    ("family", "config"),
    [
        ("llama", NeuroAdaConfig(k=1)),
        ("llama", NeuroAdaConfig(k=2, mode="transient")),
        ("gpt2", NeuroAdaConfig(k=3, coverage=0.5)),
        ("bert", NeuroAdaConfig(k=2)),
        ("llama", NEAT.config()),
        ("gpt2", NEAT_KINDS[1].config(activation="sine", depth=5)),
        *(("bert", kind.config(dropout=0.0)) for kind in NEAT_VARIANTS),
    ],
)
def test_trains_as_one_graph_to_the_same_values(family, config):
    require_same_training(get_peft_model(tiny(family), config), "aot_eager")


@pytest.mark.long
@pytest.mark.parametrize("kind", METHODS, ids=str)
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler, and g++ is not installed")
def test_trains_with_inductor_to_the_same_values(kind):
    config = kind.config(target_modules=["q_proj", "down_proj"])
    require_same_training(get_peft_model(tiny("llama", num_hidden_layers=1), config), "inductor")


def test_twin_with_a_wrong_gradient_fails(monkeypatch):
    from neuroada.ops.sparse_delta import traced

    right = traced.delta_gradient
    monkeypatch.setattr(traced, "delta_gradient", lambda x, dy, *rest: right(x[:-1], dy[:-1], *rest))
    with pytest.raises(AssertionError):
        require_same_training(get_peft_model(tiny("llama"), NeuroAdaConfig(k=1)), "aot_eager")


def test_twin_with_a_network_of_another_weight_fails(monkeypatch):
    right = traced._product
    monkeypatch.setattr(traced, "_product", lambda weight, *rest: right(2 * weight, *rest))
    with pytest.raises(AssertionError):
        require_same_training(get_peft_model(tiny("llama"), NEAT.config()), "aot_eager")


@pytest.mark.parametrize("kind", METHODS, ids=str)
def test_outputs_and_autocast(kind):
    model = kind.adapted(tiny("llama"), target_modules=["q_proj", "down_proj"]).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                assert same_bits(compiled(input_ids=token_ids()).logits, model(input_ids=token_ids()).logits)
    start, twin = deltas(model), copy.deepcopy(model)
    found, eager = train(model, compiled, torch.bfloat16), train(twin, twin, torch.bfloat16)
    assert (found - eager).norm() <= 2**-6 * (eager - start).norm()


@pytest.mark.parametrize("kind", METHODS, ids=str)
def test_switching_disabling_and_holding(kind):
    model = kind.adapted(tiny("llama"), "one", size=1, target_modules=["q_proj", "down_proj"])
    model.add_adapter("two", kind.config(3, target_modules=["q_proj"]))
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


@pytest.mark.parametrize("kind", METHODS, ids=str)
def test_dtypes_that_do_not_fit_are_refused_as_without_compiling(kind):
    model = get_peft_model(tiny("llama"), kind.config())
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


@pytest.mark.parametrize("kind", METHODS, ids=str)
def test_a_graph_keeps_no_wider_copy_of_the_weight(kind):
    model = kind.adapted(tiny("llama").to(torch.bfloat16)).train()
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    x = torch.ones(3, layer.in_features, dtype=torch.bfloat16)
    compiled, kept = torch.compile(layer, fullgraph=True, backend="aot_eager_decomp_partition"), []
    compiled(x)
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        compiled(x)
    weight = layer.base_layer.weight
    assert kept
    assert not [each.dtype for each in kept if each.numel() >= weight.numel() and each.dtype != weight.dtype]


def test_inputs_are_dropped_in_a_graph_too():
    model = NEAT.adapted(tiny("llama"), dropout=0.5, target_modules=["q_proj", "down_proj"]).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def seeded(forward, seed=1):
        torch.manual_seed(seed)
        with torch.no_grad():
            return forward(input_ids=token_ids()).logits

    assert same_bits(seeded(compiled), seeded(model))
    assert not torch.allclose(seeded(compiled), seeded(compiled, 2), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", METHODS, ids=str)
@pytest.mark.parametrize("obstacle", ["two adapters", "hook"])
def test_what_cannot_be_traced_breaks_the_graph_and_is_right(obstacle, kind):
    model = get_peft_model(tiny("llama"), kind.config(), adapter_name="one")
    calls = []
    if obstacle == "two adapters":
        model.add_adapter("two", kind.config(3))
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
