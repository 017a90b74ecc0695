"""SmolLM2-135M-Instruct in bfloat16, k=1: what is trained is what is shipped, bit for bit."""

import pydoc_data.topics

import pytest
import torch
from peft import get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuroada import NeuroAdaConfig, held
from neuroada.layers.saved_inputs import InputGroup
from specimens import base_weights, changed, same_bits

DELTAS = 155_520
"""One for each neuron of the seven projections in 30 layers."""


@pytest.fixture(scope="module")
def batch(smollm2) -> torch.Tensor:
    """int64 [1, 16]: the beginning of a page of Python's manual. Processors without bfloat16 are slow at more."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return tokenizer(pydoc_data.topics.topics["lambda"], return_tensors="pt").input_ids[:, :16]


@pytest.fixture(scope="module", params=["inplace", "transient"])
def trained(request, smollm2, batch):
    """(adapted model after three optimiser steps, base weights before)."""
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    before = base_weights(model)
    model = get_peft_model(model, NeuroAdaConfig(k=1, mode=request.param, task_type="CAUSAL_LM"))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=8e-3)
    for _ in range(3):
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval(), before


def test_every_neuron_has_one_delta_and_it_moved(trained):
    model, _ = trained
    deltas = [p for p in model.parameters() if p.requires_grad]
    assert sum(delta.numel() for delta in deltas) == DELTAS
    assert all(delta.abs().max() > 0 for delta in deltas)


def test_base_weights_are_untouched_by_training(trained):
    model, before = trained
    assert changed(before, model) == []


def test_the_adapter_file_is_under_a_megabyte(trained, tmp_path):
    model, _ = trained
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 1_000_000


@pytest.mark.parametrize("trained", ["inplace"], indirect=True)
@torch.no_grad()
def test_generation_with_supports_held_is_the_same(trained, batch):
    model, _ = trained
    outside = model.generate(batch, max_new_tokens=2, do_sample=False)
    with held(model):
        inside = model.generate(batch, max_new_tokens=2, do_sample=False)
    assert torch.equal(inside, outside)


@torch.no_grad()
def test_merging_changes_no_output_and_undoing_it_gives_the_base_back(trained, batch):
    model, before = trained
    adapted = model(batch).logits
    with model.disable_adapter():
        assert not torch.equal(model(batch).logits, adapted)
    model.merge_adapter()
    assert same_bits(model(batch).logits, adapted)
    model.unmerge_adapter()
    assert changed(before, model) == []
    merged = model.merge_and_unload()
    assert same_bits(merged(batch).logits, adapted)
    assert changed(before, merged) != []


@torch.no_grad()
def test_unloading_gives_every_base_weight_back(smollm2, batch):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    before, outputs = base_weights(model), model(batch).logits
    model = get_peft_model(model, NeuroAdaConfig(k=1, task_type="CAUSAL_LM"))
    assert same_bits(model(batch).logits, outputs)
    for delta in (p for p in model.parameters() if p.requires_grad):
        delta.uniform_(-0.1, 0.1)
    assert not same_bits(model(batch).logits, outputs)
    unloaded = model.unload()
    assert changed(before, unloaded) == []
    assert same_bits(unloaded(batch).logits, outputs)


def saved_storages(model, batch) -> dict[int, int]:
    """Bytes of each storage that a training pass saves, parameters left out."""
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    embeddings = model.get_input_embeddings()(batch).detach().requires_grad_()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(inputs_embeds=embeddings).logits.sum()
    assert loss.requires_grad
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return {key: size for key, size in saved.items() if key not in own}


def test_keeping_columns_saves_two_fifths_of_the_adapted_layers_activations(smollm2, batch, monkeypatch):
    kept: dict[str, dict[int, int]] = {}
    beyond: dict[str, int] = {}
    right = InputGroup.keep
    for policy in ("whole", "columns", "auto"):
        model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
        model = get_peft_model(model, NeuroAdaConfig(k=1, saved_input=policy)).train()
        own = kept.setdefault(policy, {})

        def keep(*arguments, own=own):
            rows, places = right(*arguments)
            own[rows.untyped_storage().data_ptr()] = rows.untyped_storage().nbytes()
            return rows, places

        monkeypatch.setattr(InputGroup, "keep", keep)
        saved = sum(saved_storages(model, batch).values())
        with model.disable_adapter():
            beyond[policy] = saved - sum(saved_storages(model, batch).values())
    sums = {policy: sum(sizes.values()) for policy, sizes in kept.items()}
    assert sums["whole"] == 30 * (3 * 576 + 1536) * batch.numel() * 4, "an input that layers share is kept once"
    assert sums["columns"] <= 0.6 * sums["whole"]
    assert beyond["auto"] <= 0.6 * beyond["whole"]
