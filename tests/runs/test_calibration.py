"""A recipe whose criterion needs data chooses by some of its training part."""

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from neuroada.runs import calibration
from neuroada.runs.calibration import choose_by_data
from neuroada.runs.recipe import load_recipe
from neuroada.runs.train import prepare, train

QUIET = Console(quiet=True)


@pytest.fixture
def recipe(tiny_model_dir, tmp_path):
    def make(**changes):
        text = tmp_path / "text.txt"
        text.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
        content = {
            "model": {"name": str(tiny_model_dir), "dtype": "float32"},
            "data": {"text": str(text), "block_length": 16, "held_out_blocks": 2},
            "method": "neuroada",
            "neuroada": {"k": 2, "selection": "gradient"},
            "training": {"max_steps": 2, "learning_rate": 0.01, "per_device_train_batch_size": 4},
            "calibration_records": 10,
        }
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content | changes))
        return load_recipe(tmp_path / "mine.yaml")

    return make


def chosen(recipe) -> dict[str, torch.Tensor]:
    prepared = prepare(recipe, QUIET)
    model = prepared.model
    choose_by_data(recipe, prepared.trainee, prepared.data, QUIET)
    return {name: buffer for name, buffer in model.named_buffers() if "neuroada_indices" in name}


def test_the_saved_adapter_has_the_inputs_that_the_data_chose(recipe, tmp_path):
    wanted = chosen(recipe())
    largest = chosen(recipe(neuroada={"k": 2}))
    assert any(not torch.equal(wanted[name], largest[name]) for name in wanted)
    train(recipe(), tmp_path / "run", QUIET)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    found = {name: tensor for name, tensor in saved.items() if name.endswith("neuroada_indices")}
    assert len(found) == len(wanted)
    for name, tensor in found.items():
        (expected,) = (each for key, each in wanted.items() if name.removesuffix(".neuroada_indices") in key)
        assert torch.equal(tensor.int(), expected)


def test_seed_and_count_decide_by_which_records(recipe):
    first = chosen(recipe())
    assert all(torch.equal(each, first[name]) for name, each in chosen(recipe()).items())
    assert any(not torch.equal(each, first[name]) for name, each in chosen(recipe(seed=1)).items())
    assert any(not torch.equal(each, first[name]) for name, each in chosen(recipe(calibration_records=2)).items())


def test_a_dry_run_chooses_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "reselect", None)
    assert train(recipe(), tmp_path / "run", QUIET, dry_run=True) is None
