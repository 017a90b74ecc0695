"""Records of finished runs."""

import json
from unittest.mock import patch

import pytest
import torch
import yaml
from rich.console import Console

from neuroada.errors import MissingInputError
from neuroada.measure.record import Record
from neuroada.measure.studies.run import read_run
from neuroada.recipe.loading import load_recipe
from neuroada.run_folder.environment import environment
from neuroada.run_folder.folder import RunFolder
from neuroada.training.train import train


@pytest.fixture(scope="module")
def trained(tiny_model_dir, tmp_path_factory):
    """Folder of a short run."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 100)
    content = {
        "model": {"name": str(tiny_model_dir), "dtype": "float32"},
        "data": {"text": str(text), "block_length": 32, "held_out_blocks": 2},
        "method": "neuroada",
        "neuroada": {"k": 2},
        "training": {"max_steps": 2, "learning_rate": 0.01},
        "seed": 3,
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    train(load_recipe(folder / "mine.yaml"), folder / "first", Console(quiet=True))
    return folder / "first"


def test_it_says_what_the_run_folder_says(trained):
    record = read_run(trained)
    summary = json.loads((trained / "summary.json").read_text())
    found = environment(torch.device("cpu"), 3)
    assert (record.kind, record.method, record.settings) == ("run", "NeuroAda", {"k": 2})
    assert (record.seed, record.notes["run"]) == (3, "first")
    assert record.machine.cpu == found["cpu"]
    assert record.machine.instructions == found["instructions"]
    assert record.created == json.loads((trained / "environment.json").read_text())["created"]
    assert record.shape.name == "tiny-llama", "of a local model the folder's name, not its path"
    assert record.measurements["steps"].p50 == 2
    assert record.measurements["held_out_loss"].p50 == summary["held_out_loss_after"]
    assert record.measurements["selection"].p50 == -summary["held_out_loss_after"]
    assert Record.model_validate_json(record.model_dump_json(exclude_defaults=True)) == record


def test_a_folder_without_a_run_and_one_that_is_not_complete(trained, tmp_path):
    with pytest.raises(MissingInputError, match="there is no run in it"):
        read_run(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes((trained / "recipe.yaml").read_bytes())
    with pytest.raises(MissingInputError, match=r"it is not complete. neuroada train --resume --output"):
        read_run(tmp_path)


def test_several_tests_without_an_average_get_their_mean(trained):
    scores = [
        {"name": name, "metric": "accuracy", "value": value, "low": value - 0.1, "high": value + 0.1, "count": 50}
        for name, value in (("boolq", 0.4), ("piqa", 0.8))
    ]
    folder = RunFolder(trained)
    with patch.object(RunFolder, "read_summary", lambda _: {**json.loads(folder.summary.read_text()), **after(scores)}):
        mean = read_run(trained).scores[-1]
        assert (mean.name, mean.value, mean.count) == ("mean of 2 tests", pytest.approx(0.6), 100)
        scores.append({**scores[0], "name": "commonsense"})
        assert [score.name for score in read_run(trained).scores] == ["boolq", "piqa", "commonsense"]


def after(scores: list[dict]) -> dict:
    return {"scores_before": [], "scores_after": [{**score, "note": ""} for score in scores]}
