"""What training left, loaded and merged: which head and which dtype it has, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from neuroada import NeuroAdaConfig
from neuroada.errors import ConfigError
from neuroada.evaluation.loading import load_trained, recipe_of
from neuroada.evaluation.merged import merge
from neuroada.recipe.loading import check_recipe
from neuroada.training.train import train

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tiny_bert_dir, data_dir) -> Path:
    """Run folder of a model with a head, whose adapter would fit into a language model too."""
    content = {
        "model": {"name": str(tiny_bert_dir), "dtype": "float32"},
        "data": {"task": "glue", "name": "mrpc", "data_dir": str(data_dir), "max_length": 32},
        "evaluation": {"records": 3},
        "method": "neuroada",
        "neuroada": {"k": 2, "target_modules": ["query", "value"]},
        "training": {"max_steps": 2, "learning_rate": 0.01, "per_device_train_batch_size": 4},
    }
    folder = tmp_path_factory.mktemp("runs") / "mrpc"
    train(check_recipe(content, "recipe"), folder, QUIET)
    return folder


def test_an_adapter_in_its_run_folder_is_the_run(classifier, tmp_path, monkeypatch):
    assert recipe_of(str(classifier / "adapter")) == recipe_of(str(classifier))
    assert recipe_of(str(classifier / "checkpoints")) is None
    for name in ("", "adapter"):
        merge(str(classifier / name), tmp_path / f"merged{name}", QUIET)
    whole, of_adapter = (load_file(tmp_path / f"merged{name}" / "model.safetensors") for name in ("", "adapter"))
    trained = load_file(classifier / "adapter" / "adapter_model.safetensors")
    assert torch.equal(of_adapter["classifier.weight"], trained["base_model.model.classifier.weight"])
    assert whole.keys() == of_adapter.keys()
    assert all(torch.equal(whole[key], of_adapter[key]) for key in whole)
    monkeypatch.chdir(classifier / "adapter")
    assert load_trained(".").recipe is not None


@pytest.mark.parametrize(
    ("task_type", "message"),
    [
        ('"SEQ_CLS"', r"it is of task type SEQ_CLS, not of a language model. Name its run folder instead"),
        ("null", r"it has trained classifier, score too, which no language model has. Name its run folder"),
    ],
)
def test_an_adapter_with_a_head_is_no_language_model(task_type, message, classifier, tmp_path):
    shutil.copytree(classifier / "adapter", tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"task_type": "SEQ_CLS"', f'"task_type": {task_type}'))
    with pytest.raises(ConfigError, match=message):
        merge(str(tmp_path / "adapter"), tmp_path / "merged", QUIET)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_merged_in_the_dtype_of_its_base(dtype, tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)
    get_peft_model(base, NeuroAdaConfig(k=1, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    assert merge(str(tmp_path / "adapter"), tmp_path / "merged", QUIET) == str(dtype).removeprefix("torch.")
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {dtype}


def test_the_current_folder_is_not_replaced(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--output .: it is the folder that you are in. Name a folder in it"):
        merge(str(classifier), Path(), QUIET)
