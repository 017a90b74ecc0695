"""TensorBoard, W&B and Trackio: what they log lands in the run folder, and nothing is sent."""

import importlib.machinery
import importlib.util
import os
import sqlite3
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

from neuroada.errors import ConfigError, MissingInputError
from neuroada.recipe.loading import check_recipe
from neuroada.recipe.schema import Recipe
from neuroada.run_folder.folder import RunFolder
from neuroada.training.trackers import check_trackers, tracker_text, trackers

VARIABLES = ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME", "TRACKIO_DIR")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run folder; the working directory is another one, empty."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return RunFolder(tmp_path / "run")


@pytest.fixture
def recipe() -> Recipe:
    training = {"max_steps": 2, "learning_rate": 0.1}
    return check_recipe({"model": {"name": "tiny"}, "method": "neuroada", "training": training}, "recipe")


def fit(model: LlamaForCausalLM, folder: RunFolder, callbacks: list) -> None:
    """Evaluate, train two steps and evaluate, as a run does."""
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 4, "labels": [[1, 2, 3, 4]] * 4})
    arguments = TrainingArguments(
        str(folder.checkpoints), max_steps=2, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, default_data_collator, train_dataset=rows, eval_dataset=rows, callbacks=callbacks
    )
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_logs_all_of_a_run_and_only_in_its_folder(
    folder: RunFolder, recipe: Recipe, tiny_llama: LlamaForCausalLM
):
    pytest.importorskip("tensorboard")
    with trackers(["tensorboard"], recipe.resolved(), folder) as callbacks:
        fit(tiny_llama, folder, callbacks)
    logged = scalars(folder.path / "tensorboard")
    assert [step for step, _ in logged["train/loss"]] == [1, 2]
    assert [step for step, _ in logged["eval/loss"]] == [0, 2]
    assert logged["eval/loss"][1][1] < logged["eval/loss"][0][1]
    assert not list(Path.cwd().iterdir())
    assert {path.parent.name for path in folder.path.rglob("*tfevents*")} == {"tensorboard"}


def test_trainers_own_callback_logs_elsewhere(folder: RunFolder, tiny_llama: LlamaForCausalLM):
    """Why there are `trackers`: if this fails, Trainer may do by itself."""
    pytest.importorskip("tensorboard")
    from transformers.integrations import TensorBoardCallback

    fit(tiny_llama, folder, [TensorBoardCallback()])
    assert list(Path.cwd().rglob("*tfevents*"))


def test_tensorboard_forgets_what_a_resumed_run_does_again(folder: RunFolder, recipe: Recipe):
    pytest.importorskip("tensorboard")
    for step, values in ((0, range(1, 6)), (3, range(14, 16))):
        with trackers(["tensorboard"], recipe.resolved(), folder, step) as (callback,):
            for value in values:
                callback.tb_writer.add_scalar("train/loss", value, value % 10)
    assert scalars(folder.path / "tensorboard")["train/loss"] == [(1, 1), (2, 2), (3, 3), (4, 14), (5, 15)]


def test_a_directory_of_the_users_own_is_kept(folder: RunFolder, recipe: Recipe, tmp_path: Path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    with trackers(["tensorboard"], recipe.resolved(), folder):
        pass
    assert list((tmp_path / "mine").glob("*tfevents*"))
    assert not folder.path.exists()


def test_only_the_first_process_reports(tmp_path: Path, recipe: Recipe):
    with trackers(["tensorboard"], recipe.resolved(), RunFolder(tmp_path / "run", writes=False)) as callbacks:
        assert callbacks == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_missing_package(name: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingInputError, match=rf"report_to {name}: package {name} is not installed. pip install {name}"
    ):
        check_trackers([name], folder)


class FakeRun:
    """What `trackers` and Trainer's callback need of a run of W&B."""

    def __init__(self, settings: dict[str, Any]):
        self.settings, self.exit_code = settings, None

    def finish(self, exit_code: int = 0):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for W&B that notes what it is asked for."""
    fake: Any = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.run, fake.begun, fake.Settings = None, [], dict

    def init(**settings: Any) -> FakeRun:
        fake.begun.append(FakeRun({**settings, "cache": os.environ.get("WANDB_CACHE_DIR")}))
        return fake.begun[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_is_kept_in_the_folder_and_sent_nowhere(folder: RunFolder, recipe: Recipe, wandb):
    with trackers(["wandb"], recipe.resolved(), folder) as callbacks:
        assert [type(each).__name__ for each in callbacks] == ["WandbCallback"]
    (run,) = wandb.begun
    assert {key: run.settings[key] for key in ("project", "name", "dir", "mode", "resume")} == {
        "project": "neuroada",
        "name": "run",
        "dir": str(folder.path),
        "mode": "offline",
        "resume": None,
    }
    assert run.settings["cache"] == str(folder.path / "wandb" / "cache")
    assert run.settings["config"] == {"recipe": recipe.resolved()}
    assert "WANDB_CACHE_DIR" not in os.environ
    assert run.exit_code == 0
    assert "not sent (wandb sync" in (tracker_text(["wandb"], folder) or "")


def test_wandbs_own_variables_are_kept(folder: RunFolder, recipe: Recipe, wandb, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("WANDB_MODE", "online"), ("WANDB_PROJECT", "mine"), ("WANDB_DIR", "/there")):
        monkeypatch.setenv(name, value)
    with trackers(["wandb"], recipe.resolved(), folder, step=4):
        pass
    with trackers(["wandb"], recipe.resolved(), folder):
        pass
    settings = wandb.begun[0].settings
    assert settings["id"] == wandb.begun[1].settings["id"]
    assert (settings["mode"], settings["project"], settings["dir"], settings["resume"]) == (
        None,
        "mine",
        "/there",
        "allow",
    )
    assert tracker_text(["wandb"], folder) == "W&B, online, as WANDB_MODE says"


def test_wandb_learns_of_a_failure(folder: RunFolder, recipe: Recipe, wandb):
    with pytest.raises(KeyboardInterrupt), trackers(["wandb"], recipe.resolved(), folder):
        raise KeyboardInterrupt
    assert wandb.begun[0].exit_code == 1


def test_a_run_of_wandb_that_the_caller_has_begun_goes_on(folder: RunFolder, recipe: Recipe, wandb):
    wandb.run = FakeRun({})
    with trackers(["wandb"], recipe.resolved(), folder):
        pass
    assert wandb.begun == []
    assert wandb.run.exit_code is None


def test_trackio_keeps_to_the_folder_and_to_one(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fake: Any = types.ModuleType("trackio")
    fake.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    utils: Any = types.ModuleType("trackio.utils")
    monkeypatch.setitem(sys.modules, "trackio.utils", utils)
    utils.TRACKIO_DIR = folder.path / "trackio"
    check_trackers(["trackio"], folder)
    with pytest.raises(ConfigError, match=r"begun to log into .*run/trackio, .* one folder a process. Train in a new"):
        check_trackers(["trackio"], RunFolder(tmp_path / "other"))
    monkeypatch.setenv("TRACKIO_DIR", str(folder.path / "trackio"))
    check_trackers(["trackio"], RunFolder(tmp_path / "other"))


REAL = """
import sys
from pathlib import Path
from conftest import build_tiny_llama
from neuroada.run_folder.folder import RunFolder
from neuroada.recipe.loading import check_recipe
from neuroada.training.trackers import trackers
from runs.test_trackers import fit
training = {"max_steps": 2, "learning_rate": 0.1}
recipe = check_recipe({"model": {"name": "tiny"}, "method": "neuroada", "training": training}, "recipe")
folder = RunFolder(Path(sys.argv[1]))
with trackers([sys.argv[2]], recipe.resolved(), folder) as callbacks:
    fit(build_tiny_llama(), folder, callbacks)
"""


@pytest.mark.parametrize(("name", "kept"), [("wandb", "wandb/offline-run-*/*.wandb"), ("trackio", "trackio/*.db")])
def test_the_real_ones_where_they_are_installed(name: str, kept: str, tmp_path: Path):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    home, work, run = (tmp_path / each for each in ("home", "work", "run"))
    home.mkdir()
    work.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO", "HF_H", "XDG"))}
    environment = {"HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", REAL, str(run), name]
    done = subprocess.run(command, cwd=work, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(run.glob(kept))) == 1
    if name == "trackio":
        database = sqlite3.connect(next(run.glob("trackio/neuroada.db")))
        rows = database.execute("select distinct run_name, run_id from metrics").fetchall()
        assert [name for name, _ in rows] == ["run"]
    outside = [path for folder in (home, work) for path in folder.rglob("*") if path.is_file()]
    assert outside == []
