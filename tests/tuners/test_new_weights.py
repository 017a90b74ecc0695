"""What no checkpoint brought is trained and saved whole: two loads of one adapter agree, whatever was drawn."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedModel

from neuroada import NeuroAdaConfig
from neuroada.tuners.new_weights import find_new
from specimens import every_method, logits, tiny
from tiny_heads import head_classes, tiny_config

BUILT = 340
"""Classes that a tiny configuration builds, at least, with the version that the constraints name."""


def body_checkpoint(name: str, folder: Path) -> type[PreTrainedModel] | None:
    """Save the body of a class's model alone, as a checkpoint of pretraining holds it."""
    config = tiny_config(name)
    if config is None:
        return None
    _, model_class = head_classes()[name]
    torch.manual_seed(0)
    model = model_class(config)
    prefix = f"{model.base_model_prefix}."
    state = {key: value.clone() for key, value in model.state_dict().items() if key.startswith(prefix)}
    model.save_pretrained(folder, state_dict=state)
    return model_class


def loaded(model_class: type[PreTrainedModel], folder: Path, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return model_class.from_pretrained(folder)


def test_most_classes_build():
    assert sum(tiny_config(name) is not None for name in head_classes()) >= BUILT


@pytest.mark.parametrize("name", head_classes())
def test_two_loads_of_an_adapter_agree(name: str, tmp_path: Path):
    model_class = body_checkpoint(name, tmp_path / "base")
    if model_class is None:
        pytest.skip("no tiny configuration builds it with a body that has linear layers")
    try:
        first = loaded(model_class, tmp_path / "base", seed=1)
    except RuntimeError as error:
        pytest.skip(f"Transformers does not load its own tiny checkpoint ({error})")
    found, body = find_new(first), f"{first.base_model_prefix}."
    linear = [name for name, module in first.named_modules() if type(module) is nn.Linear and name.startswith(body)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = get_peft_model(first, NeuroAdaConfig(k=1, target_modules=linear))
    text = " ".join(str(each.message) for each in told)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    merged = [
        PeftModel.from_pretrained(loaded(model_class, tmp_path / "base", seed), tmp_path / "adapter").merge_and_unload()
        for seed in (2, 3)
    ]
    states = [dict(each.named_parameters()) for each in (model.merge_and_unload(), *merged)]
    loose = set(found.loose)
    different = [
        key
        for key in states[0]
        if key not in loose and not all(torch.equal(states[0][key], s[key]) for s in states[1:])
    ]
    assert different == []
    assert all(key in text for key in found.loose[:5])


@every_method
@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
def test_a_new_pooler_is_no_target(kind, task_type, tmp_path: Path):
    base = tiny("bert")
    state = {key: value for key, value in base.bert.state_dict().items() if not key.startswith("pooler")}
    base.bert.save_pretrained(tmp_path, state_dict=state)
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    assert find_new(model).modules == ["bert.pooler", "classifier"]
    with pytest.warns(UserWarning, match="bert.pooler.* of BertForSequenceClassification is new, or the head"):
        adapted = get_peft_model(model, kind.config(target_modules=None, task_type=task_type))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert any("pooler.modules_to_save.default.dense.weight" in name for name in trained)
    assert not any("pooler" in name and kind.prefix in name for name in trained)


def test_a_checkpoint_that_has_it_all_has_nothing_new(tmp_path: Path):
    tiny("bert").save_pretrained(tmp_path)
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    assert find_new(model).modules == find_new(model).loose == []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted = get_peft_model(model, NeuroAdaConfig(target_modules=["query"]))
    assert adapted.peft_config["default"].modules_to_save is None


def test_copies_lose_the_mark_and_are_known_by_their_class(tmp_path: Path):
    tiny("bert").bert.save_pretrained(tmp_path)
    model = copy.deepcopy(BertForSequenceClassification.from_pretrained(tmp_path))
    assert find_new(model).modules == ["classifier"]


def test_a_language_model_from_a_configuration_has_no_new_head():
    assert find_new(tiny("llama")).modules == []


def test_a_larger_embedding_is_named_and_stays(tmp_path: Path):
    tiny("llama").save_pretrained(tmp_path)
    model = type(tiny("llama")).from_pretrained(tmp_path)
    model.resize_token_embeddings(model.config.vocab_size + 3)
    with pytest.warns(UserWarning, match=r"lm_head.weight of .* looks new or resized.*in modules_to_save"):
        adapted = get_peft_model(model, NeuroAdaConfig(target_modules=["q_proj"]))
    assert adapted.peft_config["default"].modules_to_save is None


def test_a_second_adapter_finds_the_same_head(tmp_path: Path):
    tiny("bert").bert.save_pretrained(tmp_path)
    base = BertForSequenceClassification.from_pretrained(tmp_path)
    model = get_peft_model(base, NeuroAdaConfig(target_modules=["query"]))
    model.add_adapter("second", NeuroAdaConfig(target_modules=["query"]))
    assert [model.peft_config[name].modules_to_save for name in ("default", "second")] == [["classifier"]] * 2


def test_layers_added_by_hand_are_trained_whole(tmp_path: Path):
    tiny("llama").save_pretrained(tmp_path)
    model = type(tiny("llama")).from_pretrained(tmp_path)
    model.value = nn.Linear(model.config.hidden_size, 1)
    adapted = get_peft_model(model, NeuroAdaConfig())
    assert adapted.peft_config["default"].modules_to_save == ["value"]
    adapted.save_pretrained(tmp_path / "adapter")
    again = type(tiny("llama")).from_pretrained(tmp_path)
    again.value = nn.Linear(model.config.hidden_size, 1)
    again = PeftModel.from_pretrained(again, tmp_path / "adapter")
    assert torch.equal(logits(again), logits(adapted))
    assert torch.equal(
        again.base_model.model.value.modules_to_save["default"].weight,
        adapted.base_model.model.value.modules_to_save["default"].weight,
    )
