"""PEFT knows the methods once this package is imported, and importing it does little else."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file

from neuroada.tuners.registration import add_peft_type, register
from specimens import every_method, logits, same_bits, tiny


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)


@every_method
def test_peft_finds_the_method_by_its_name(kind):
    member = PeftType(kind.peft_type)
    assert member is getattr(PeftType, kind.peft_type) is PeftType[kind.peft_type]
    assert isinstance(member, PeftType)
    assert member == kind.peft_type
    assert member in list(PeftType)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is kind.config_class
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is kind.model_class
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == kind.prefix


@every_method
def test_registering_again_changes_nothing(kind):
    members = list(PeftType)
    assert add_peft_type(kind.peft_type) is PeftType(kind.peft_type)
    register(kind.peft_type.lower(), kind.config_class, kind.model_class)
    assert list(PeftType) == members
    assert len(set(members)) == len(members)


@every_method
def test_the_member_survives_pickling_and_copying(kind):
    member = PeftType(kind.peft_type)
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member


@every_method
def test_a_saved_configuration_is_read_as_ours(kind, tmp_path):
    kind.config(3, target_modules=["q_proj"]).save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, kind.config_class)
    assert getattr(config, kind.size) == 3
    assert config.peft_type is PeftType(kind.peft_type)


@every_method
def test_without_the_import_peft_does_not_know_the_name(kind, tmp_path):
    """What README and docs tell a user who meets this error."""
    kind.config().save_pretrained(tmp_path)
    result = run(f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})")
    assert result.returncode != 0
    assert f"KeyError: '{kind.peft_type}'" in result.stderr


@every_method
def test_a_new_process_loads_the_adapter_after_the_import(kind, tmp_path):
    base = tiny("llama")
    base.save_pretrained(tmp_path / "base")
    model = kind.adapted(base)
    model.save_pretrained(tmp_path / "adapter")
    result = run(
        f"""
import sys, torch, neuroada
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from peft import PeftModel
from transformers import AutoModelForCausalLM
from safetensors.torch import load_file
from specimens import logits
base = AutoModelForCausalLM.from_pretrained({str(tmp_path / "base")!r})
model = PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r})
from safetensors.torch import save_file
save_file({{"logits": logits(model).contiguous()}}, {str(tmp_path / "logits.safetensors")!r})
"""
    )
    assert result.returncode == 0, result.stderr
    assert same_bits(load_file(tmp_path / "logits.safetensors")["logits"], logits(model))


def test_importing_brings_neither_triton_nor_cuda_beyond_what_peft_brings():
    result = run(
        """
import sys, peft, torch
before = set(sys.modules)
import neuroada
new = set(sys.modules) - before
heavy = sorted(name for name in new if name.split(".")[0] in {"triton", "numba", "trl", "datasets", "bitsandbytes"})
print(heavy, torch.cuda.is_initialized())
"""
    )
    assert result.stdout.strip() == "[] False", result.stderr


@every_method
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_get_peft_model_makes_our_tuner(task_type, kind):
    model = get_peft_model(tiny("llama"), kind.config(task_type=task_type))
    assert isinstance(model.base_model, kind.model_class)
