"""What each method trains, which settings it takes, and what a run says about the deltas of a model."""

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from neuroada import NeuroAdaConfig
from neuroada.errors import ConfigError
from neuroada.layers import NeuroAdaLinear
from neuroada.recipe.methods import ADAPTERS, METHODS, build_config, check_settings
from neuroada.training.wrapping import apply_method
from neuroada.tuners.inspection import delta_count, surviving_deltas

IDS = torch.arange(24).view(2, 12)


def tiny_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=257, **sizes))


def tiny_vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(image_size=16, patch_size=4, hidden_dropout_prob=0.0, num_labels=3, **sizes)
    return ViTForImageClassification(config)


def changed_by_a_step(model: nn.Module, output) -> dict[str, int]:
    """How many entries of each parameter one plain gradient step changes."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.AdamW(trained, lr=0.1, weight_decay=0)
    for _ in range(2):  # what multiplies a zero gets its gradient in the second step
        optimiser.zero_grad()
        output().backward()
        optimiser.step()
    return {
        name: int((parameter != before[name]).sum())
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }


SETTINGS = {
    "ia3": {},
    "prefix": {"num_virtual_tokens": 3},
    "shira": {"r": 2},
    "peanut": {"r": 2},
    "lora": {"r": 2},
    "neat": {"r": 2},
}


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("bitfit", "probe")])
def test_every_method_trains_as_many_values_as_it_says(name, make_tiny_llama):
    trainee = apply_method(name, SETTINGS.get(name, {}), make_tiny_llama(), TaskType.CAUSAL_LM)
    assert isinstance(trainee.model, PeftModel) == (name in ADAPTERS)
    changed = changed_by_a_step(trainee.model, lambda: trainee.model(input_ids=IDS, labels=IDS).loss)
    assert 0 < sum(changed.values()) <= trainee.trained
    if name in ("neuroada", "mask"):
        assert trainee.trained == 2 * (64 + 32 + 32 + 64 + 176 + 176 + 64)


@pytest.mark.parametrize("name", ["neuroada", "neat", "lora", "bitfit", "probe", "mask", "full"])
def test_a_classifier_gets_its_head_trained_too(name):
    trainee = apply_method(name, {}, tiny_bert(), TaskType.SEQ_CLS)
    changed = changed_by_a_step(trainee.model, lambda: trainee.model(input_ids=IDS, labels=torch.tensor([0, 1])).loss)
    assert any("classifier" in part for part in changed)
    assert all("classifier" in part for part in changed) == (name == "probe")
    if name == "bitfit":
        assert all(part.endswith("bias") or "classifier" in part for part in changed)
    (weight,) = [count for part, count in changed.items() if "classifier" in part and part.endswith("weight")]
    assert weight == 2 * 32, "all of it, whatever the method lets through elsewhere"


IMAGES = [name for name, method in METHODS.items() if not method.virtual_tokens]
OF_IMAGES = SETTINGS | {"ia3": {"target_modules": ["q_proj", "fc1"], "feedforward_modules": ["fc1"]}}


@pytest.mark.parametrize("name", IMAGES)
def test_of_an_image_model_the_head_is_trained_and_never_adapted(name):
    model = tiny_vit()
    trainee = apply_method(name, OF_IMAGES.get(name, {}), model, None)
    pixels, labels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    changed = changed_by_a_step(trainee.model, lambda: trainee.model(pixel_values=pixels, labels=labels).loss)
    assert {part.partition("classifier")[2].rpartition(".")[2] for part in changed if "classifier" in part} == {
        "weight",
        "bias",
    }
    assert sum(count for part, count in changed.items() if "classifier" in part) == 3 * 32 + 3
    assert (sum(changed.values()) == 3 * 32 + 3) == (name == "probe")
    assert sum(changed.values()) <= trainee.trained
    if name in ("neuroada", "mask"):
        assert trainee.trained == 2 * (4 * 32 + 64 + 32) + 3 * 32 + 3


def test_modules_to_save_of_a_recipe_are_kept_beside_the_head():
    trainee = apply_method("lora", {"r": 2, "modules_to_save": ["layernorm"]}, tiny_vit(), None)
    assert trainee.model.peft_config["default"].modules_to_save == ["layernorm", "classifier"]


def test_methods_that_cannot_train_an_image_model_say_so():
    with pytest.raises(
        ConfigError, match=r"method 'prefix': prefix tuning is for text, and the task is images. Choose"
    ):
        apply_method("prefix", {}, tiny_vit(), None)
    message = r"method 'ia3': PEFT cannot apply it to ViTForImageClassification: .*Set ia3.target_modules, or choose an"
    with pytest.raises(ConfigError, match=message):
        apply_method("ia3", {}, tiny_vit(), None)


def test_the_mask_lets_through_what_neuroada_would_choose(make_tiny_llama):
    settings = {"k": 3, "coverage": 0.5, "target_modules": ["q_proj", "down_proj"]}
    base = make_tiny_llama()
    chosen = get_peft_model(make_tiny_llama(), NeuroAdaConfig(**settings))
    trainee = apply_method("mask", settings, base, TaskType.CAUSAL_LM)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    changed_by_a_step(trainee.model, lambda: trainee.model(input_ids=IDS, labels=IDS).loss)
    for name, layer in chosen.named_modules():
        if isinstance(layer, NeuroAdaLinear):
            key = name.removeprefix("base_model.model.") + ".weight"
            support = layer.support(["default"])
            allowed = torch.zeros(layer.stored_weight.shape, dtype=torch.bool)
            rows = torch.arange(len(allowed)) if support.neurons is None else support.neurons.long()
            allowed[rows[:, None], support.indices.long()] = True
            moved = trainee.model.state_dict()[key] != before[key]
            assert moved.any()
            assert not (moved & ~allowed).any()
    assert trainee.trained == sum(
        layer.support(["default"]).indices.numel() for layer in chosen.modules() if isinstance(layer, NeuroAdaLinear)
    )


def test_bitfit_needs_biases(tiny_llama):
    with pytest.raises(ConfigError, match=r"method 'bitfit': LlamaForCausalLM has no biases"):
        apply_method("bitfit", {}, tiny_llama, TaskType.CAUSAL_LM)


def test_a_probe_needs_a_head(tiny_llama):
    with pytest.raises(ConfigError, match=r"method 'probe': LlamaForCausalLM has no classification head in this task"):
        apply_method("probe", {}, tiny_llama, TaskType.CAUSAL_LM)


def test_dora_is_lora_with_one_setting_fixed():
    config = build_config("dora", {"r": 4}, TaskType.CAUSAL_LM)
    assert isinstance(config, LoraConfig)
    assert (config.use_dora, config.r, config.target_modules) == (True, 4, "all-linear")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dora", {"use_dora": False}, r"dora\.use_dora: dora has no setting 'use_dora'"),
        ("full", {"k": 1}, r"full\.k: full has no settings"),
        ("mask", {"kk": 1}, r"mask\.kk: mask has no setting 'kk'. Did you mean 'k'"),
        ("mask", {"k": 0}, r"k=0"),
    ],
)
def test_settings_that_a_method_does_not_have(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(name, settings)


def test_a_method_that_this_peft_lacks(monkeypatch):
    monkeypatch.delattr("peft.PeanutConfig")
    with pytest.raises(ConfigError, match=r"method 'peanut': PEFT .* has no PeanutConfig. Install a newer PEFT"):
        build_config("peanut", {}, TaskType.CAUSAL_LM)


def test_deltas_below_half_the_spacing_do_not_survive(make_tiny_llama):
    config = NeuroAdaConfig(target_modules=["q_proj"])
    model = get_peft_model(make_tiny_llama().to(torch.bfloat16), config)
    assert surviving_deltas(model) == 0
    layer = next(module for module in model.modules() if isinstance(module, NeuroAdaLinear))
    with torch.no_grad():
        layer.neuroada_deltas["default"][:3] = 1.0
        layer.neuroada_deltas["default"][3:9] = 1e-9
    assert surviving_deltas(model) == 3
    assert delta_count(model) == 2 * 64


def test_layers_of_other_adapters_are_not_counted(make_tiny_llama):
    model = get_peft_model(make_tiny_llama(), NeuroAdaConfig(target_modules=["q_proj"]))
    model.add_adapter("other", NeuroAdaConfig(target_modules=["k_proj"]))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NeuroAdaLinear):
                for deltas in module.neuroada_deltas.values():
                    deltas.fill_(1.0)
    assert surviving_deltas(model) == delta_count(model) == 2 * 64


def test_without_its_layers_nothing_is_known(tiny_llama):
    assert surviving_deltas(tiny_llama) is None
