"""The adapter file: what is in it, and that loading it gives equal bits, in this process and in a new one (I4)."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from neuroada import held
from neuroada.errors import AdapterFileError, TargetError
from specimens import (
    METHODS,
    NEAT_KINDS,
    adapted,
    base_weights,
    changed,
    every_method,
    fill,
    load_base,
    logits,
    same_bits,
    tiny,
    token_ids,
)

WEIGHTS = "adapter_model.safetensors"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CLASSIFIER = {"modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
NEUROADA, NEAT = METHODS
RECIPES = {
    "llama": ("llama", torch.bfloat16, NEUROADA, {"size": 1}),
    "llama-coverage": ("llama", torch.float32, NEUROADA, {"size": 3, "coverage": 0.3, "delta_dtype": "bfloat16"}),
    "gpt2": ("gpt2", torch.float16, NEUROADA, {"size": None, "budget": 0.1, "mode": "transient"}),
    "roberta": ("roberta", torch.float32, NEUROADA, {"selection": "random", **CLASSIFIER}),
    "neat": ("llama", torch.bfloat16, NEAT, {"dropout": 0.1}),
    "neat-deep": ("gpt2", torch.float16, NEAT_KINDS[1], {"size": 3, "depth": 5, "activation": "sine"}),
    "neat-nonlinear": ("roberta", torch.float32, NEAT, {"variant": "nonlinear_lora", "scaling": 0.5, **CLASSIFIER}),
}


def saved(model: nn.Module, folder) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / WEIGHTS)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_loading_gives_equal_bits(name, low_cpu_mem_usage, tmp_path):
    family, dtype, kind, config = RECIPES[name]
    base = tiny(family).to(dtype)
    model = kind.adapted(base, **config)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert same_bits(logits(loaded), logits(model))
    assert changed(base_weights(base), loaded) == []
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[key], theirs[key]) for key in ours)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert same_bits(logits(loaded.merge_and_unload()), logits(model.merge_and_unload()))


_NEW_PROCESS = """
import sys, torch
from peft import PeftModel
import neuroada
from specimens import load_base, logits
folder, *names = sys.argv[1:]
torch.set_num_threads(1)
outputs = {name: logits(PeftModel.from_pretrained(load_base(f"{folder}/{name}"), f"{folder}/{name}/adapter"))
           for name in names}
torch.save(outputs, f"{folder}/outputs.pt")
"""


def test_a_new_process_gives_equal_bits(tmp_path):
    want = {}
    for name, (family, dtype, kind, config) in RECIPES.items():
        tiny(family).to(dtype).save_pretrained(tmp_path / name)
        model = kind.adapted(load_base(tmp_path / name), **config)
        model.save_pretrained(tmp_path / name / "adapter")
        want[name] = logits(model)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", _NEW_PROCESS, str(tmp_path), *RECIPES]
    subprocess.run(command, check=True, timeout=120, env=environment)
    found = torch.load(tmp_path / "outputs.pt")
    assert [name for name in RECIPES if not same_bits(found[name], want[name])] == []


@every_method
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loading_beside_another_adapter_under_a_name_of_its_own(low_cpu_mem_usage, kind, tmp_path):
    base = tiny("llama")
    first, second = kind.adapted(base, size=1), kind.adapted(base, "other", size=3, target_modules=["down_proj"])
    second.save_pretrained(tmp_path)
    want_first, want_second = logits(first), logits(second)
    first.load_adapter(tmp_path / "other", "late", low_cpu_mem_usage=low_cpu_mem_usage)
    assert same_bits(logits(first), want_first)
    first.set_adapter("late")
    assert same_bits(logits(first), want_second)


@every_method
@pytest.mark.parametrize("state", ["merged", "held", "disabled", "in training", "base merged by another"])
def test_the_same_bytes_are_saved_in_every_state(state, kind, tmp_path):
    model = kind.adapted(tiny("gpt2"), size=3, **({"coverage": 0.5} if kind.exact else {"depth": 4}))
    model.save_pretrained(tmp_path / "before")
    if state == "base merged by another":
        model.add_adapter("other", kind.config(5))
        fill(model, "other")
        model.merge_adapter(["other"])
    elif state == "merged":
        model.merge_adapter()
    elif state == "in training":
        model.train()(token_ids(), labels=token_ids()).loss.backward()
    if state == "held":
        with held(model):
            model.save_pretrained(tmp_path / "after", selected_adapters=["default"])
    elif state == "disabled":
        with model.disable_adapter():
            model.save_pretrained(tmp_path / "after", selected_adapters=["default"])
    else:
        model.save_pretrained(tmp_path / "after", selected_adapters=["default"])
    before, after = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("before", "after"))
    assert after == before


@every_method
def test_only_safetensors_is_written(kind, tmp_path):
    kind.adapted(tiny("llama")).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "adapter_config.json", WEIGHTS}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == kind.peft_type


@pytest.mark.parametrize(
    ("inputs", "dtype"),
    [(255, torch.uint8), (256, torch.uint8), (257, torch.uint16), (65536, torch.uint16), (65537, torch.uint32)],
)
def test_indices_take_the_smallest_unsigned_type(inputs, dtype, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base = nn.Sequential(nn.Linear(inputs, 3, bias=False))
    base[0].weight.data[:, -1] = 9.0  # chosen: the last index is stored
    model = adapted(base, k=2, target_modules=["0"])
    entries = saved(model, tmp_path)
    assert entries["base_model.model.0.neuroada_indices"].dtype == dtype
    assert entries["base_model.model.0.neuroada_indices"].to(torch.int64).max() == inputs - 1
    loaded = PeftModel.from_pretrained(base, tmp_path).base_model.model[0]
    indices = model.base_model.model[0].neuroada_indices["default"]
    assert same_bits(loaded.neuroada_indices["default"], indices)
    assert loaded.neuroada_indices["default"].dtype == torch.int32


@pytest.mark.parametrize(("outputs", "dtype"), [(256, torch.uint8), (257, torch.uint16)])
def test_neurons_are_stored_where_not_all_are_covered(outputs, dtype, tmp_path):
    model = adapted(nn.Sequential(nn.Linear(3, outputs)), k=1, coverage=0.5, target_modules=["0"])
    assert saved(model, tmp_path)["base_model.model.0.neuroada_neurons"].dtype == dtype


def test_entries_per_neuron_and_coverage_may_differ_by_weight(tmp_path):
    base = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 30), nn.Linear(30, 5))
    config = {"budget": 0.1, "coverage": 0.5, "target_modules": ["0", "1", "2"]}
    entries = saved(adapted(base, **config), tmp_path)
    shapes = [tuple(entries[f"base_model.model.{layer}.neuroada_deltas"].shape) for layer in range(3)]
    assert shapes == [(4, 13), (15, 2), (2, 6)]
    x = torch.randn(2, 64)
    want = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)(x)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"budget": None, "k": 1, "coverage": 1.0}))
    assert same_bits(PeftModel.from_pretrained(base, tmp_path)(x), want)


@every_method
def test_resuming_into_an_adapter_keeps_its_parameters(kind, tmp_path):
    model = kind.adapted(tiny("llama"))
    model.save_pretrained(tmp_path)
    want, parameters = logits(model), dict(model.named_parameters())
    fill(model, scale=2.0)
    assert not torch.equal(logits(model), want)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert same_bits(logits(model), want)
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert any(parameter.requires_grad for parameter in model.parameters())


@every_method
@pytest.mark.parametrize("trained_in", DTYPES, ids=str)
@pytest.mark.parametrize("loaded_in", [*DTYPES, torch.float64], ids=str)
def test_the_same_checkpoint_in_another_dtype_is_accepted(trained_in, loaded_in, kind, tmp_path):
    kind.adapted(tiny("llama").to(trained_in)).save_pretrained(tmp_path)
    PeftModel.from_pretrained(tiny("llama").to(loaded_in), tmp_path)
    PeftModel.from_pretrained(tiny("llama").to(trained_in).to(loaded_in), tmp_path)


@every_method
@pytest.mark.parametrize("trained_in", DTYPES, ids=str)
@pytest.mark.parametrize("loaded_in", DTYPES, ids=str)
def test_another_base_is_refused_by_name_in_every_dtype(trained_in, loaded_in, kind, tmp_path):
    kind.adapted(tiny("llama").to(trained_in)).save_pretrained(tmp_path)
    other = tiny("llama", seed=1).to(loaded_in)
    with pytest.raises(AdapterFileError, match=r"model\.layers\.\d\..*_proj: the base weights .* are not those"):
        PeftModel.from_pretrained(other, tmp_path)
    assert changed(base_weights(tiny("llama", seed=1).to(loaded_in)), other) == []


@every_method
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("change", ["another sign", "one tenth more", "two swapped"])
def test_one_changed_original_is_enough(change, dtype, kind, tmp_path):
    base = tiny("llama").to(dtype)
    model = kind.adapted(base, size=1)
    model.save_pretrained(tmp_path)
    name = "model.layers.1.mlp.up_proj"
    layer = model.base_model.model.get_submodule(name)
    indices = layer.neuroada_indices["default"] if kind.exact else layer.sample().indices
    chosen = indices[:2, 0].tolist()
    weight = base.get_submodule(name).weight.data
    if change == "two swapped":
        weight[0, chosen[0]], weight[1, chosen[1]] = weight[1, chosen[1]].clone(), weight[0, chosen[0]].clone()
    else:
        weight[0, chosen[0]] *= {"another sign": -1, "one tenth more": 1.1}[change]
    with pytest.raises(AdapterFileError, match=f"{name}: the base weights .*pass verify_base=False"):
        PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    config = kind.config_class.from_pretrained(tmp_path)
    config.verify_base = False
    loaded = PeftModel.from_pretrained(base, tmp_path, config=config)
    trained = f"base_model.model.{name}.{layer.adapter_layer_names[0]}"
    assert same_bits(get_peft_model_state_dict(loaded)[trained], get_peft_model_state_dict(model)[trained])


@every_method
def test_verification_is_against_the_pretrained_weights_also_while_merged(kind, tmp_path):
    base = tiny("llama")
    kind.adapted(base, size=3).save_pretrained(tmp_path)
    model = kind.adapted(base, size=5)
    model.merge_adapter()
    model.load_adapter(tmp_path, "late")
    merged = model.merge_and_unload()
    with pytest.raises(AdapterFileError, match="without another adapter merged into it"):
        PeftModel.from_pretrained(merged, tmp_path)


@every_method
def test_no_pickle_is_written(kind, tmp_path):
    model = kind.adapted(tiny("llama"))
    with pytest.raises(AdapterFileError, match=r"safe_serialization=False: that would write a pickle.*Leave safe_ser"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.rglob("*.bin")) == list(tmp_path.rglob("*.safetensors")) == []
    model.save_pretrained(tmp_path, safe_serialization=True)
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["adapter_model.safetensors"]


@every_method
@pytest.mark.parametrize("whole_first", [True, False])
def test_an_adapter_inside_a_module_that_another_saves_whole_is_refused(kind, whole_first, tmp_path):
    whole = kind.config(target_modules=["q_proj"], modules_to_save=["mlp"])
    inside = kind.config(target_modules=["gate_proj"])
    first, second = (whole, inside) if whole_first else (inside, whole)
    model = get_peft_model(tiny("llama"), first)
    with pytest.raises(TargetError, match="another adapter"):
        model.add_adapter("second", second)
    assert list(model.peft_config) == ["default"]
    model.save_pretrained(tmp_path)


@every_method
def test_a_safe_merge_passes_over_layers_without_the_adapter(kind):
    model = get_peft_model(tiny("llama"), kind.config(target_modules=["q_proj", "v_proj"]))
    model.add_adapter("second", kind.config(target_modules=["q_proj"]))
    model.set_adapter("second")
    fill(model)
    before = logits(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert torch.allclose(logits(merged), before, atol=1e-5)
