"""Searches: what is proposed, trained and judged, and how one goes on after a death."""

import json
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from rich.console import Console
from transformers import TrainerCallback

import neuroada.runs.train as training
from neuroada.errors import ConfigError, MissingInputError, RunFolderError
from neuroada.runs.recipe import bundled_recipes, load_recipe, to_yaml
from neuroada.runs.tuning import search as module
from neuroada.runs.tuning import storage as storing
from neuroada.runs.tuning.search import Objective, Search, tune
from neuroada.runs.tuning.space import load_space
from neuroada.runs.tuning.trial import DivergedError

RECIPE = """
model: {{name: "{model}", dtype: float32}}
data: {{text: "{text}", block_length: 32, held_out_blocks: 2}}
method: neuroada
training: {{max_steps: 4, learning_rate: 0.05, save_steps: 2, logging_steps: 1}}
"""
RATES = "training.learning_rate={low: 1e-4, high: 1.0, log: true}"
KS = "neuroada.k={choices: [1, 2, 3]}"


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_dir: Path) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 100)
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(model=tiny_model_dir, text=text))
    return path


def make_search(recipe: Path, *given: str, seed: int = 0, **kept: Any) -> Search:
    given = given or (RATES, KS)
    return Search(recipe, load_space(given, recipe), recipe.parent / "out", [], kept, seed)


def run(search: Search, trials: int = 4, **options: Any) -> tuple[Any, str]:
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=160, file=nowhere)
        study = tune(search, console, trials=trials, in_process=True, **options)
    return study, console.export_text()


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Trials cost nothing, and are best at a learning rate of 0.01 and k = 2; the folders that were trained."""
    trained = []

    def train(recipe: Any, folder: Path, advance: Any, judge: Any, console: Any) -> dict[str, float]:
        trained.append(folder)
        advance(1, 1)
        loss = (math.log10(recipe.training.learning_rate) + 2) ** 2 + abs(recipe.settings["k"] - 2)
        return {"held_out_loss_after": loss}

    monkeypatch.setattr(module, "train_here", train)
    return trained


def values_of(study: Any) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def test_a_search_finds_the_best_and_writes_it_out(recipe: Path, pretend: list[Path]):
    search = make_search(recipe)
    study, printed = run(search, trials=30)
    assert len(study.trials) == 30
    best = load_recipe(search.output / "best.yaml")
    assert best.settings["k"] == 2
    assert 0.003 < best.training.learning_rate < 0.03
    assert best.training.learning_rate == study.best_params["training.learning_rate"]
    assert [folder.name for folder in pretend[:2]] == ["trial-0000", "trial-0001"]
    rows = [line.split() for line in printed.splitlines() if line.strip().startswith("trial-")]
    assert len(rows) == 20
    assert [float(row[1]) for row in rows] == sorted(float(row[1]) for row in rows)
    for phrase in ("training.learning_rate  0.0001 to 1, logarithmic", "held-out loss, lowest first", "and 10 more"):
        assert phrase in printed


def test_going_on_proposes_what_one_go_would(recipe: Path, pretend: list[Path], tmp_path: Path):
    whole, _ = run(make_search(recipe), trials=14)
    parts = Search(recipe, make_search(recipe).space, tmp_path / "parts", [], {})
    for count in (3, 5, 14):
        study, printed = run(parts, trials=count)
        assert len(study.trials) == count
    assert "14, of which 5 are done" in printed
    assert values_of(study) == values_of(whole)
    pretend.clear()
    run(parts, trials=14)
    assert pretend == []
    other, _ = run(Search(recipe, parts.space, tmp_path / "other", [], {}, seed=1), trials=3)
    assert values_of(other) != values_of(whole)[:3]


def test_lists_are_choices(recipe: Path, pretend: list[Path]):
    given = "neuroada.target_modules={choices: [[q_proj], [q_proj, v_proj], all-linear]}"
    search = make_search(recipe, given, "neuroada.k=2")
    run(search, trials=8)
    assert load_recipe(search.output / "best.yaml").settings["target_modules"] in (
        ["q_proj"],
        ["q_proj", "v_proj"],
        "all-linear",
    )


def test_what_is_known_is_not_trained_again_and_an_exhausted_space_ends(recipe: Path, pretend: list[Path]):
    study, printed = run(make_search(recipe, KS), trials=100)
    assert len(pretend) == 3 < len(study.trials) < 100
    assert "known: the same as trial-" in printed
    assert len({(trial.params["neuroada.k"], trial.value) for trial in study.trials}) == 3


def test_failures_and_divergence_are_noted_and_the_search_goes_on(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    def train(recipe: Any, *_: Any, **__: Any) -> dict[str, float]:
        k = recipe.settings["k"]
        if k == 1:
            raise ZeroDivisionError("of all things\nand more")
        return {"held_out_loss_after": math.nan if k == 3 else 1.0}

    monkeypatch.setattr(module, "train_here", train)
    study, printed = run(make_search(recipe), trials=12)
    outcomes = {(t.params["neuroada.k"], t.state.name, t.user_attrs["outcome"]) for t in study.trials}
    assert outcomes == {(1, "FAIL", "failed"), (3, "PRUNED", "diverged"), (2, "COMPLETE", "trained")}
    assert "failed: ZeroDivisionError: of all things" in printed
    assert "diverged: the held-out loss is nan" in printed


def test_what_is_missing_for_all_trials_ends_the_search(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    def train(*_: Any, **__: Any) -> dict[str, float]:
        raise MissingInputError("model x", "no such directory", "Give one")

    monkeypatch.setattr(module, "train_here", train)
    with pytest.raises(MissingInputError, match="model x"):
        run(make_search(recipe))


def test_objective_is_the_held_out_score_where_there_is_one():
    for name, metric in (("minilm-cola", "score"), ("dinov2-cifar10", "score"), ("smollm2-commonsense", "loss")):
        assert Objective.of(load_recipe(bundled_recipes()[name])) == Objective(metric)
    assert Objective("score").maximise
    summary = {"held_out_score_after": 0.4, "held_out_loss_after": 0.3, "scores_after": [{"value": 0.9}]}
    assert (Objective("score").value(summary), Objective("loss").value(summary)) == (0.4, 0.3)
    with pytest.raises(DivergedError, match="the held-out loss is inf"):
        Objective("loss").value({"held_out_loss_after": math.inf})


def test_a_search_needs_trials(recipe: Path):
    with pytest.raises(ConfigError, match=r"--trials 0: a search needs at least one"):
        run(make_search(recipe), trials=0)


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_machines_share_a_search_by_its_storage(kind: str, recipe: Path, pretend: list[Path], tmp_path: Path):
    pytest.importorskip("sqlalchemy")
    storage = str(tmp_path / "shared.journal") if kind == "journal" else f"sqlite:///{tmp_path}/shared.db"
    there = Search(recipe, make_search(recipe).space, tmp_path / "there", [], {"data.data_dir": None})
    run(make_search(recipe), trials=3, storage=storage)
    study, _ = run(there, trials=7, storage=storage)
    assert len(study.trials) == len(pretend) == 7
    assert {folder.parent.name for folder in pretend} == {"out", "there"}
    assert (tmp_path / "there" / "best.yaml").read_text()
    run(there, trials=2, storage=storage, name="another")
    assert len(pretend) == 9


def test_another_search_in_the_same_storage_is_refused(recipe: Path, pretend: list[Path]):
    run(make_search(recipe), trials=1)
    with pytest.raises(
        ConfigError, match=r"'small' in .*out: it was begun with something else; now: - 4. Give the same"
    ):
        run(make_search(recipe, RATES, "neuroada.k={choices: [1, 2, 4]}"))
    changed = Search(recipe, make_search(recipe).space, recipe.parent / "out", ["training.max_steps=5"], {})
    with pytest.raises(ConfigError, match=r"now: max_steps: 5\. Give the same recipe and options, or another --output"):
        run(changed)


def test_storages_that_cannot_be_opened(recipe: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    with pytest.raises(ConfigError, match=r"text\.txt: it is no journal of Optuna's, or a damaged one"):
        run(make_search(recipe), storage=str(text))
    with pytest.raises(RunFolderError, match=r"journal of trials .*text\.txt/x: .* Choose one that can be written"):
        run(make_search(recipe), storage=str(text / "x"))
    pytest.importorskip("sqlalchemy")
    with pytest.raises(ConfigError, match=r"--storage nosuch://\.\.\.: .*nosuch.* Give a URL that SQLAlchemy opens"):
        run(make_search(recipe), storage="nosuch://user:secret@host/base")


def begin_and_die(search: Search, **attributes: Any) -> Any:
    """A trial that a process began and did not end."""
    study = storing.open_study(None, "small", search.output, maximise=False, prune=False, asked=_asked(search))
    trial = study.ask()
    study.sampler = storing.sampler(search.seed, trial.number)
    search.space.suggest(trial)
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    return trial


def _asked(search: Search) -> dict[str, Any]:
    return {"recipe": search.first.resolved(), "space": search.space.plain, "seed": search.seed}


def write_recipe(search: Search, trial: Any) -> Path:
    """As a run does when it begins."""
    folder = search.output / storing.folder_name(trial.number)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(to_yaml(search.recipe(trial.params)))
    return folder / "recipe.yaml"


def dead_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "began": psutil.Process().create_time() - 1}


@pytest.mark.parametrize(
    "attributes",
    [
        {"worker": dead_process()},
        {"worker": {"host": socket.gethostname(), "pid": 2**22 + 1, "began": 0.0}},
        {"worker": {"host": "another", "pid": 1, "began": 0.0}, "alive": time.time() - storing.SILENCE - 1},
    ],
    ids=["pid of another", "no such pid", "another machine, silent"],
)
def test_a_dead_trial_is_tried_again_in_its_folder(attributes: dict, recipe: Path, pretend: list[Path]):
    search = make_search(recipe)
    dead = begin_and_die(search, **attributes)
    write_recipe(search, dead)
    study, _ = run(search, trials=2)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].params == dead.params
    assert [folder.name for folder in pretend] == ["trial-0000", "trial-0002"]


@pytest.mark.parametrize("there", [None, "another: recipe"])
def test_a_dead_trial_whose_folder_is_not_at_hand_begins_anew(there: str | None, recipe: Path, pretend: list[Path]):
    search = make_search(recipe)
    dead = begin_and_die(search, worker=dead_process())
    if there is not None:
        write_recipe(search, dead).write_text(there)
    run(search, trials=1)
    assert [folder.name for folder in pretend] == ["trial-0001"]


def test_a_folder_of_something_else_is_left_alone(recipe: Path):
    search = real(recipe)
    (search.output / "trial-0000").mkdir(parents=True)
    (search.output / "trial-0000" / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"trial-0000: it exists already and is not empty"):
        run(search, trials=1)
    assert (search.output / "trial-0000" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "attributes",
    [
        {"worker": {"host": socket.gethostname(), "pid": os.getpid(), "began": psutil.Process().create_time()}},
        {"worker": {"host": "another", "pid": 1, "began": 0.0}, "alive": time.time() - storing.HEARTBEAT - 1},
        {},
    ],
    ids=["this process", "another machine", "just begun"],
)
def test_a_trial_that_trains_elsewhere_is_counted(attributes: dict, recipe: Path, pretend: list[Path]):
    search = make_search(recipe)
    begin_and_die(search, **attributes)
    study, _ = run(search, trials=2)
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "COMPLETE"]


def test_a_trial_that_kills_its_process_each_time_is_given_up(recipe: Path, pretend: list[Path]):
    search = make_search(recipe)
    begin_and_die(search, worker=dead_process(), retries=storing.RETRIES)
    study, _ = run(search, trials=1)
    assert len(study.trials) == 2
    assert study.trials[1].params != study.trials[0].params


def test_signs_of_life_go_on_while_a_trial_trains(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storing, "HEARTBEAT", 0.01)
    study = optuna.create_study()
    trial = study.ask()
    with storing.alive(trial):
        first = study.trials[0].user_attrs["alive"]
        deadline = time.monotonic() + 30
        while study.trials[0].user_attrs["alive"] == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert study.trials[0].user_attrs["alive"] > first


def real(recipe: Path, *given: str, **kept: Any) -> Search:
    return make_search(recipe, *(given or ("training.learning_rate={choices: [0.02, 0.05]}",)), **kept)


class InStepThree(TrainerCallback):
    """Ctrl-C after the first checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_an_interrupted_trial_goes_on_from_its_checkpoint(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    space = "training.learning_rate={choices: [0.05]}"
    whole = Search(recipe, load_space([space], recipe), tmp_path / "whole", [], {})
    expected, _ = run(whole, trials=1)
    search = real(recipe, space)
    trainer = training.Trainer
    with monkeypatch.context() as patch:
        broken = lambda *args, callbacks, **kw: trainer(*args, callbacks=[*callbacks, InStepThree()], **kw)  # noqa: E731
        patch.setattr(training, "Trainer", broken)
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
    search = Search(path, load_space(["training.learning_rate={choices: [0.05]}"], path), tmp_path / "out", [], {})
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
    assert "diverged: grad_norm is nan at step" in printed
    assert study.trials[0].user_attrs["reason"].split()[-1] in {"2", "3"}


def test_pruning_stops_what_is_behind(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storing, "MedianPruner", lambda: optuna.pruners.ThresholdPruner(upper=0.0))
    study, printed = run(real(recipe, "training.learning_rate={choices: [0.02]}"), trials=1, prune=True)
    assert study.trials[0].state.name == "PRUNED"
    assert list(study.trials[0].intermediate_values) == [1]
    assert "stopped: stopped at step 1" in printed
