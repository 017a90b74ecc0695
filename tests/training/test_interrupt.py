"""Ctrl-C once saves and stops; the resumed training ends as one that was never stopped; twice stops at once."""

import io
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback

from neuroada.run_folder.folder import RunFolder
from neuroada.training.train import train
from specimens import same_bits

QUIET = Console(quiet=True)
TRAINING = {"max_steps": 6, "learning_rate": 0.01, "save_steps": 100}


class Press(TrainerCallback):
    """Ctrl-C, so many times, in a step."""

    def __init__(self, step: int, times: int):
        self.step, self.times = step, times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def weights(folder: Path) -> dict:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("step", [1, 3, 6])
def test_once_saves_a_checkpoint_and_resumes_to_the_same_end(step: int, make_recipe, tmp_path: Path):
    recipe = make_recipe(training=TRAINING)
    console = Console(file=io.StringIO(), width=200)
    train(recipe, tmp_path / "whole", QUIET)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", console, callbacks=[Press(step, 1)])
    assert signal.getsignal(signal.SIGINT) is before
    checkpoint = RunFolder(tmp_path / "run").last_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{step}"
    assert "a checkpoint is saved after this step" in console.file.getvalue()  # type: ignore[attr-defined]
    train(recipe, tmp_path / "run", QUIET, resume=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(same_bits(whole[name], resumed[name]) for name in whole)


def test_twice_stops_at_once(make_recipe, tmp_path: Path):
    recipe = make_recipe(training=TRAINING)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", QUIET, callbacks=[Press(3, 2)])
    assert RunFolder(tmp_path / "run").last_checkpoint() is None
