"""A training that is interrupted goes on as if it had not been: the same samples, the same dropout, the same result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState

from neuroada.errors import ConfigError
from neuroada.recipe.loading import Recipe, check_recipe
from neuroada.run_folder.folder import RunFolder
from neuroada.training.train import train

QUIET = Console(quiet=True)
GROUPED = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 3}
DROPOUT = {"method": "lora", "lora": {"r": 2, "lora_dropout": 0.5, "init_lora_weights": False}}


class Interrupt(TrainerCallback):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class InterruptAtTheEnd(TrainerCallback):
    """Ctrl-C between the last checkpoint and the end."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            raise KeyboardInterrupt


class Spoil(TrainerCallback):
    """Makes the model worse after an epoch, so that the last one is not the best."""

    def on_epoch_begin(self, args, state, control, model, **kwargs):
        if (state.epoch or 0) >= 1:
            for parameter in model.parameters():
                parameter.data.mul_(10)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number} says {number * number}\n" for number in range(60)))
    return path


def make_recipe(model: Path, text: Path, training: dict[str, Any], **changes: Any) -> Recipe:
    content = {
        "model": {"name": str(model), "dtype": "float32"},
        "data": {"text": str(text), "block_length": 32, "held_out_blocks": 4},
        "method": "neuroada",
        "neuroada": {"k": 2},
        "training": {"learning_rate": 0.02, "logging_steps": 1, "lr_scheduler_type": "constant", **training},
    }
    return check_recipe(content | changes, "recipe")


def weights(output: Path) -> dict[str, torch.Tensor]:
    (file,) = [*output.glob("adapter/*.safetensors"), *output.glob("model/*.safetensors")]
    return load_file(file)


def interrupted(recipe: Recipe, output: Path, *callbacks: TrainerCallback) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe, output, QUIET, callbacks=callbacks)


CASES = {
    "grouped, looked at before": ({**GROUPED, "max_steps": 12, "save_steps": 4}, {}, 6),
    "grouped, in the second epoch": (
        {**GROUPED, "max_steps": 20, "save_steps": 4},
        {"evaluation": {"before": False}},
        18,
    ),
    "dropout, before a checkpoint": ({"max_steps": 6, "save_steps": 4}, DROPOUT, 2),
    "dropout, after one": ({"max_steps": 6, "save_steps": 2}, DROPOUT, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_as_if_it_had_not_been_interrupted(case, tiny_model_dir: Path, text: Path, tmp_path: Path):
    training, changes, step = CASES[case]
    recipe = make_recipe(tiny_model_dir, text, training, **changes)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(recipe, whole, QUIET)
    interrupted(recipe, resumed, Interrupt(step))
    train(recipe, resumed, QUIET, resume=True)
    losses = [[record["loss"] for record in RunFolder(each).records("train")] for each in (whole, resumed)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == training["max_steps"]
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    if case == "grouped, in the second epoch":
        epochs = [record["epoch"] for record in RunFolder(whole).records("train")]
        assert 1 < epochs[training["save_steps"] * (step // training["save_steps"]) - 1] < 2


def test_epochs_have_different_orders_and_other_seeds_too(tiny_model_dir: Path, text: Path, tmp_path: Path):
    training = {**GROUPED, "num_train_epochs": 2, "learning_rate": 1e-30}
    losses = []
    for seed in (0, 1):
        recipe = make_recipe(tiny_model_dir, text, training, seed=seed)
        train(recipe, tmp_path / str(seed), QUIET)
        found = [record["loss"] for record in RunFolder(tmp_path / str(seed)).records("train")]
        losses += [found[: len(found) // 2], found[len(found) // 2 :]]
    assert all(len(each) > 5 for each in losses)
    assert len({tuple(each) for each in losses}) == 4


def test_the_best_evaluation_is_kept_where_the_end_was_not_reached(tiny_model_dir: Path, text: Path, tmp_path: Path):
    training = {"num_train_epochs": 2, "learning_rate": 0.001, "load_best_model_at_end": True, **GROUPED}
    recipe = make_recipe(tiny_model_dir, text, training, method="full")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    expected = train(recipe, whole, QUIET, callbacks=[Spoil()])
    interrupted(recipe, resumed, Spoil(), InterruptAtTheEnd())
    newest = RunFolder(resumed).last_checkpoint()
    assert newest is not None
    state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
    assert state.best_global_step < state.global_step, "the last epoch must not be the best, or nothing is shown"
    summary = train(recipe, resumed, QUIET, resume=True)
    assert expected is not None
    assert summary is not None
    assert summary["held_out_loss_after"] == expected["held_out_loss_after"]
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


@pytest.mark.parametrize("change", ["samples", "processes", "data"])
def test_another_course_is_not_gone_on_with(change, tiny_model_dir: Path, text: Path, tmp_path: Path, monkeypatch):
    recipe = make_recipe(tiny_model_dir, text, {"max_steps": 6, "save_steps": 2})
    interrupted(recipe, tmp_path / "run", Interrupt(3))
    if change == "samples":
        text.write_text(text.read_text() * 2)
    elif change == "data":
        text.write_text(text.read_text().swapcase())
    else:
        monkeypatch.setattr("transformers.TrainingArguments.world_size", 2)
    with pytest.raises(ConfigError, match=rf"--resume in .*: .*begun with {change} = \w+, now \w+.*\. Use"):
        train(recipe, tmp_path / "run", QUIET, resume=True)


def test_entries_that_data_chose_otherwise_are_noticed(tiny_model_dir: Path, text: Path, tmp_path: Path, monkeypatch):
    changes = {"method": "mask", "mask": {"selection": "gradient"}, "calibration_records": 4}
    recipe = make_recipe(tiny_model_dir, text, {"max_steps": 6, "save_steps": 2}, **changes)
    interrupted(recipe, tmp_path / "run", Interrupt(3))
    other = recipe.model_copy(update={"calibration_records": 2})
    monkeypatch.setattr(RunFolder, "check_resumable", lambda *_: None)
    with pytest.raises(ConfigError, match=r"begun with chosen = [0-9a-f]{64}, now [0-9a-f]{64}"):
        train(other, tmp_path / "run", QUIET, resume=True)
    assert train(recipe, tmp_path / "run", QUIET, resume=True) is not None


def test_a_torn_record_is_cut_before_anything_is_written(tiny_model_dir: Path, text: Path, tmp_path: Path):
    recipe = make_recipe(tiny_model_dir, text, {"max_steps": 4, "save_steps": 2})
    interrupted(recipe, tmp_path / "run", Interrupt(1))
    metrics = RunFolder(tmp_path / "run").metrics
    metrics.write_text('{"event": "evaluate", "when": "bef')
    assert train(recipe, tmp_path / "run", QUIET, resume=True) is not None
    assert [record["when"] for record in RunFolder(tmp_path / "run").records("evaluate")] == ["before", "after"]


def test_several_gpus_in_one_process_are_refused(tiny_model_dir: Path, text: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", 2)
    with pytest.raises(ConfigError, match=r"one process sees 2 GPUs.*accelerate launch --num_processes 2"):
        train(make_recipe(tiny_model_dir, text, {"max_steps": 2}), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()
