"""Searches: what is proposed, trained and judged, and the storages that machines share."""

import math
from pathlib import Path
from typing import Any

import pytest

from neuroada.errors import ConfigError, DamagedRunError, DivergedError, MissingInputError, RunFolderError
from neuroada.recipe.files import RecipeFile, bundled_recipes
from neuroada.recipe.loading import load_recipe
from neuroada.tuning import search as module
from neuroada.tuning.objective import Objective, Search

from .searches import KS, RATES, make_search, run


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
    parts = Search(RecipeFile(recipe), make_search(recipe).space, tmp_path / "parts", [], {})
    for count in (3, 5, 14):
        study, printed = run(parts, trials=count)
        assert len(study.trials) == count
    assert "14, of which 5 are done" in printed
    assert values_of(study) == values_of(whole)
    pretend.clear()
    run(parts, trials=14)
    assert pretend == []
    other, _ = run(Search(RecipeFile(recipe), parts.space, tmp_path / "other", [], {}, seed=1), trials=3)
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


def test_a_damaged_trial_is_a_failure_of_its_own(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    def train(recipe: Any, *_: Any, **__: Any) -> dict[str, float]:
        if recipe.settings["k"] == 1:
            raise DamagedRunError("run folder x", "cannot be read", "Delete it")
        return {"held_out_loss_after": 1.0}

    monkeypatch.setattr(module, "train_here", train)
    study, printed = run(make_search(recipe, KS), trials=9)
    assert {(t.params["neuroada.k"], t.state.name) for t in study.trials} >= {(1, "FAIL"), (2, "COMPLETE")}
    assert "failed: run folder x: cannot be read" in printed


def test_what_is_missing_for_all_trials_ends_the_search(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    def train(*_: Any, **__: Any) -> dict[str, float]:
        raise MissingInputError("model x", "no such directory", "Give one")

    monkeypatch.setattr(module, "train_here", train)
    with pytest.raises(MissingInputError, match="model x"):
        run(make_search(recipe))


def test_objective_is_the_held_out_score_where_there_is_one():
    for name, metric in (("minilm-cola", "score"), ("dinov2-cifar10", "score"), ("smollm2-commonsense", "loss")):
        assert Objective.of(load_recipe(bundled_recipes()[name]).data.task) == Objective(metric)
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
    there = Search(RecipeFile(recipe), make_search(recipe).space, tmp_path / "there", [], {"data.data_dir": None})
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
    changed = Search(RecipeFile(recipe), make_search(recipe).space, recipe.parent / "out", ["training.max_steps=5"], {})
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
