"""A run folder that another process trains in, and a disk that is full: a sentence each, and the run goes on later."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from neuroada.errors import RunFolderError
from neuroada.run_folder.folder import LOCK
from neuroada.training.train import train
from specimens import same_bits

QUIET = Console(quiet=True)
TRAINING = {"max_steps": 4, "learning_rate": 0.01, "save_steps": 1}
FULL = {
    "checkpoint": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "optimiser": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
}


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


def weights(folder: Path) -> dict:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("fault", FULL)
def test_a_full_disk_is_a_sentence_and_the_run_resumes(fault: str, make_recipe, tmp_path: Path, monkeypatch):
    recipe = make_recipe(training=TRAINING)
    train(recipe, tmp_path / "whole", QUIET)
    save, saved = Trainer._save_checkpoint, []

    def fails(self: Trainer, *given: Any, **fields: Any) -> None:
        saved.append(self.state.global_step)
        if len(saved) == 3:
            raise FULL[fault]
        save(self, *given, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", fails)
        with pytest.raises(RunFolderError, match=r"no space left to write to\. Make room, and go on with neuroada"):
            train(recipe, tmp_path / "run", QUIET)
    train(recipe, tmp_path / "run", QUIET, resume=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(same_bits(whole[name], resumed[name]) for name in whole)


def test_other_errors_stay_what_they_are(make_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Trainer, "_save_checkpoint", fails)
    with pytest.raises(OSError, match="Input/output error") as told:
        train(make_recipe(training=TRAINING), tmp_path / "run", QUIET)
    assert not isinstance(told.value, RunFolderError)


HOLDER = """
import sys, time
from pathlib import Path
from neuroada.run_folder.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_resume_is_refused_while_the_first_one_trains(make_recipe, tmp_path: Path):
    recipe = make_recipe(training=TRAINING)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", QUIET, callbacks=[Stop()])
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
        with pytest.raises(RunFolderError, match=r"another process is training in it\. Wait for it"):
            train(recipe, tmp_path / "run", QUIET, resume=True)
        assert {path: path.stat().st_mtime_ns for path in before} == before
    finally:
        other.kill()
        other.wait()
    train(recipe, tmp_path / "run", QUIET, resume=True)
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_lock_that_a_killed_process_left_behind_is_none(make_recipe, tmp_path: Path):
    recipe = make_recipe(training=TRAINING)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", QUIET, callbacks=[Stop()])
    (tmp_path / "run" / LOCK).touch()
    train(recipe, tmp_path / "run", QUIET, resume=True)
