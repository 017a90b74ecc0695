"""A recipe whose criterion needs data chooses by some of its training part."""

import io
from functools import partial

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback

from neuroada.training import calibration
from neuroada.training.calibration import choose_by_data
from neuroada.training.prepared import prepare
from neuroada.training.train import train

QUIET = Console(quiet=True)


@pytest.fixture
def recipe(make_recipe):
    return partial(make_recipe, **{"neuroada": {"k": 2, "selection": "gradient"}, "calibration_records": 10})


def choose(recipe, prepared) -> None:
    selection = recipe.settings.get("selection")
    choose_by_data(prepared.trainee, selection, recipe.calibration, recipe.seed, prepared.data, QUIET)


def chosen(recipe) -> dict[str, torch.Tensor]:
    prepared = prepare(recipe, QUIET)
    model = prepared.model
    choose(recipe, prepared)
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


def test_batches_are_as_large_as_asked(recipe, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        calibration, "reselect", lambda model, batches, *_, **__: sizes.append([len(b["labels"]) for b in batches])
    )
    for changes in {}, {"calibration_batch_size": 3}:
        prepared = prepare(recipe(**changes), QUIET)
        choose(recipe(**changes), prepared)
    assert sizes == [[4, 4, 2], [3, 3, 3, 1]]


def test_a_dry_run_chooses_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "reselect", None)
    assert train(recipe(), tmp_path / "run", QUIET, dry_run=True) is None


def deltas_of(folder) -> dict[str, torch.Tensor]:
    saved = load_file(folder / "adapter_model.safetensors")
    return {name: each for name, each in saved.items() if name.endswith("deltas")}


def test_a_budget_for_the_model_is_spread_by_the_data_before_anything_is_counted(recipe, tmp_path):
    wanted = recipe(neuroada={"budget": 0.05, "budget_scope": "model", "selection": "gradient"})
    dry, done = (Console(record=True, width=200, file=io.StringIO()) for _ in range(2))
    train(wanted, tmp_path / "run", dry, dry_run=True)
    summary = train(wanted, tmp_path / "run", done)
    deltas = deltas_of(tmp_path / "run" / "adapter")
    trained = sum(each.numel() for each in deltas.values())
    assert len({each.shape[1] for each in deltas.values()}) > 2
    assert all(each.any() for each in deltas.values())
    assert summary["trainable_parameters"] == trained
    assert f"{trained:,} (" in done.export_text()
    text = dry.export_text()
    assert "about, until data have spread the budget" in text
    assert f"{trained:,} (" not in text


def test_a_run_that_goes_on_takes_the_inputs_of_its_checkpoint(recipe, tmp_path, monkeypatch):
    wanted = recipe(
        neuroada={"budget": 0.05, "budget_scope": "model", "selection": "gradient"},
        training={"max_steps": 3, "learning_rate": 0.01, "per_device_train_batch_size": 4, "save_steps": 2},
    )

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2
            control.should_save = control.should_training_stop

    def killed(*arguments, **fields):
        raise KeyboardInterrupt

    whole = train(wanted, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patch:
        patch.setattr("neuroada.training.train.save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(wanted, tmp_path / "run", QUIET, callbacks=[Stop()])
    monkeypatch.setattr(calibration, "reselect", None)
    summary = train(wanted, tmp_path / "run", QUIET, resume=True)
    assert summary["trainable_parameters"] == whole["trainable_parameters"]
    expected = deltas_of(tmp_path / "whole" / "adapter")
    found = deltas_of(tmp_path / "run" / "adapter")
    assert all(torch.equal(found[name], each) for name, each in expected.items())
