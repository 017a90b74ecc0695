"""Recipe to run folder, on the tiny Llama."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

import neuroada.training.fit as fitting
from neuroada import NeuroAdaLinear, NeuroAdaModel
from neuroada.errors import ConfigError, MergeError, MissingInputError
from neuroada.ops.sparse_delta import is_held
from neuroada.recipe.loading import Recipe, check_recipe, load_recipe
from neuroada.run_folder.folder import RunFolder
from neuroada.training.prepared import prepare
from neuroada.training.train import train
from neuroada.training.trainer import ResumableTrainer


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    return path


@pytest.fixture
def recipe(tiny_model_dir: Path, text: Path) -> Recipe:
    return make_recipe(tiny_model_dir, text)


def make_recipe(model: Path, text: Path, **changes: Any) -> Recipe:
    content = {
        "model": {"name": str(model), "dtype": "bfloat16"},
        "data": {"text": str(text), "block_length": 32, "held_out_blocks": 4},
        "method": "neuroada",
        "neuroada": {"k": 2},
        "training": {"max_steps": 6, "learning_rate": 0.05, "save_steps": 2, "logging_steps": 1},
    }
    return check_recipe(content | changes, "recipe")


def run(recipe: Recipe, output: Path, **options: Any) -> tuple[dict[str, Any] | None, str]:
    console = Console(record=True, width=100, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    return train(recipe, output, console, **options), console.export_text()


def test_run_learns_and_leaves_a_whole_run_folder(recipe: Recipe, tiny_model_dir: Path, tmp_path: Path):
    output = tmp_path / "run"
    summary, printed = run(recipe, output)
    assert summary is not None
    assert summary["held_out_loss_after"] < summary["held_out_loss_before"] - 0.1
    assert summary["merge"] == {"equal": True, "logits": 32 * 257, "differing": 0, "largest": 0.0}
    assert 0 < summary["surviving_deltas"] <= summary["trainable_parameters"]
    assert json.loads((output / "summary.json").read_text()) == summary
    assert load_recipe(output / "recipe.yaml") == recipe
    assert json.loads((output / "environment.json").read_text())["packages"]["torch"] == torch.__version__
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [record["event"] for record in records if record["event"] != "saved"] == [
        "evaluate",
        *["train"] * 6,
        "evaluate",
    ]
    assert [record["step"] for record in records if record["event"] == "saved"] == [2, 4, 6]
    assert {path.name for path in output.rglob("*.bin")} <= {"training_args.bin"}
    for phrase in ("NeuroAda (k=2) on 14 layers", "inplace on 14 layers", "yes, bit for bit", "tokens/s", str(output)):
        assert phrase in printed
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    loaded = PeftModel.from_pretrained(base, output / "adapter")
    assert any(parameter.abs().max() > 0 for name, parameter in loaded.named_parameters() if "deltas" in name)


def test_held_out_loss_before_is_the_base_models(recipe: Recipe, tiny_model_dir: Path, tmp_path: Path):
    prepared = prepare(recipe, Console(quiet=True)).data
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).eval()
    rows = torch.tensor(prepared.held_out["input_ids"])
    expected = sum(base(input_ids=row[None], labels=row[None]).loss.item() for row in rows) / len(rows)
    summary, _ = run(recipe, tmp_path / "run")
    assert math.isclose(summary["held_out_loss_before"], expected, rel_tol=1e-5)


def with_callback(callback: TrainerCallback) -> Callable[..., ResumableTrainer]:
    return lambda *args, callbacks, **kw: ResumableTrainer(*args, callbacks=[*callbacks, callback], **kw)


class InStepFive(TrainerCallback):
    """Ctrl-C between two checkpoints."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


class InClosingEvaluation(TrainerCallback):
    """Ctrl-C after the last step, which has a checkpoint."""

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise KeyboardInterrupt


@pytest.mark.parametrize("interrupt", [InStepFive, InClosingEvaluation])
def test_interrupted_run_resumes_to_the_same_deltas(
    tiny_model_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: type[TrainerCallback]
):
    training = {"max_steps": 6, "learning_rate": 0.05, "save_steps": 2, "logging_steps": 1}
    constant = training | {"lr_scheduler_type": "constant"}  # a linear rate is 0 in a step too many
    recipe = make_recipe(tiny_model_dir, text, training=constant)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    expected, _ = run(recipe, whole)
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "ResumableTrainer", with_callback(interrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(recipe, resumed)
    assert not (resumed / "adapter").exists()
    summary, printed = run(recipe, resumed, resume=True)
    assert summary["held_out_loss_after"] == expected["held_out_loss_after"]
    assert summary["steps"] == 6
    saved = [record["seconds"] for record in RunFolder(resumed).records("saved")]
    assert len(saved) == 3
    assert saved == sorted(saved)
    assert saved[0] > 0
    assert summary["training_seconds"] >= saved[-1]
    assert summary["tokens_per_second"] == pytest.approx(6 * 32 / summary["training_seconds"])
    assert "unknown" not in printed
    deltas, again = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, resumed))
    assert deltas.keys() == again.keys()
    assert all(torch.equal(deltas[name], again[name]) for name in deltas)
    losses = [[each["loss"] for each in RunFolder(folder).records("train")] for folder in (whole, resumed)]
    assert losses[0] == losses[1]


class Watch(TrainerCallback):
    """Notes whether the base weights hold the deltas after each step; stops as Ctrl-C does after the second."""

    held: ClassVar[list[bool]] = []
    layers: ClassVar[list[NeuroAdaLinear]] = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.layers[:] = [module for module in model.modules() if isinstance(module, NeuroAdaLinear)]
        self.held.append(all(is_held(layer.base_layer.weight) for layer in self.layers))
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_deltas_are_held_while_training_and_out_after_an_interrupt(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fitting, "ResumableTrainer", with_callback(Watch()))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "run")
    assert Watch.held == [True, True]
    assert Watch.layers
    assert not any(is_held(layer.base_layer.weight) for layer in Watch.layers)


def test_lora_runs_through_the_same_path(tiny_model_dir: Path, text: Path, tmp_path: Path):
    recipe = make_recipe(tiny_model_dir, text, method="lora", lora={"r": 2})
    summary, printed = run(recipe, tmp_path / "run")
    assert summary["surviving_deltas"] is None
    assert "LoRA (r=2)" in printed
    assert "inplace" not in printed


def test_dry_run_describes_and_writes_nothing(recipe: Recipe, tmp_path: Path):
    summary, printed = run(recipe, tmp_path / "run", dry_run=True)
    assert summary is None
    assert "6, of 1 sample and about 32 tokens each; learning rate" in printed
    assert not (tmp_path / "run").exists()


def test_bad_input_leaves_no_run_folder(recipe: Recipe, tiny_model_dir: Path, text: Path, tmp_path: Path):
    for bad, error in (
        (make_recipe(tmp_path / "absent", text), MissingInputError),
        (make_recipe(tiny_model_dir, tmp_path / "absent.txt"), MissingInputError),
        (make_recipe(tiny_model_dir, text, data={"text": str(text), "block_length": 10_000}), ConfigError),
    ):
        with pytest.raises(error):
            run(bad, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_merge_that_changes_outputs_fails_after_the_adapter_is_safe(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    merge = NeuroAdaModel.merge_and_unload

    def spoilt(self):
        merged = merge(self)
        merged.model.layers[0].mlp.down_proj.weight.data[0, 0] += 1
        return merged

    monkeypatch.setattr(NeuroAdaModel, "merge_and_unload", spoilt)
    with pytest.raises(MergeError, match=r"logits of a held-out batch differ, by up to .* Use .*adapter unmerged"):
        run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
