"""Mixed models: ours saved by itself and loaded, what is refused beside it, and PEFT's own mixes as they were."""

import copy
import re

import peft
import pytest
import torch
from peft import (
    LoHaConfig,
    LoraConfig,
    PeftMixedModel,
    PeftModel,
    ShiraConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.mixed import model as mixed_tables
from safetensors.torch import save_file
from torch import Tensor

from neuroada import HybridModel, NeuroAdaConfig, NeuroAdaLinear
from neuroada.errors import ConfigError, MergeError, TargetError
from neuroada.tuners import register_mixed
from specimens import METHODS, every_method, logits, same_bits, tiny

from .mixing import TARGETS, both_orders, fill_lora, mixed, ours_alone


@every_method
@both_orders
def test_ours_can_be_saved_by_itself_and_loaded_with_and_without_lora(kind, order, tmp_path):
    base = tiny("llama")
    model = mixed(base, kind, order)
    with pytest.raises(NotImplementedError, match="Saving is not supported for PeftMixedModel"):
        model.save_pretrained(tmp_path)
    state = get_peft_model_state_dict(model, adapter_name="ours")
    assert state.keys() == get_peft_model_state_dict(ours_alone(base, kind), adapter_name="ours").keys()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "adapter_model.safetensors")
    model.peft_config["ours"].save_pretrained(tmp_path)
    model.set_adapter("ours")
    expected = logits(model)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert same_bits(logits(loaded), expected)
    around = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, target_modules=TARGETS), adapter_name="lora", mixed=True
    )
    around.load_adapter(tmp_path, "ours")
    fill_lora(around)
    around.set_adapter(["ours", "lora"])
    model.set_adapter(["ours", "lora"])
    assert same_bits(logits(around.eval()), logits(model))
    again = PeftMixedModel.from_pretrained(copy.deepcopy(base), tmp_path, "ours")
    assert same_bits(logits(again.eval()), expected)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LoraConfig(r=2, target_modules=TARGETS, use_dora=True), "LORA adapter with DoRA"),
        (LoHaConfig(r=2, target_modules=TARGETS), "LOHA adapter"),
        (ShiraConfig(r=1, target_modules=TARGETS), "SHIRA adapter"),
    ],
    ids=["dora", "loha", "shira"],
)
def test_what_reads_the_weight_past_ours_is_refused_in_either_order(config, named):
    message = rf"Adapting the module \S+q_proj: it would have an adapter of ours and, around it, another {named}.*"
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(target_modules=TARGETS), mixed=True)
    with pytest.raises(TargetError, match=message + "Around ours only plain LoRA is supported"):
        model.add_adapter("other", config)
    assert list(model.peft_config) == ["default"]
    assert same_bits(logits(model), logits(tiny("llama")))
    model = get_peft_model(tiny("llama"), copy.deepcopy(config), mixed=True)
    with pytest.raises(TargetError, match="Around ours only plain LoRA is supported"):
        model.add_adapter("ours", NeuroAdaConfig(target_modules=TARGETS))
    elsewhere = copy.deepcopy(config)
    elsewhere.target_modules = {"up_proj"}
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(target_modules=TARGETS), mixed=True)
    model.add_adapter("other", elsewhere)
    assert sum(isinstance(layer, NeuroAdaLinear) for layer in model.modules()) == 6


def test_both_of_ours_on_one_layer_merged_lora_and_bad_names_are_refused():
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(target_modules=TARGETS), mixed=True)
    with pytest.raises(TargetError, match="it already has an adapter of another kind"):
        model.add_adapter("neat", METHODS[1].config(target_modules=TARGETS))
    with pytest.raises(ConfigError, match=r"An adapter called 'a\.b'"):
        model.add_adapter("a.b", NeuroAdaConfig(target_modules=TARGETS))
    model = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=TARGETS), mixed=True)
    model.merge_adapter()
    with pytest.raises(MergeError, match=r"default, which is around it, is merged\. Call unmerge_adapter\(\) first"):
        model.add_adapter("ours", NeuroAdaConfig(target_modules=TARGETS))


@every_method
def test_nothing_is_saved_of_weights_with_lora_in_them(kind):
    model = mixed(tiny("llama"), kind)
    before = get_peft_model_state_dict(model, adapter_name="ours")
    model.set_adapter("lora")
    model.merge_adapter()
    with pytest.raises(MergeError, match=r"Saving adapter 'ours': lora, which is around .*_proj, is merged"):
        get_peft_model_state_dict(model, adapter_name="ours")
    model.unmerge_adapter()
    model.set_adapter(["ours", "lora"])
    model.merge_adapter(adapter_names=["ours"])
    after = get_peft_model_state_dict(model, adapter_name="ours")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before if not key.endswith(("fingerprints", "digest")))


def test_mixes_without_ours_are_peft_s_own(monkeypatch):
    def built() -> tuple[list[str], Tensor, Tensor]:
        torch.manual_seed(0)
        model = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=TARGETS), mixed=True)
        model.add_adapter("loha", LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False))
        model.set_adapter(["default", "loha"])
        names, adapted = list(model.state_dict()), logits(model.eval())
        return names, adapted, logits(model.merge_and_unload())

    found = built()
    monkeypatch.setattr(peft.mixed_model, "MixedModel", mixed_tables.MixedModel)
    expected = built()
    assert found[0] == expected[0]
    assert all(map(same_bits, found[1:], expected[1:]))


def test_registering_again_changes_nothing():
    before = [copy.copy(getattr(mixed_tables, name)) for name in ("COMPATIBLE_TUNER_TYPES", "PREFIXES", "Layers")]
    for kind in METHODS:
        register_mixed(kind.peft_type.lower(), kind.config_class, kind.model_class, HybridModel)
    assert before == [getattr(mixed_tables, name) for name in ("COMPATIBLE_TUNER_TYPES", "PREFIXES", "Layers")]
    assert re.match("peft", mixed_tables.MixedModel.__module__), "PEFT's own class is as it was"
