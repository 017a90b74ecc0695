"""Searches after a death: which trials count as dead, and what becomes of them."""

import os
import socket
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from neuroada.recipe.loading import to_yaml
from neuroada.tuning import storage as storing
from neuroada.tuning.objective import Search

from .searches import make_search, run


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


@pytest.mark.parametrize(
    "attributes",
    [
        {"worker": {"host": socket.gethostname(), "pid": os.getpid(), "began": psutil.Process().create_time()}},
        {"worker": {"host": "another", "pid": 1, "began": 0.0}, "silent": storing.HEARTBEAT + 1},
        {},
    ],
    ids=["this process", "another machine", "just begun"],
)
def test_a_trial_that_trains_elsewhere_is_counted(attributes: dict, recipe: Path, pretend: list[Path]):
    search, silent = make_search(recipe), attributes.get("silent")  # the last sign of life is of now, not of collection
    begin_and_die(search, **(attributes if silent is None else {**attributes, "alive": time.time() - silent}))
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
