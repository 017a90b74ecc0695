"""Whole models: equal to the base at birth, merged equal to unmerged, unloaded equal to before (I1 to I3)."""

import pytest
import torch
from peft import get_peft_model

from neuroada import NeuroAdaConfig
from neuroada.errors import MergeError
from specimens import (
    CAUSAL,
    CLASSIFIERS,
    DTYPES,
    adapted_layers,
    base_weights,
    changed,
    every_kind,
    every_method,
    fill,
    logits,
    same_bits,
    tiny,
    token_ids,
    trained_parameters,
)


@pytest.fixture
def trained(family, dtype, kind):
    """A model of the family after two optimiser steps, its base weights before adaptation, and its first outputs."""
    base = tiny(family).to(dtype)
    before, want = base_weights(base), logits(base)
    head = {"modules_to_save": ["classifier"], "task_type": "SEQ_CLS"} if family in CLASSIFIERS else {}
    model = get_peft_model(base, kind.config(**head))
    first = logits(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=0.05, eps=1e-4)  # a smaller one is zero in float16
    labels = token_ids() if family in CAUSAL else torch.tensor([0, 1])
    for _ in range(2):
        model(token_ids(), labels=labels).loss.float().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert same_bits(first, want)
    return model, before, want


@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", CAUSAL + CLASSIFIERS)
def test_trained_models_ship_what_was_trained_and_give_the_base_back(trained, family, kind):
    model, before, want = trained
    rows = 2 if family in CAUSAL else 40  # enough values to measure a floor with
    after = logits(model, rows)
    assert not torch.equal(after[:2], want)
    assert changed(before, model) == []
    with model.disable_adapter():
        assert same_bits(logits(model), want)
    model.merge_adapter()
    merged = logits(model, rows)
    model.unmerge_adapter()
    assert kind.models_agree(after, merged, model)
    assert changed(before, model) == []
    assert same_bits(logits(model, rows), after)
    unloaded = model.merge_and_unload()
    assert adapted_layers(unloaded) == []
    assert same_bits(logits(unloaded, rows), merged)


@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", CAUSAL)
def test_unloaded_models_are_the_base(trained):
    model, before, want = trained
    base = model.unload()
    assert changed(before, base) == []
    assert same_bits(logits(base), want)


@every_kind
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_classification_heads_are_trained_whole_and_the_old_one_kept(family, kind):
    base = tiny(family)
    old = {name: tensor.clone() for name, tensor in base.classifier.state_dict().items()}
    model = kind.adapted(base, modules_to_save=["classifier"], task_type="SEQ_CLS")
    head = model.base_model.model.classifier
    assert all(parameter.requires_grad for parameter in head.modules_to_save["default"].parameters())
    assert all(same_bits(old[name], tensor) for name, tensor in head.original_module.state_dict().items())
    assert not any("classifier" in name for name in model.base_model.targeted_module_names)


@every_method
@pytest.mark.parametrize("family", CAUSAL)
def test_all_linear_is_every_linear_of_the_blocks_and_not_the_head(family, kind):
    model = kind.adapted(tiny(family))
    heads = [name for name, module in model.named_modules() if name.endswith("lm_head")]
    adapted_names = [name for name, module in model.named_modules() if isinstance(module, kind.layer_class)]
    assert heads
    assert not set(heads) & set(adapted_names)
    assert len(adapted_names) == {"llama": 2 * 7, "gpt2": 2 * 4}[family]


@every_method
@pytest.mark.parametrize(
    ("config", "names"),
    [
        (
            {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
            ["1.self_attn.q_proj", "1.self_attn.v_proj"],
        ),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}, ["0.self_attn.q_proj"]),
        ({"target_modules": r".*\.1\..*(up|down)_proj"}, ["1.mlp.down_proj", "1.mlp.up_proj"]),
        (
            {"exclude_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]},
            ["0.mlp.down_proj", "1.mlp.down_proj"],
        ),
        ({"exclude_modules": r".*\.0\..*|.*self_attn.*"}, ["1.mlp.down_proj", "1.mlp.gate_proj", "1.mlp.up_proj"]),
    ],
    ids=["layers", "one layer with pattern", "regex", "exclude names", "exclude regex"],
)
def test_which_modules_are_adapted(config, names, kind):
    model = kind.adapted(tiny("llama"), **config)
    found = [name for name, module in model.named_modules() if isinstance(module, kind.layer_class)]
    assert sorted(name.split("layers.")[1] for name in found) == names


def test_only_deltas_are_trainable_and_k_of_them_for_each_neuron():
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(k=3))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    neurons = sum(layer.out_features for layer in adapted_layers(model))
    assert all("neuroada_deltas.default" in name for name in trainable)
    assert sum(p.numel() for p in trainable.values()) == 3 * neurons
    assert model.get_nb_trainable_parameters()[0] == 3 * neurons


@every_method
def test_adapters_can_start_at_random(kind):
    model = get_peft_model(tiny("llama"), kind.config(init_weights=False))
    assert not torch.equal(logits(model), logits(tiny("llama")))
    assert changed(base_weights(tiny("llama")), model) == []


@every_kind
def test_safe_merge_that_fails_at_the_last_layer_changes_none(kind):
    model = kind.adapted(tiny("llama"))
    before, trained = base_weights(model), logits(model)
    last = adapted_layers(model)[-1]
    *_, parameter = trained_parameters(last).values()
    good = parameter.detach().clone()
    parameter.data[0, 0] = torch.nan
    with pytest.raises(MergeError, match="nothing was changed"):
        model.merge_adapter(safe_merge=True)
    with pytest.raises(MergeError, match="nothing was changed"):
        model.merge_and_unload(safe_merge=True)
    assert changed(before, model) == []
    parameter.data.copy_(good)
    assert same_bits(logits(model), trained)


@every_kind
def test_merging_two_adapters_of_a_model(kind):
    model = kind.adapted(tiny("gpt2"), "a")
    model.add_adapter("b", kind.config(3))
    fill(model, "b")
    before = base_weights(model)
    model.base_model.set_adapter(["a", "b"])
    together = logits(model)
    model.merge_adapter(["a"])
    model.merge_adapter(["b"])
    merged = logits(model)
    model.unmerge_adapter()
    assert changed(before, model) == []
    assert kind.models_agree(together, merged, model)
    assert same_bits(logits(model.merge_and_unload(adapter_names=["a", "b"])), merged)
