"""Adapted models on the Triton kernels: compiled on a GPU, interpreted here. Everything is as without them."""

import pytest
import torch
from peft import get_peft_model

from neuroada import NeuroAdaConfig, held
from neuroada.ops.sparse_delta import gradient, holding, library, swap
from specimens import base_weights, changed, fill, logits, same_bits, tiny, token_ids

from ..ops.sparse_delta.triton.kernels import DEVICE, triton_plan, triton_product, triton_swap

SETTINGS = [{"k": 1}, {"k": 3, "coverage": 0.5, "mode": "transient"}, {"k": 2, "delta_dtype": "bfloat16"}]


@pytest.fixture
def kernels(monkeypatch):
    """Send everything through the kernels, on whatever device the tests have."""
    monkeypatch.setattr(swap, "uses_kernels", lambda tensor: True)
    monkeypatch.setattr(holding, "uses_kernels", lambda tensor: True)
    monkeypatch.setattr(gradient, "backend_for", lambda *_: ("triton", "in this test"))
    monkeypatch.setattr(library, "sampled_product", lambda *inputs: triton_product.sampled_product(*inputs[:-1]))
    return monkeypatch


def made(dtype=torch.float32, **settings):
    model = get_peft_model(tiny("llama", num_hidden_layers=1).to(dtype), NeuroAdaConfig(**settings))
    fill(model, "default")
    for layer in model.modules():
        if hasattr(layer, "product"):
            layer.product = "sparse"
    return model.to(DEVICE)


def stepped(model, holds: bool) -> list[torch.Tensor]:
    """Deltas after two optimiser steps, the logits after them, held or not, and the loss's gradients."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    ids = token_ids().to(DEVICE)

    def run():
        for _ in range(2):
            model(input_ids=ids, labels=ids).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            return model(input_ids=ids).logits

    if holds:
        with held(model):
            inside = run()
    else:
        inside = run()
    return [inside, *(p.detach().clone() for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_training_is_as_without_kernels(settings, holds, kernels):
    model = made(**settings)
    before = base_weights(model)
    found = stepped(model, holds)
    assert changed(before, model) == []
    kernels.undo()
    for mine, plain in zip(found, stepped(made(**settings), holds), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_outputs_are_the_same_bits_held_or_not(dtype, kernels):
    model = made(dtype, k=2)
    outside = logits(model)
    before = base_weights(model)
    with held(model):
        assert changed(before, model)
        assert same_bits(logits(model), outside)
        with model.disable_adapter():
            base = logits(model)
    assert changed(before, model) == []
    kernels.undo()
    assert same_bits(logits(model), outside)
    with model.disable_adapter():
        assert same_bits(logits(model), base)


def test_a_model_is_held_refreshed_and_released_in_one_launch_each(kernels):
    model, launches = made(k=1), []
    right = triton_plan.launch
    kernels.setattr(triton_plan, "launch", lambda *a, **k: launches.append(k["task"]) or right(*a, **k))
    single = [kernels.setattr(triton_swap, name, None) for name in ("swap_in", "write", "restore")]
    assert len(single) == 3
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    ids = token_ids().to(DEVICE)
    with held(model):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    assert launches == ["read", "write", "write", "restore"]


@pytest.mark.parametrize("at", ["write", "restore"])
def test_an_interrupt_of_a_swap_leaves_the_base_exact(at, kernels):
    model = made(k=2)
    before, right, calls = base_weights(model), getattr(triton_swap, at), []

    def interrupted(*arguments):
        calls.append(at)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return right(*arguments)

    kernels.setattr(triton_swap, at, interrupted)
    with pytest.raises(KeyboardInterrupt):
        logits(model)
    assert changed(before, model) == []


@pytest.mark.parametrize("at", ["write", "refresh", "restore"])
def test_an_interrupt_while_held_leaves_the_base_exact(at, kernels):
    model = made(k=2)
    before, right, calls = base_weights(model), getattr(triton_plan.SwapPlan, at), []

    def interrupted(self):
        calls.append(at)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return right(self)

    right_logits = logits(model)
    kernels.setattr(triton_plan.SwapPlan, at, interrupted)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    with pytest.raises(KeyboardInterrupt), held(model):
        optimiser.step()
    assert changed(before, model) == []
    assert same_bits(logits(model), right_logits), "the optimiser had no gradients: nothing else may have changed"


@pytest.mark.parametrize("what", ["deltas", "indices"])
def test_deltas_or_indices_that_were_replaced_are_followed(what, kernels):
    model = made(k=2)
    before = base_weights(model)
    layers = [module for module in model.modules() if hasattr(module, "neuroada_deltas")]
    ids = token_ids().to(DEVICE)
    with held(model):
        for layer in layers:
            if what == "deltas":
                fresh = torch.nn.Parameter(layer.neuroada_deltas["default"].detach() + 0.1)
                layer.neuroada_deltas["default"] = fresh
            else:
                indices = layer.neuroada_indices["default"]
                indices.copy_((indices + 1) % layer.in_features)
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        inside = logits(model)
    assert changed(before, model) == []
    assert same_bits(logits(model), inside)
