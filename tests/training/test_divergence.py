"""A training that leaves the finite numbers ends at once, whatever the method, and its files are strict JSON."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neuroada.errors import ConfigError, DivergedError
from neuroada.run_folder.folder import RunFolder
from neuroada.run_folder.strict_json import to_json
from neuroada.training import evaluations
from neuroada.training.divergence import StopIfDiverged
from neuroada.training.train import train

QUIET = Console(quiet=True)


def refuse(constant: str) -> None:
    raise ValueError(constant)


@pytest.mark.parametrize("method", ["neuroada", "neat", "lora", "full", "mask", "bitfit"])
def test_it_stops_with_step_rate_and_checkpoint(
    method: str, make_recipe, data_dir: Path, tiny_bert_dir, tmp_path: Path
):
    sections: dict[str, Any] = {
        "method": method,
        "model": {"name": str(tiny_bert_dir), "dtype": "float32"},
        "data": {"task": "glue", "name": "mrpc", "data_dir": str(data_dir), "max_length": 64},
        "training": {"max_steps": 20, "learning_rate": 1e30, "save_steps": 1, "max_grad_norm": 0.0},
    }
    with pytest.raises(DivergedError, match=r"learning rate 1e\+30: .*smaller training.learning_rate") as told:
        train(make_recipe(**sections), tmp_path / "run", QUIET)
    assert "at step" in str(told.value) or "the held-out loss after training is" in str(told.value)
    assert "checkpoint" in str(told.value)
    folder = RunFolder(tmp_path / "run")
    assert not folder.summary.exists()
    assert not folder.trained(method).exists()
    for line in folder.metrics.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


class Ruin(TrainerCallback):
    """Ruins a trained value after the second step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            next(p for p in kwargs["model"].parameters() if p.requires_grad).data.fill_(math.nan)


def test_the_last_checkpoint_is_from_before_it(make_recipe, tmp_path: Path):
    training = {"max_steps": 6, "learning_rate": 0.01, "save_steps": 1}
    with pytest.raises(DivergedError, match=r"at step 3.*the last good checkpoint is .*checkpoint-2"):
        train(make_recipe(training=training), tmp_path / "run", QUIET, callbacks=[Ruin()])
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-2"]


def watch(tmp_path: Path, **state: Any) -> tuple[StopIfDiverged, dict[str, Any]]:
    model = torch.nn.Linear(2, 2)
    arguments = TrainingArguments(use_cpu=True, report_to="none")
    optimizer = torch.optim.SGD(model.parameters())
    given = {"args": arguments, "state": TrainerState(**state), "control": TrainerControl(), "model": model}
    return StopIfDiverged(RunFolder(tmp_path), 0.5), given | {"optimizer": optimizer}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_noticed_wherever_it_is(value: float, tmp_path: Path):
    stop, given = watch(tmp_path, global_step=3)
    stop.on_log(logs={"loss": 1.0, "grad_norm": torch.tensor(2.0)}, **given)
    for name in ("loss", "grad_norm"):
        with pytest.raises(DivergedError, match=rf"{name} is .* at step 3"):
            stop.on_log(logs={name: value}, **given)
    for parameter in given["model"].parameters():
        parameter.grad = torch.ones_like(parameter)
    stop.on_pre_optimizer_step(**given)
    given["model"].bias.grad[1] = value
    with pytest.raises(DivergedError, match="a gradient is not finite at step 4"):
        stop.on_pre_optimizer_step(**given)
    stop.on_epoch_end(**given)
    torch.nn.init.constant_(given["model"].bias, value)
    given["control"].should_save = True
    for event in (stop.on_step_end, stop.on_epoch_end, stop.on_train_end):
        with pytest.raises(DivergedError, match="bias is no longer finite at step 3"):
            event(**given)


def test_a_base_model_without_a_finite_loss_is_told(make_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluations, "held_out_values", lambda *_: {"loss": math.nan})
    with pytest.raises(ConfigError, match=r"the held-out loss before training is nan.*evaluation\.before=false"):
        train(make_recipe(), tmp_path / "run", QUIET)


def test_json_is_strict():
    value = {"a": math.nan, "b": [1.5, math.inf, {"c": -math.inf}], "d": (0.0, "x"), "e": True, "f": None}
    read = json.loads(to_json(value), parse_constant=refuse)
    assert read == {"a": None, "b": [1.5, None, {"c": None}], "d": [0.0, "x"], "e": True, "f": None}
