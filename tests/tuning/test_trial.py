"""One trial: its process, and the callback that watches it."""

import contextlib
import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from neuroada.errors import DivergedError, MissingInputError
from neuroada.recipe.loading import check_recipe
from neuroada.tuning import trial as module
from neuroada.tuning.trial import StoppedError, Watch


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_a_trial_whose_process_is_killed(tmp_path: Path):
    training = {"max_steps": 2, "learning_rate": 0.1}
    recipe = check_recipe({"model": {"name": "none"}, "method": "neuroada", "training": training}, "recipe")
    arguments = (recipe, tmp_path / "trial", print, None)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(module.train_in_fresh_process, *arguments)
        while not (found := [each for each in psutil.Process().children() if "spawn_main" in str(each.cmdline())]):
            time.sleep(0.01)
        found[0].kill()
        with pytest.raises(module.TrialError, match=r"no answer: it was ended by signal 9; .*trial\.log may say why"):
            answer.result()


@pytest.mark.parametrize(
    "error", [MissingInputError("a", "b", "c"), DivergedError("d", "e", "f"), ZeroDivisionError("e")]
)
def test_what_a_trials_process_tells(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module, "train_here", fail)
    monkeypatch.setattr(module, "_print_into", lambda path: None)
    ours, theirs = multiprocessing.Pipe()
    with contextlib.suppress(ZeroDivisionError):
        module._train_for(theirs, None, tmp_path / "trial", False)
    kind, sent = ours.recv()
    assert kind == "failed"
    if isinstance(error, ZeroDivisionError):
        assert (type(sent), str(sent)) == (module.TrialError, "ZeroDivisionError: e")
    else:
        assert (type(sent), str(sent)) == (type(error), str(error))


def watched(judge: Any = None, **state: Any) -> tuple[Watch, dict[str, Any]]:
    model = torch.nn.Linear(2, 2)
    arguments = TrainingArguments(use_cpu=True, report_to="none", metric_for_best_model="loss")
    given = {"args": arguments, "state": TrainerState(**state), "control": TrainerControl(), "model": model}
    return Watch(lambda *_: None, judge), given


def test_watch_asks_ten_times_at_most_and_never_outside_training():
    asked = []
    watch, given = watched(lambda look, value: asked.append((look, value)) or look == 2, max_steps=100)
    metrics = {"eval_loss": 0.5}
    watch.on_evaluate(metrics=metrics, **given)
    assert asked == []
    watch.on_train_begin(**given)
    due = []
    for step in range(1, 101):
        given["state"].global_step, given["control"].should_evaluate = step, False
        watch.on_step_end(**given)
        due += [step] if given["control"].should_evaluate else []
    assert due == list(range(10, 100, 10))
    given["state"].global_step = 10
    watch.on_evaluate(metrics=metrics, **given)
    given["state"].global_step = 20
    with pytest.raises(StoppedError):
        watch.on_evaluate(metrics=metrics, **given)
    assert asked == [(1, 0.5), (2, 0.5)]
    watch.on_train_end(**given)
    watch.on_evaluate(metrics=metrics, **given)
    assert len(asked) == 2


@pytest.mark.parametrize("by_epoch", [False, True])
def test_a_trial_that_goes_on_is_judged_at_the_look_where_it_is(by_epoch):
    asked = []
    watch, given = watched(lambda look, value: asked.append(look), max_steps=100, global_step=60, epoch=3.0)
    given["args"].load_best_model_at_end = by_epoch
    watch.on_train_begin(**given)
    watch.on_evaluate(metrics={"eval_loss": 0.5}, **given)
    assert asked == [3 if by_epoch else 6]
