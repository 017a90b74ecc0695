"""A training that is killed again and again ends as one that never was."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from neuroada.errors import RunFolderError
from neuroada.run_folder.folder import RunFolder

WORKER = Path(__file__).with_name("killing.py")
STEPS = 16
WEIGHTS = "adapter_model.safetensors"

RANDOM = random.Random(5)
MOMENTS: list[dict[str, Any]] = [
    {"at": "at_creation"},
    {"at": "at_beginning", "with": [RANDOM.uniform(0, 1)]},
    {"at": "at_step", "with": [1, RANDOM.uniform(0, 0.05)]},
    {"at": "at_step", "with": [2, RANDOM.uniform(0, 0.05)]},
    {"at": "at_step", "with": [3, RANDOM.uniform(0, 0.05)]},
    {"at": "at_adapter", "with": ["checkpoint-"]},
    {"at": "at_pickle", "with": ["optimizer.pt"]},
    {"at": "at_pickle", "with": ["rng_state.pth"]},
    {"at": "at_state"},
    {"at": "at_removal"},
    {"at": "at_adapter", "with": [".adapter"]},
    {"at": "at_summary"},
]
"""In this order each is reached: only the last two are after the last step."""


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number} of the text has {number * number} in it\n" for number in range(200)))
    content = {
        "model": {"name": str(tiny_model_dir), "dtype": "float32"},
        "data": {"task": "text", "text": str(text), "block_length": 32, "held_out_blocks": 2},
        "method": "neuroada",
        "neuroada": {"k": 2},
        "training": {"max_steps": STEPS, "learning_rate": 0.01, "save_steps": 1, "logging_steps": 1},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(recipe: Path, output: Path, moments: list[dict[str, Any]]) -> list[int]:
    """Exit codes of as many processes, each with the moment of its death; an empty one lives."""
    asked = output.with_suffix(".json")
    asked.write_text(json.dumps({"recipe": str(recipe), "output": str(output), "moments": moments}))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(asked)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def log(output: Path) -> str:
    return Path(f"{output}.log").read_text()[-10_000:]


def train_records(folder: Path) -> list[dict[str, Any]]:
    """Loss and gradient norm of each step."""
    fields = ("step", "loss", "grad_norm", "learning_rate")
    return [{name: record[name] for name in fields} for record in RunFolder(folder).records("train")]


def same_end(killed: Path, whole: Path) -> None:
    assert (killed / "adapter" / WEIGHTS).read_bytes() == (whole / "adapter" / WEIGHTS).read_bytes()
    assert train_records(killed) == train_records(whole)
    assert len(train_records(whole)) == STEPS
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (killed, whole)]
    assert summaries[0]["held_out_loss_after"] == summaries[1]["held_out_loss_after"]


def test_a_killed_training_regrows_the_same_inputs(recipe: Path, tmp_path: Path):
    """Killed after inputs were regrown and before the next checkpoint, so that it is done again."""
    content = yaml.safe_load(recipe.read_text())
    content["training"]["save_steps"] = 3
    content |= {"regrowth": {"every": 4, "drop_fraction": 0.5}, "calibration_records": 6}
    recipe.write_text(yaml.safe_dump(content))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(recipe, whole, [{}]) == [0], log(whole)
    assert run(recipe, killed, [{"at": "at_step", "with": [9, 0]}, {}]) == [-SIGKILL, 0], log(killed)
    same_end(killed, whole)
    records = [RunFolder(folder).records("regrow") for folder in (killed, whole)]
    assert records[0] == records[1]
    assert [record["step"] for record in records[1]] == [4, 8]
    assert all(record["changed"] > 0 for record in records[1])
    assert json.loads((killed / "summary.json").read_text())["merge"]["equal"]


@pytest.mark.long
def test_twelve_kills_and_a_full_disk_leave_no_trace(recipe: Path, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(recipe, whole, [{}]) == [0], log(whole)
    (checkpoint,) = (whole / "checkpoints").iterdir()
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    assert sizes[WEIGHTS] < sizes["optimizer.pt"]
    full = {"at": "on_full_disk", "with": [sizes["optimizer.pt"] - 1]}

    *during, at_end, at_summary = MOMENTS
    endings = run(recipe, killed, [*during, full, at_end, at_summary, {}])
    assert endings[:-4] == [-SIGKILL] * len(during), log(killed)
    assert endings[-4] not in (0, -SIGKILL), log(killed)
    assert endings[-3:] == [-SIGKILL, -SIGKILL, 0], log(killed)
    same_end(killed, whole)
    deltas = load_file(killed / "adapter" / WEIGHTS)
    assert all(tensor.abs().max() > 0 for name, tensor in deltas.items() if name.endswith("deltas"))


@pytest.mark.parametrize("torn", ["", '{"global_step": 1'])
def test_a_checkpoint_that_was_not_written_to_its_end_does_not_count(tmp_path: Path, torn: str):
    folder = RunFolder(tmp_path)
    for step, state in ((9, "{}"), (10, torn)):
        (folder.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        (folder.checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert folder.last_checkpoint() == folder.checkpoints / "checkpoint-9"


@pytest.mark.parametrize("left", ["environment.json", ".environment.json.17", ".recipe.yaml.17"])
def test_a_run_folder_without_its_recipe_can_be_made_again(tmp_path: Path, left: str):
    (tmp_path / left).write_text("{")
    folder = RunFolder(tmp_path)
    folder.check_fresh()
    folder.create("a: 1\n", {})
    with pytest.raises(RunFolderError, match="exists already and is not empty"):
        folder.check_fresh()


def test_any_other_file_makes_a_run_folder_taken(tmp_path: Path):
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="exists already and is not empty"):
        RunFolder(tmp_path).check_fresh()
