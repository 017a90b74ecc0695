"""Searches whose trials really train: interrupted, in processes of their own, judged, diverged and pruned."""

import json
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console
from transformers import TrainerCallback

import neuroada.training.fit as fitting
from neuroada.errors import RunFolderError
from neuroada.recipe.files import RecipeFile
from neuroada.tuning import storage as storing
from neuroada.tuning.objective import Search
from neuroada.tuning.search import tune
from neuroada.tuning.space import load_space

from .searches import make_search, run


def real(recipe: Path, *given: str, **kept: Any) -> Search:
    return make_search(recipe, *(given or ("training.learning_rate={choices: [0.02, 0.05]}",)), **kept)


def test_a_folder_of_something_else_is_left_alone(recipe: Path):
    search = real(recipe)
    (search.output / "trial-0000").mkdir(parents=True)
    (search.output / "trial-0000" / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"trial-0000: it exists already and is not empty"):
        run(search, trials=1)
    assert (search.output / "trial-0000" / "mine.txt").read_text() == "mine"


class InStepThree(TrainerCallback):
    """Ctrl-C after the first checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_an_interrupted_trial_goes_on_from_its_checkpoint(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    space = "training.learning_rate={choices: [0.05]}"
    whole = Search(RecipeFile(recipe), load_space([space], RecipeFile(recipe)), tmp_path / "whole", [], {})
    expected, _ = run(whole, trials=1)
    search = real(recipe, space)
    trainer = fitting.ResumableTrainer
    with monkeypatch.context() as patch:
        broken = lambda *args, callbacks, **kw: trainer(*args, callbacks=[*callbacks, InStepThree()], **kw)  # noqa: E731
        patch.setattr(fitting, "ResumableTrainer", broken)
        with pytest.raises(KeyboardInterrupt):
            run(search, trials=1)
    assert not (search.output / "trial-0000" / "summary.json").exists()
    study, _ = run(search, trials=1)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert study.best_value == expected.best_value
    summary = json.loads((search.output / "trial-0000" / "summary.json").read_text())
    assert summary["scores_after"] == []
    records = [json.loads(line) for line in (search.output / "trial-0000" / "metrics.jsonl").open()]
    assert [record["step"] for record in records if record["event"] == "train"] == [1, 2, 3, 4]


def test_trials_train_in_processes_of_their_own(recipe: Path):
    search = real(recipe, "training.learning_rate={choices: [0.02]}")
    with open(os.devnull, "w") as nowhere:
        study = tune(search, Console(file=nowhere), trials=1)
    assert study.best_value < 5.6
    assert (search.output / "trial-0000" / "adapter").is_dir()
    assert "Result" in (search.output / "trial-0000.log").read_text()


def test_a_classifier_is_judged_by_its_held_out_score(data_dir: Path, tiny_bert_dir: Path, tmp_path: Path):
    path = tmp_path / "cola.yaml"
    path.write_text(
        f"base: minilm-cola\nmodel: {{name: {tiny_bert_dir}}}\n"
        f"data: {{data_dir: {data_dir}, train_records: null, max_length: 32}}\n"
        "training: {num_train_epochs: 3, per_device_train_batch_size: 8}\n"
    )
    search = Search(
        RecipeFile(path),
        load_space(["training.learning_rate={choices: [0.05]}"], RecipeFile(path)),
        tmp_path / "out",
        [],
        {},
    )
    study, printed = run(search, trials=1, prune=True)
    summary = json.loads((search.output / "trial-0000" / "summary.json").read_text())
    assert study.best_value == summary["held_out_score_after"]
    assert summary["scores_after"] == []
    assert list(study.trials[0].intermediate_values) == [1, 2, 3]
    assert study.best_value == max(study.trials[0].intermediate_values.values())
    assert "held-out score, highest first" in printed


def test_a_real_divergence_ends_early(recipe: Path):
    search = real(recipe, "training.learning_rate={choices: [1e30]}", **{"method": "full", "training.max_steps": 50})
    study, printed = run(search, trials=1)
    assert study.trials[0].state.name == "PRUNED"
    assert "diverged: a gradient is not finite at step" in printed
    assert study.trials[0].user_attrs["reason"].split()[-1] in {"2", "3"}


def test_pruning_stops_what_is_behind(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storing, "MedianPruner", lambda: optuna.pruners.ThresholdPruner(upper=0.0))
    study, printed = run(real(recipe, "training.learning_rate={choices: [0.02]}"), trials=1, prune=True)
    assert study.trials[0].state.name == "PRUNED"
    assert list(study.trials[0].intermediate_values) == [1]
    assert "stopped: stopped at step 1" in printed
