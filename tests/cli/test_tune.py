"""neuroada tune: what its options do, and what a person reads."""

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from neuroada.recipe.loading import load_recipe
from neuroada_cli.main import app

SPACE = "training.learning_rate={low: 1e-3, high: 1e-1, log: true}"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text("model: {name: none}\nmethod: neuroada\ntraining: {max_steps: 2, learning_rate: 0.1}\n")
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Recipes of trials that cost nothing."""
    recipes = []

    def train(recipe: Any, *_: Any, **__: Any) -> dict[str, float]:
        recipes.append(recipe)
        return {"held_out_loss_after": recipe.training.learning_rate}

    monkeypatch.setattr("neuroada.tuning.search.train_here", train)
    return recipes


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["tune", *arguments, "--in-process"])


def test_options_reach_the_trials(recipe: Path, trained: list[Any], tmp_path: Path):
    text = tmp_path / "text.txt"
    text.touch()
    done = call(
        *("mine.yaml", "--search", SPACE, "--search", "neuroada.k={choices: [1, 2]}", "--trials", "3"),
        *("--set", "neuroada.k=5", "--model", "other", "--text", str(text)),
    )
    assert done.exit_code == 0, done.output
    assert {(each.model.name, each.data.text, each.settings["k"]) for each in trained} == {("other", text, 5)}
    assert len({each.training.learning_rate for each in trained}) == 3
    assert "To train it: neuroada train runs/mine-tune/best.yaml" in done.stdout
    best = load_recipe(Path("runs/mine-tune/best.yaml"))
    assert best.training.learning_rate == min(each.training.learning_rate for each in trained)
    again = call(
        *("mine.yaml", "--search", SPACE, "--search", "neuroada.k={choices: [1, 2]}", "--trials", "4"),
        *("--set", "neuroada.k=5", "--model", "other", "--text", str(text)),
    )
    assert again.exit_code == 0, again.output
    assert len(trained) == 4


def test_no_trial_to_its_end(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("neuroada.tuning.search.train_here", lambda *_, **__: 1 / 0)
    done = call("mine.yaml", "--search", SPACE, "--trials", "2")
    assert done.exit_code == 1
    assert "No trial was trained to its end." in done.stdout
    assert "failed: ZeroDivisionError: division by zero" in " ".join(done.stdout.split())


def test_ctrl_c_says_how_to_go_on(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("neuroada.tuning.search.train_here", interrupted)
    done = call("mine.yaml", "--search", SPACE)
    assert done.exit_code == 130
    assert "To go on, give the same command again." in done.stdout


def test_errors_are_one_plain_message(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    for arguments, message in (
        (["mine.yaml"], "Error: neuroada tune: no --search says what to try, and there is no "),
        (["mine.yaml", "--search", "papers-commonsens"], "Did you mean 'papers-commonsense'?"),
        (["mine.yaml", "--search", SPACE, "--set", "training"], "--set training: it is not of the form key=value"),
        (["quikstart", "--search", SPACE], "Did you mean 'quickstart'?"),
    ):
        done = call(*arguments)
        assert done.exit_code == 2
        assert message in done.stderr
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = call("mine.yaml", "--search", SPACE)
    assert "Error: neuroada tune: package optuna is not installed. pip install 'neuroada[tune]'." in done.stderr
