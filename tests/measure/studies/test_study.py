"""Studies: in which order cells are trained, what is trained again, and what becomes of failures."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from rich.console import Console

from neuroada.errors import ConfigError
from neuroada.measure.studies import study as module
from neuroada.measure.studies.grid import load_study, rows_of
from neuroada.measure.studies.study import run_study
from neuroada.recipe.loading import to_yaml
from neuroada.run_folder.environment import environment
from neuroada.run_folder.folder import RunFolder

QUIET = Console(quiet=True)


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    recipe = tmp_path / "mine.yaml"
    content = {"model": {"name": "somewhere"}, "method": "neuroada", "training": {"max_steps": 2, "learning_rate": 1}}
    recipe.write_text(yaml.safe_dump(content))
    methods = {
        "NeuroAda k=1": {"set": {"neuroada.k": 1}, "learning_rates": [0.1, 0.2]},
        "LoRA": {"set": {"method": "lora"}, "learning_rates": [0.3]},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"recipe": str(recipe), "seeds": [0, 1], "methods": methods}, sort_keys=False))
    return path


def finish(recipe, output: Path, **changes) -> dict:
    """A complete run folder, whose held-out loss is least at a learning rate of 0.2; changes: of its summary."""
    folder = RunFolder(output)
    folder.create(to_yaml(recipe), environment(torch.device("cpu"), recipe.seed) | {"commit": "c0ffee"})
    score = {"name": "boolq", "metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "count": 80, "note": ""}
    summary = {
        "trainable_parameters": 7,
        "parameters": 700,
        "steps": 2,
        "held_out_loss_after": abs(recipe.training.learning_rate - 0.2),
        "training_seconds": 2.0,
        "peak_memory_bytes": 100,
        "scores_before": [],
        "merge": None,
        "scores_after": [score],
        **changes,
    }
    folder.finish(summary)
    return summary


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, float, int]]:
    """What was trained, in order, by a stand-in for the process that does it."""
    calls = []

    def call(function, arguments, threads):
        recipe = arguments["recipe"]
        calls.append((recipe.method, recipe.training.learning_rate, recipe.seed))
        return finish(recipe, arguments["output"])

    monkeypatch.setattr(module, "call_in_fresh_process", call)
    return calls


def test_the_first_seed_chooses_the_rate_that_the_others_train_with(study_file, trained, tmp_path):
    records = run_study(study_file, tmp_path / "runs", {}, QUIET)
    assert trained == [
        ("neuroada", 0.1, 0),
        ("neuroada", 0.2, 0),
        ("neuroada", 0.2, 1),
        ("lora", 0.3, 0),
        ("lora", 0.3, 1),
    ]
    assert [record.method for record in records] == ["NeuroAda k=1"] * 3 + ["LoRA"] * 2
    best = records[1]
    assert best.settings == {"learning_rate": 0.2}
    (score,) = best.scores
    assert (score.when, score.name, score.value, score.low, score.high) == ("after", "boolq", 0.5, 0.4, 0.6)
    assert best.commit == "c0ffee", "that of the training, not of the moment when its record is written"
    assert best.measurements["selection"].p50 == 0.0
    assert len({record.notes["cell"] for record in records}) == 5


def test_a_failing_cell_is_a_record_and_the_others_go_on(study_file, monkeypatch, tmp_path):
    def call(function, arguments, threads):
        if arguments["recipe"].training.learning_rate == 0.2:
            raise RuntimeError("it diverged")
        return finish(arguments["recipe"], arguments["output"])

    monkeypatch.setattr(module, "call_in_fresh_process", call)
    records = run_study(study_file, tmp_path / "runs", {}, QUIET)
    assert [record.status for record in records] == ["ok", "failed", "ok", "ok", "ok"]
    assert "it diverged" in records[1].reason
    assert records[2].settings == {"learning_rate": 0.1}


def test_each_record_is_kept_as_soon_as_its_cell_ends(study_file, monkeypatch, tmp_path):
    kept = []

    def call(function, arguments, threads):
        if len(kept) == 2:
            raise KeyboardInterrupt
        return finish(arguments["recipe"], arguments["output"])

    monkeypatch.setattr(module, "call_in_fresh_process", call)
    with pytest.raises(KeyboardInterrupt):
        run_study(study_file, tmp_path / "runs", {}, QUIET, keep=kept.append)
    assert [record.settings["learning_rate"] for record in kept] == [0.1, 0.2]


def test_another_content_is_another_cell(study_file, trained, tmp_path):
    first = {record.notes["cell"] for record in run_study(study_file, tmp_path / "runs", {}, QUIET)}
    other = {record.notes["cell"] for record in run_study(study_file, tmp_path / "runs", {"neuroada.k": 2}, QUIET)}
    assert len(first & other) == 2  # those of LoRA, whose recipe holds no block of NeuroAda


def test_a_cell_that_cannot_be_meant_is_found_before_any_is_trained(study_file, trained, tmp_path):
    asked = r"'NeuroAda k=1' of the study, recipe .*mine\.yaml: unknown key 'data\.blocks'"
    with pytest.raises(ConfigError, match=asked):
        run_study(study_file, tmp_path / "runs", {"data.blocks": 1}, QUIET)
    assert trained == []


def test_a_complete_cell_is_not_trained_again(tiny_model_dir, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 100)
    recipe = tmp_path / "mine.yaml"
    content = {
        "model": {"name": str(tiny_model_dir), "dtype": "float32"},
        "data": {"text": str(text), "block_length": 32, "held_out_blocks": 2},
        "method": "neuroada",
        "training": {"max_steps": 1, "learning_rate": 0.01},
    }
    recipe.write_text(yaml.safe_dump(content))
    methods = {"a": {"set": {"neuroada.k": 1}, "learning_rates": [0.1]}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"recipe": str(recipe), "seeds": [0], "methods": methods}))
    first, again = (run_study(path, tmp_path / "runs", {}, QUIET)[0] for _ in range(2))
    assert first.status == "ok", first.reason
    assert first.measurements == again.measurements


def test_several_cells_at_a_time_give_the_same_cells(study_file, trained, tmp_path):
    one = run_study(study_file, tmp_path / "one", {}, QUIET)
    several = run_study(study_file, tmp_path / "several", {}, QUIET, processes=3)
    assert {record.notes["cell"] for record in one} == {record.notes["cell"] for record in several}
    assert len(several) == len(one) == 5


def test_a_cell_that_another_process_trains_is_left_to_it(study_file, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    row = next(rows_of(load_study(study_file), {}))
    busy, output = row.cell(0.1, 0), tmp_path / "runs"
    (output / module.LOCKS).mkdir(parents=True)
    lock = FileLock(output / module.LOCKS / busy.digest)
    lock.acquire()
    seen: list[str] = []

    def keep(record):
        seen.append(record.notes["cell"])
        if len(seen) == 3:  # every cell that can be trained without knowing the best rate
            finish(busy.recipe, output / busy.name)
            lock.release()

    records = run_study(study_file, output, {}, QUIET, keep=keep)
    assert busy.name not in seen[:3]
    assert len(records) == 5
    assert ("neuroada", 0.2, 1) in trained


def test_of_equal_rates_the_lower_one_is_best(study_file, monkeypatch, tmp_path):
    def call(function, arguments, threads):
        recipe = arguments["recipe"]
        return finish(recipe, arguments["output"], held_out_loss_after=1.0)

    monkeypatch.setattr(module, "call_in_fresh_process", call)
    records = run_study(study_file, tmp_path / "runs", {}, QUIET)
    assert [record.settings["learning_rate"] for record in records if record.method != "LoRA"] == [0.1, 0.2, 0.1]


def test_a_cell_that_comes_to_nan_is_a_failure_and_never_the_best(study_file, monkeypatch, tmp_path):
    def call(function, arguments, threads):
        recipe = arguments["recipe"]
        loss = math.nan if recipe.training.learning_rate == 0.1 else 1.0
        return finish(recipe, arguments["output"], held_out_loss_after=loss)

    monkeypatch.setattr(module, "call_in_fresh_process", call)
    records = run_study(study_file, tmp_path / "runs", {}, QUIET)
    assert [record.status for record in records] == ["failed", "ok", "ok", "ok", "ok"]
    assert records[0].reason == "its score on the held-out part is not a finite number"
    assert [record.settings["learning_rate"] for record in records if record.seed == 1] == [0.2, 0.3]


def test_a_cell_that_an_orphan_still_trains_is_left_to_it(study_file, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    cell, output = next(rows_of(load_study(study_file), {})).cell(0.1, 0), tmp_path / "runs"
    (output / module.LOCKS).mkdir(parents=True)
    orphan = FileLock(output / module.LOCKS / f"{cell.digest}{module.TRAINING}")
    orphan.acquire()
    seen: list[str] = []

    def keep(record):
        seen.append(record.notes["cell"])
        if len(seen) == 3:
            finish(cell.recipe, output / cell.name)
            orphan.release()

    assert len(run_study(study_file, output, {}, QUIET, keep=keep)) == 5
    assert cell.name not in seen[:3]
    assert ("neuroada", 0.1, 0) not in trained, "the orphan did"


def test_complete_cells_start_no_process(study_file, trained, tmp_path):
    first, again = (run_study(study_file, tmp_path / "runs", {}, QUIET) for _ in range(2))
    assert len(trained) == 5
    assert [record.notes for record in first] == [record.notes for record in again]


def without(key: str):
    """Damage: a summary that lost a value."""

    def damage(folder: RunFolder) -> None:
        folder.finish({name: value for name, value in folder.read_summary().items() if name != key})

    return damage


DAMAGES = {
    "no environment": (lambda folder: folder.environment.unlink(), "cannot be read .FileNotFoundError: "),
    "no recipe": (lambda folder: folder.recipe.unlink(), "no such file|No such file"),
    "half a summary": (lambda folder: folder.summary.write_text("{"), "cannot be read .JSONDecodeError: "),
    "a list": (lambda folder: folder.summary.write_text("[]"), "cannot be read .TypeError: "),
    "no loss": (without("held_out_loss_after"), "cannot be read .KeyError: 'held_out_loss_after'."),
    "no merge": (without("merge"), "cannot be read .KeyError: 'merge'."),
    "another default": (
        lambda folder: folder.recipe.write_text(
            folder.recipe.read_text().replace("weight_decay: 0.0", "weight_decay: 0.5")
        ),
        "complete, but of another recipe; now: weight_decay: 0.0. Delete it, and it is trained again",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_complete_cell_is_a_failure_and_the_others_go_on(damage: str, study_file, trained, tmp_path):
    run_study(study_file, tmp_path / "runs", {}, QUIET)
    cell = next(rows_of(load_study(study_file), {})).cell(0.1, 0)
    harm, reason = DAMAGES[damage]
    harm(RunFolder(tmp_path / "runs" / cell.name))
    records = run_study(study_file, tmp_path / "runs", {}, QUIET)
    assert [record.status for record in records] == ["failed", "ok", "ok", "ok", "ok"]
    assert re.search(reason, records[0].reason), records[0].reason
    assert len(trained) == 5, "a damaged cell is left as it is"


def test_a_cell_is_not_trained_again_under_another_label(study_file, trained, tmp_path):
    first = run_study(study_file, tmp_path / "runs", {}, QUIET)
    renamed = tmp_path / "renamed.yaml"
    renamed.write_text(study_file.read_text().replace("NeuroAda k=1", "one input"))
    again = run_study(renamed, tmp_path / "runs", {}, QUIET)
    assert len(trained) == 5
    assert [record.method for record in again] == ["one input"] * 3 + ["LoRA"] * 2
    assert [record.measurements for record in again] == [record.measurements for record in first]


def test_an_unfinished_cell_of_another_label_goes_on_in_its_folder(study_file, tmp_path, monkeypatch):
    cell = next(rows_of(load_study(study_file), {})).cell(0.1, 0)
    theirs = RunFolder(tmp_path / "runs" / f"their-label-{cell.digest}")
    theirs.create(to_yaml(cell.recipe), {})
    used = []

    def call(function, arguments, threads):
        used.append(arguments["output"].name)
        return finish(arguments["recipe"], arguments["output"])

    monkeypatch.setattr(module, "call_in_fresh_process", call)
    run_study(study_file, tmp_path / "runs", {}, QUIET)
    assert used[0] == theirs.path.name
    assert cell.name not in used


def test_of_two_folders_of_a_cell_the_complete_one_is_read(study_file, trained, tmp_path):
    cell = next(rows_of(load_study(study_file), {})).cell(0.1, 0)
    RunFolder(tmp_path / "runs" / cell.name).create(to_yaml(cell.recipe), {})
    finish(cell.recipe, tmp_path / "runs" / f"their-label-{cell.digest}")
    run_study(study_file, tmp_path / "runs", {}, QUIET)
    assert ("neuroada", 0.1, 0) not in trained


def test_an_interrupt_stops_what_is_being_trained(study_file, trained, tmp_path, monkeypatch):
    stopped = []
    monkeypatch.setattr(module, "stop_fresh_processes", lambda: stopped.append(True))

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study_file, tmp_path / "runs", {}, QUIET, keep=interrupt)
    assert stopped
